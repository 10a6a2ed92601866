//! Attribution: gradients against finite differences and tracked parameters, estimates against the
//! exact effects, and identities of integrated gradients.

mod linear;
mod oracle;
mod refused;

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, RunOptions, Units};
use burn_align::interventions::AdditionIntervention;
use burn_align::methods::attribution::{
    AtpOptions, AttributionError, Gradients, IntegrationOptions, IntegrationPath, LogitDifference,
    Metric, NodeEffects, Patching, Steps, attribution_patching, compare, integrated_gradients,
    patch_nodes, site_gradients,
};
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, TokenBatch};

use crate::support::{FAMILIES, load, of_gradients, tokens, values};

on_every_backend!(
    gradients_are_those_of_finite_differences,
    gradients_are_those_of_a_tracked_vector,
    parts_find_the_same_gradients,
    parts_find_the_same_effects,
    steps_along_a_cut_sum_to_the_change,
    steps_along_the_embedding_sum_to_the_change,
    steps_of_each_node_find_its_exact_effect,
    a_comparison_ranks_nodes,
);

fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]])
}

fn source() -> TokenBatch {
    tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8, 2, 8]])
}

fn metric() -> LogitDifference {
    LogitDifference::new([5, 30], [17, 2])
}

fn noising<B: Backend>() -> Patching<B> {
    Patching::noising(base(), source())
}

fn block(layer: usize, component: Component) -> Site {
    Site::Block(layer, component)
}

/// The sum of the metric over examples, with a number added to one feature of one unit of each.
///
/// - shape: of what is added, `[batch, unit, d_site]`
fn moved<B: Backend>(
    model: &Decoder<B>,
    (site, units): &(Site, Units),
    shape: [usize; 3],
    cell: usize,
    by: f32,
) -> f64 {
    let [batch, unit, width] = shape;
    let added = (0..batch * unit * width).map(|index| match index % (unit * width) == cell {
        true => by,
        false => 0.0,
    });
    let added = TensorData::new(added.collect::<Vec<f32>>(), shape);
    let added = Tensor::<B, 3>::from_data(added, (&model.device(), DType::F32));
    let mut plan = Plan::<B>::new();
    let added = Operand::Constant(plan.constant(added));
    let input = plan.tokens(&base());
    let world = plan.world(input, [Edit::new(*site, units.clone(), 0, added)]);
    let logits = plan.read_logits(world, LogitPositions::Last);
    let results = plan.run(model, &[AdditionIntervention]).expect("valid");
    let found = values(metric().values(results.get(logits), &[0, 1]));
    found.into_iter().map(f64::from).sum()
}

fn gradients_are_those_of_finite_differences<B: Backend>(device: &B::Device) {
    const STEP: f32 = 1e-2;
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let tracked = load::<Autodiff<B>>(name, device);
        let units = || Units::positions(Indices::same([1, 4]));
        let sites = [
            (Site::Embedding, units()),
            (block(0, Component::MlpOutput), units()),
            (block(0, Component::KeyOutput), units()),
            (block(1, Component::QueryOutput), units().of_head(1)),
            (block(1, Component::AttentionWeights), units().of_head(1)),
            (block(1, Component::AttentionValueOutput), units()),
            (block(1, Component::BlockOutput), units()),
            (Site::FinalNorm, units()),
        ];
        let options = RunOptions::default();
        let found = site_gradients(&tracked, base(), &sites, &metric(), &options);
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        for (index, site) in sites.iter().enumerate() {
            let gradient = &found.gradients[index];
            let shape = gradient.dims();
            let [_batch, unit, width] = shape;
            assert_eq!(unit, 2, "{name}, {}", site.0);
            assert_eq!(found.activations[index].dims(), shape);
            let gradient = values(gradient.clone().sum_dim(0));
            let largest = gradient.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
            assert!(largest > 1e-3, "{name}, {}: the gradient vanishes", site.0);
            for cell in (0..unit * width).step_by(3) {
                let [up, down] = [STEP, -STEP].map(|by| moved(&model, site, shape, cell, by));
                let difference = (up - down) / f64::from(2.0 * STEP);
                let off = (f64::from(gradient[cell]) - difference).abs();
                // Logits are rounded, so differences are off by 1e-3 at most.
                assert!(
                    off <= 2e-2 * f64::from(largest) + 1e-3,
                    "{name}, {}, number {cell}: gradient {}, by differences {difference}",
                    site.0,
                    gradient[cell]
                );
            }
        }
    }
}

