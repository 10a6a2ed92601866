//! Identities that hold for any plan; in the submodules, random plans and the positions that are
//! computed.

mod positions;
pub(crate) mod random_plans;
mod reuse;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Plan, Units, WorldId};
use burn_align::interventions::{Intervention, Operands, VanillaIntervention};
use burn_align_models::{AlignableTransformer, Component, ModelInput, Site, TokenBatch};

use crate::support::{FAMILIES, load, max_difference, tokens, values};

on_every_backend!(
    empty_plan_is_the_plain_forward,
    source_equal_to_base_changes_nothing,
    whole_residual_brings_the_source_logits,
    worlds_do_not_disturb_each_other,
);

/// Interventions whose order matters, so that a wrong order shows.
#[derive(Module, Clone, Debug)]
enum Mixed {
    Swap(VanillaIntervention),
    /// `1.5 base + 0.5 source`
    Blend(VanillaIntervention),
    /// `-0.8 base`, without a source
    Negate(VanillaIntervention),
}

impl<B: Backend> Intervention<B> for Mixed {
    fn needs_source(&self) -> bool {
        !matches!(self, Self::Negate(_))
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let changed = match self {
            Self::Swap(_) => operands.source(),
            Self::Blend(_) => base.clone() * 1.5 + operands.source() * 0.5,
            Self::Negate(_) => base.clone() * -0.8,
        };
        operands.within_subspace(base, changed)
    }
}

fn mixed() -> [Mixed; 3] {
    [
        Mixed::Swap(VanillaIntervention),
        Mixed::Blend(VanillaIntervention),
        Mixed::Negate(VanillaIntervention),
    ]
}

/// Every site of a model, in order.
fn sites<B: Backend, M: AlignableTransformer<B>>(model: &M) -> Vec<Site> {
    let blocks = (0..model.dims().layers)
        .flat_map(|layer| Component::ALL.map(|component| Site::Block(layer, component)));
    [Site::Embedding]
        .into_iter()
        .chain(blocks)
        .chain([Site::FinalNorm])
        .filter(|site| model.site(*site).is_some())
        .collect()
}

fn empty_plan_is_the_plain_forward<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let batch = tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]]);
        let mut plan = Plan::new();
        let input = plan.tokens(&batch);
        let world = plan.world(input, []);
        let read = plan.read_logits(world, LogitPositions::All);
        let logits = plan.run(&model, &mixed()).expect("valid").get(read);
        let plain = model.forward(ModelInput::Tokens(batch.to_tensor(device)));
        assert_eq!(values(logits), values(plain), "{name}");
    }
}

/// An interchange at a site, from a world on `source` into one on `base`.
fn interchange<B: Backend>(
    plan: &mut Plan<B>,
    [base, source]: [&TokenBatch; 2],
    site: Site,
    units: &Units,
) -> WorldId {
    let source = plan.tokens(source);
    let source = plan.world(source, []);
    let base = plan.tokens(base);
    plan.world(base, [Edit::from_world(source, site, units.clone(), 0)])
}

fn source_equal_to_base_changes_nothing<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let batch = tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]]);
        let plain = model.forward(ModelInput::Tokens(batch.to_tensor(device)));
        let mut plan = Plan::new();
        let mut reads = Vec::new();
        for site in sites(&model) {
            for units in [
                Units::ALL,
                Units::position(2),
                Units::position(1).of_head(0),
            ] {
                let world = interchange(&mut plan, [&batch, &batch], site, &units);
                reads.push((site, plan.read_logits(world, LogitPositions::All)));
            }
        }
        let results = plan.run(&model, &mixed()).expect("valid");
        for (site, read) in reads {
            let difference = max_difference(results.get(read), &plain.to_data());
            assert!(difference <= 2e-5, "{name} {site}: {difference}");
        }
    }
}

fn whole_residual_brings_the_source_logits<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let (base, source) = (tokens(&[&[3, 1, 4, 1, 5]]), tokens(&[&[9, 2, 6, 5, 3]]));
        let expected = model.forward(ModelInput::Tokens(source.to_tensor(device)));
        let mut plan = Plan::new();
        let mut reads = Vec::new();
        let layers = 0..model.dims().layers;
        let residuals = layers.flat_map(|layer| {
            [
                Component::BlockInput,
                Component::ResidualMid,
                Component::BlockOutput,
            ]
            .map(|component| Site::Block(layer, component))
        });
        let residuals = residuals.filter(|site| model.site(*site).is_some());
        for site in [Site::Embedding, Site::FinalNorm]
            .into_iter()
            .chain(residuals)
        {
            let world = interchange(&mut plan, [&base, &source], site, &Units::ALL);
            reads.push((site, plan.read_logits(world, LogitPositions::All)));
        }
        let results = plan.run(&model, &mixed()).expect("valid");
        for (site, read) in reads {
            let difference = max_difference(results.get(read), &expected.to_data());
            assert!(difference <= 2e-5, "{name} {site}: {difference}");
        }
    }
}

fn worlds_do_not_disturb_each_other<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let (base, source) = (tokens(&[&[3, 1, 4, 1, 5]]), tokens(&[&[9, 2, 6]]));
    let alone = |site: Site, position: usize| {
        let mut plan = Plan::new();
        let units = Units::position(position);
        let world = interchange(&mut plan, [&base, &source], site, &units);
        let read = plan.read_logits(world, LogitPositions::Last);
        plan.run(&model, &mixed()).expect("valid").get(read)
    };
    let mut plan = Plan::new();
    let mut reads = Vec::new();
    for site in sites(&model)
        .into_iter()
        .filter(|site| !site.is_attention_pattern())
    {
        for position in 0..3 {
            let units = Units::position(position);
            let world = interchange(&mut plan, [&base, &source], site, &units);
            reads.push((
                site,
                position,
                plan.read_logits(world, LogitPositions::Last),
            ));
        }
    }
    let together = plan.run(&model, &mixed()).expect("valid");
    for (site, position, read) in reads {
        let difference = max_difference(together.get(read), &alone(site, position).into_data());
        assert!(
            difference <= 2e-5,
            "{site} position {position}: {difference}"
        );
    }
}
