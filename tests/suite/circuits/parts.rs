//! Examples, positions and heads some at a time find the scores that all of them find together.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::AttributionError;
use burn_align::methods::circuits::{
    CircuitError, EdgeAblation, EdgeOptions, EdgeScores, clean_corrupted, eap, eap_ig_activations,
    eap_ig_inputs, information_flow_routes, patch_all_edges, patch_edges,
};

use super::{assert_scores, ragged, ragged_metric};
use crate::support::{load, of_gradients};

on_every_backend!(
    parts_find_the_same_scores,
    parts_patch_the_same_edges,
    chosen_edges_are_those_of_all
);

/// With one row at a time, and with the least budget that is enough and somewhat more.
fn assert_same_in_parts(
    name: &str,
    tolerance: f64,
    score: impl Fn(&EdgeOptions) -> Result<EdgeScores, CircuitError>,
) {
    let with = |run: RunOptions| score(&EdgeOptions::default().with_steps(2).with_run(run));
    let whole = with(RunOptions::default()).expect("valid");
    let alone = with(RunOptions::default().with_max_rows(1)).expect("valid");
    assert_scores(alone.values(), whole.values(), tolerance, name);
    let Err(CircuitError::Attribution(AttributionError::MemoryBudget { needed, budget: 9 })) =
        with(RunOptions::default().with_memory_budget(9))
    else {
        panic!("{name}: 9 bytes are too few");
    };
    for budget in [needed, needed + needed / 3, 3 * needed] {
        let found = with(RunOptions::default().with_memory_budget(budget));
        let found = found.unwrap_or_else(|error| panic!("{name}, {budget}: {error}"));
        assert_scores(found.values(), whole.values(), tolerance, name);
    }
}

fn parts_find_the_same_scores<B: Backend>(device: &B::Device) {
    let tolerance = of_gradients::<B>(device, 1e-4);
    for name in ["gpt2_plain", "gemma2_plain"] {
        let model = load::<Autodiff<B>>(name, device);
        let (patching, metric) = (ragged::<B>(), ragged_metric());
        assert_same_in_parts(name, tolerance, |options| {
            eap(&model, &patching, &metric, options)
        });
        assert_same_in_parts(name, tolerance, |options| {
            let options = options.clone().with_ablation(EdgeAblation::Mean);
            eap(&model, &patching, &metric, &options)
        });
        assert_same_in_parts(name, tolerance, |options| {
            eap_ig_inputs(&model, &patching, &metric, options)
        });
        assert_same_in_parts(name, tolerance, |options| {
            let options = options.clone().with_own_edges(true);
            eap_ig_activations(&model, &patching, &metric, &options)
        });
        assert_same_in_parts(name, tolerance, |options| {
            clean_corrupted(&model, &patching, &metric, options)
        });
        let plain = load::<B>(name, device);
        assert_same_in_parts(name, tolerance, |options| {
            information_flow_routes(&plain, patching.base().clone(), options)
        });
    }
}

fn parts_patch_the_same_edges<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "olmo2_plain"] {
        let model = load::<B>(name, device);
        let (patching, metric) = (ragged::<B>(), ragged_metric());
        let with = |run: RunOptions| {
            let options = EdgeOptions::default().with_run(run);
            patch_all_edges(&model, &patching, &metric, &options)
        };
        let whole = with(RunOptions::default()).expect("valid");
        let alone = with(RunOptions::default().with_max_rows(1)).expect("valid");
        assert_scores(alone.values(), whole.values(), 1e-4, name);
    }
}

fn chosen_edges_are_those_of_all<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let (patching, metric) = (ragged::<B>(), ragged_metric());
    let options = EdgeOptions::default();
    let all = patch_all_edges(&model, &patching, &metric, &options).expect("valid");
    let graph = all.graph();
    // In no order, some of them twice.
    let indices: Vec<usize> = (0..40).map(|it| (37 * it) % 100).chain([3, 3]).collect();
    let edges = indices
        .iter()
        .map(|index| graph.edge(*index).expect("an edge"));
    let edges: Vec<_> = edges.collect();
    let found = patch_edges(&model, &patching, &edges, &metric, &options).expect("valid");
    let expected: Vec<f64> = indices.iter().map(|index| all.values()[*index]).collect();
    assert_scores(&found, &expected, 1e-4, "chosen");
}