fn gradients_are_those_of_a_tracked_vector<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("llama_gqa", device);
    let site = block(0, Component::MlpOutput);
    let units = Units::position(2);
    // A vector that is added in all examples, as when steering is trained.
    let mut plan = Plan::<Autodiff<B>>::new();
    let zeros = (device, DType::F32);
    let vector = Tensor::<Autodiff<B>, 3>::zeros([1, 1, 16], zeros).require_grad();
    let added = Operand::Constant(plan.constant(vector.clone()));
    let input = plan.tokens(&base());
    let world = plan.world(input, [Edit::new(site, units.clone(), 0, added)]);
    let logits = plan.read_logits(world, LogitPositions::Last);
    let results = plan.run(&model, &[AdditionIntervention]).expect("valid");
    let total = metric().values(results.get(logits), &[0, 1]).sum();
    let gradients = total.backward();
    let expected = values(vector.grad(&gradients).expect("it is tracked"));

    let sites = [(site, units)];
    let options = RunOptions::default();
    let found = site_gradients(&model, base(), &sites, &metric(), &options).expect("valid");
    let sum = values(found.gradients[0].clone().sum_dim(0));
    for (found, expected) in sum.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-5, "{found}, {expected}");
    }
}

fn assert_same_gradients<B: Backend>(found: &Gradients<B>, expected: &Gradients<B>) {
    let pairs = found.metric.iter().zip(&expected.metric);
    for (found, expected) in pairs {
        assert!((found - expected).abs() <= 1e-4);
    }
    let both = [
        (&found.activations, &expected.activations),
        (&found.gradients, &expected.gradients),
    ];
    for (found, expected) in both {
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.dims(), expected.dims());
            let pairs = values(found.clone())
                .into_iter()
                .zip(values(expected.clone()));
            for (found, expected) in pairs {
                assert!((found - expected).abs() <= 1e-4, "{found}, {expected}");
            }
        }
    }
}

/// Prompts of different lengths, the longest in the middle.
fn ragged() -> TokenBatch {
    tokens(&[&[3, 1, 4], &[9, 2, 6, 5, 3], &[1, 2, 3, 4]])
}

fn parts_find_the_same_gradients<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let each = Units::positions(Indices::one_each([2, 4, 0]));
    let sites = [
        (block(0, Component::AttentionOutput), Units::ALL),
        (block(1, Component::AttentionWeights), each.clone()),
        (block(1, Component::AttentionValueOutput), each),
    ];
    let metric = LogitDifference::new([5], [17]);
    let find = |options: &RunOptions| site_gradients(&model, ragged(), &sites, &metric, options);
    let whole = find(&RunOptions::default()).expect("valid");
    // Padding has no influence.
    let [_batch, _pos, width] = whole.gradients[0].dims();
    let padding = whole.gradients[0].clone().narrow(0, 0, 1).narrow(1, 3, 2);
    assert_eq!(values(padding), vec![0.0; 2 * width]);
    let alone = find(&RunOptions::default().with_max_rows(1)).expect("valid");
    let activations = |found: &Gradients<B>| Gradients {
        metric: found.metric.clone(),
        // What a run computes at padding depends on how long it is.
        activations: found.activations[1..].to_vec(),
        gradients: found.gradients.clone(),
    };
    assert_same_gradients(&activations(&alone), &activations(&whole));

    let Err(AttributionError::MemoryBudget { needed, budget: 9 }) =
        find(&RunOptions::default().with_memory_budget(9))
    else {
        panic!("9 bytes are too few");
    };
    for budget in [needed, 2 * needed] {
        let found = find(&RunOptions::default().with_memory_budget(budget)).expect("it fits");
        assert_same_gradients(&activations(&found), &activations(&whole));
    }
}

/// Heads and MLPs by position, and residual streams.
fn nodes() -> Vec<(Site, Units)> {
    let mut nodes = Vec::new();
    for layer in 0..2 {
        for position in 0..5 {
            for head in 0..4 {
                let units = Units::position(position).of_head(head);
                nodes.push((block(layer, Component::AttentionValueOutput), units.clone()));
                nodes.push((block(layer, Component::QueryOutput), units));
            }
            let units = Units::position(position);
            nodes.push((block(layer, Component::MlpOutput), units.clone()));
            nodes.push((block(layer, Component::KeyOutput), units));
        }
        nodes.push((block(layer, Component::BlockOutput), Units::ALL));
    }
    nodes
}

fn assert_same_effects(found: &NodeEffects, expected: &NodeEffects, tolerance: f64) {
    assert_eq!(found.direction, expected.direction);
    assert_eq!(found.effects.len(), expected.effects.len());
    let all = |effects: &NodeEffects| {
        let rows = [&effects.base, &effects.source].into_iter();
        let rows = rows.chain(&effects.effects);
        rows.flatten().copied().collect::<Vec<f64>>()
    };
    let (found, expected) = (all(found), all(expected));
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * expected.abs().max(1.0),
            "number {index}: expected {expected}, found {found}"
        );
    }
}

