//! Zeros whose gradients are those of activations.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::{AlignableTransformer, Site, SiteWidth};

use crate::engine::{Edit, Operand, Plan, PlanError, Units};

/// Zeros that are added to activations, so that their gradients are those of the activations.
///
/// They are edits of a world, so they work in any world of any plan, beside its other edits: after
/// those at the same site, the gradient is that of the edited activation, before them that of the
/// activation that they edit. Adding zeros changes no number.
///
/// Make new ones for each backward pass: Burn 0.21's autodiff forgets a tensor after its first.
///
/// ```
/// use burn::backend::{Autodiff, Flex};
/// use burn_align::engine::{LogitPositions, Plan, Units};
/// use burn_align::interventions::AdditionIntervention;
/// use burn_align::methods::attribution::Probes;
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions, Site};
///
/// type A = Autodiff<Flex>;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<A>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokens = loaded.tokenizer()?.encode_batch(["The capital of Spain is"])?;
///
/// let mut plan = Plan::<A>::new();
/// let sites = [(Site::Block(1, Component::MlpOutput), Units::ALL)];
/// let sizes = [tokens.batch(), tokens.pos()];
/// let (probes, edits) = Probes::new(&mut plan, &loaded.model, sizes, &sites, 0)?;
/// let input = plan.tokens(&tokens);
/// let world = plan.world(input, edits);
/// let logits = plan.read_logits(world, LogitPositions::Last);
/// let results = plan.run(&loaded.model, &[AdditionIntervention])?;
/// let gradients = results.get(logits).max().backward();
/// let at_site = probes.gradients(&gradients).remove(0); // [batch, pos, d_model]
/// # assert_eq!(at_site.dims()[..2], sizes);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Probes<A: AutodiffBackend> {
    zeros: Vec<Tensor<A, 3>>,
}

impl<A: AutodiffBackend> Probes<A> {
    /// Tracked zeros for each of these sites, and the edits that add them.
    ///
    /// - batch, pos: of the input of the world that gets the edits
    /// - addition: index of an [`AdditionIntervention`](crate::interventions::AdditionIntervention)
    ///   among the interventions that the plan is run with
    ///
    /// # Errors
    /// If the model has no such site. Units are checked when the plan is run.
    pub fn new<M: AlignableTransformer<A>>(
        plan: &mut Plan<A>,
        model: &M,
        [batch, pos]: [usize; 2],
        sites: &[(Site, Units)],
        addition: usize,
    ) -> Result<(Self, Vec<Edit>), PlanError> {
        let device = model.device();
        let (mut zeros, mut edits) = (Vec::new(), Vec::new());
        for (site, units) in sites {
            let [unit, heads, width] = sizes(model, *site, units, pos)?;
            let shape = [batch, unit, heads * width];
            let zero = Tensor::<A, 3>::zeros(shape, (&device, DType::F32)).require_grad();
            let operand = Operand::Constant(plan.constant(zero.clone()));
            edits.push(Edit::new(*site, units.clone(), addition, operand));
            zeros.push(zero);
        }
        Ok((Self { zeros }, edits))
    }

    /// The gradients at the sites, in their order, in f32. Zero at a site that the result does not
    /// depend on.
    ///
    /// # Shapes
    /// - output: `[batch, unit, d_site]`
    pub fn gradients(&self, gradients: &A::Gradients) -> Vec<Tensor<A::InnerBackend, 3>> {
        let zeros = self.zeros.iter();
        let gradients = zeros.map(|zero| {
            let gradient = zero.grad(gradients);
            gradient.unwrap_or_else(|| zero.clone().inner())
        });
        gradients.collect()
    }

    /// The same number, but one that depends on the probes: a result that none of them reaches has
    /// no backward pass.
    pub(super) fn tied(&self, total: Tensor<A, 1>) -> Tensor<A, 1> {
        match self.zeros.first() {
            Some(zero) => total + zero.clone().sum() * 0.0,
            None => total,
        }
    }
}

/// Sizes of what is read of a site: units, heads, and the width of a head.
pub(super) fn sizes<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    site: Site,
    units: &Units,
    pos: usize,
) -> Result<[usize; 3], PlanError> {
    let layout = model.layout();
    let dims = layout.site(site).ok_or(PlanError::NoSuchSite {
        site,
        layers: layout.layers().len(),
        lacks: layout.lacks(site),
    })?;
    let width = match dims.width {
        SiteWidth::Features(width) => width,
        SiteWidth::KeyPositions => pos,
    };
    Ok([
        units.positions.count(pos),
        units.heads.count(dims.heads),
        width,
    ])
}