fn parts_find_the_same_effects<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<Autodiff<B>>(name, device);
        for options in [AtpOptions::default(), AtpOptions::star()] {
            let find = |run: RunOptions| {
                let options = options.clone().with_run(run);
                attribution_patching(&model, &noising(), &nodes(), &metric(), &options)
            };
            let whole = find(RunOptions::default()).expect("valid");
            let alone = find(RunOptions::default().with_max_rows(4)).expect("valid");
            assert_same_effects(&alone, &whole, of_gradients::<B>(device, 1e-5));
        }
        let options = IntegrationOptions::default().with_path(IntegrationPath::EachNode);
        let find = |run: RunOptions| {
            let options = options.clone().with_run(run);
            integrated_gradients(&model, &noising(), &nodes(), &metric(), &options)
        };
        let whole = find(RunOptions::default()).expect("valid");
        let alone = find(RunOptions::default().with_max_rows(3)).expect("valid");
        assert_same_effects(&alone, &whole, of_gradients::<B>(device, 1e-5));
    }
}

fn steps_along_a_cut_sum_to_the_change<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<Autodiff<B>>(name, device);
        let site = block(0, Component::BlockOutput);
        let cut: Vec<_> = (0..5).map(|it| (site, Units::position(it))).collect();
        let options = IntegrationOptions::default()
            .with_path(IntegrationPath::AllNodes)
            .with_steps(Steps::midpoint(64));
        for patching in [noising(), Patching::denoising(base(), source())] {
            let found = integrated_gradients(&model, &patching, &cut, &metric(), &options);
            let found = found.expect("valid");
            for example in 0..2 {
                let sum: f64 = found.effects.iter().map(|node| node[example]).sum();
                let change = found.source[example] - found.base[example];
                assert!(
                    (sum - change).abs() <= 3e-3,
                    "{name}, example {example}: {sum}, {change}"
                );
            }
        }
    }
}

fn steps_along_the_embedding_sum_to_the_change<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let nodes = [(Site::Embedding, Units::ALL)];
    let difference = |steps: Steps| {
        let options = IntegrationOptions::default().with_steps(steps);
        let found = integrated_gradients(&model, &noising(), &nodes, &metric(), &options);
        let found = found.expect("valid");
        let change = found.source[1] - found.base[1];
        (found.effects[0][1] - change).abs()
    };
    assert!(difference(Steps::midpoint(64)) <= 2e-3);
    // The ends of intervals are further off, on either side.
    for steps in [Steps::left(8), Steps::right(8)] {
        assert!(difference(steps) > 2.0 * difference(Steps::midpoint(8)));
    }
    assert_eq!(Steps::right(2).shares(), [0.5, 1.0]);
    assert_eq!(Steps::left(2).shares(), [0.0, 0.5]);
    assert_eq!(Steps::midpoint(2).shares(), [0.25, 0.75]);
}

fn steps_of_each_node_find_its_exact_effect<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let options = IntegrationOptions::default()
        .with_path(IntegrationPath::EachNode)
        .with_steps(Steps::midpoint(64));
    let nodes: Vec<_> = nodes().into_iter().step_by(5).collect();
    let found = integrated_gradients(&model, &noising(), &nodes, &metric(), &options);
    let found = found.expect("valid");
    let plain = load::<B>("gpt2_plain", device);
    let exact = patch_nodes(
        &plain,
        &noising(),
        &nodes,
        &metric(),
        &RunOptions::default(),
    );
    assert_same_effects(&found, &exact.expect("valid"), 5e-3);
}

fn a_comparison_ranks_nodes<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let options = AtpOptions::default();
    let found = attribution_patching(&model, &noising(), &nodes(), &metric(), &options);
    let found = found.expect("valid");
    let exact = patch_nodes(
        &plain,
        &noising(),
        &nodes(),
        &metric(),
        &RunOptions::default(),
    );
    let exact = exact.expect("valid");
    let agreement = compare(&found, &exact).expect("the same nodes");
    // The residual stream after the last layer is the answer: it is patched as a whole.
    let last = nodes().len() - 1;
    for example in 0..2 {
        let change = exact.source[example] - exact.base[example];
        assert!((exact.effects[last][example] - change).abs() <= 1e-4);
    }
    assert!(
        agreement
            .spearman
            .is_some_and(|it| (0.3..=1.0).contains(&it))
    );
    let worst = agreement.misses[0];
    assert_eq!(worst.exact, exact.means()[worst.index]);
    assert_eq!(worst.approximate, found.means()[worst.index]);
    let ranked = exact.ranked();
    assert_eq!(ranked[worst.exact_rank].0, worst.index);
    assert!(
        agreement
            .misses
            .is_sorted_by(|a, b| a.error().abs() >= b.error().abs())
    );
    let itself = compare(&exact, &exact).expect("the same nodes");
    for correlation in [
        itself.spearman,
        itself.spearman_of_magnitudes,
        itself.pearson,
    ] {
        assert!((correlation.expect("they vary") - 1.0).abs() < 1e-12);
    }
}
