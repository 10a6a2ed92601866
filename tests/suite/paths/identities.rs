//! No path is the base, all paths are the source, and what lies between.

use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, RunOptions};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Mlps, ReceiverInput, SweepGrid, head_effects, patch_paths, patch_streams, sweep,
};
use burn_align::paths::{HeadInput, Hop, Node, Path, Stream, Value};
use burn_align_models::{AlignableTransformer, Component, ModelDims};

use super::{FAMILIES, MODELS, assert_close, hop, inputs, metric, reads_at, whole};
use crate::support::load;

on_every_backend!(
    no_path_is_the_base_and_all_paths_are_the_source,
    every_path_from_the_embedding_is_the_source,
    a_budget_changes_nothing,
    a_run_that_goes_on_is_an_interchange,
    a_position_that_is_read_may_be_another_inputs,
);

fn no_path_is_the_base_and_all_paths_are_the_source<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let everything = Node::all(model.dims()).into_iter().map(Path::new);
        let heads = Node::heads(model.dims()).into_iter();
        let one_by_one = heads.chain(
            Node::all(model.dims())
                .into_iter()
                .filter(|node| !matches!(node, Node::Attention { .. })),
        );
        let sets = [
            Vec::new(),
            everything.collect(),
            one_by_one.map(Path::new).collect(),
        ];
        let effects = patch_paths(&model, [&base, &source], &sets, metric, &whole());
        let effects = effects.expect("valid");
        let (b, s) = (effects.base, effects.source);
        assert!((b - s).abs() > 0.01, "{name}: base and source differ");
        assert_close(&effects.patched, &[b, s, s], 1e-5, name);
        let tolerance = 2e-5 / (b - s).abs();
        assert_close(&effects.shares(), &[0.0, 1.0, 1.0], tolerance, name);
    }
}

/// Every path from the embedding on, with separate heads.
fn all_paths(dims: &ModelDims) -> Vec<Path> {
    let mut paths = vec![Path::new(Node::Embedding)];
    for layer in 0..dims.layers {
        let through = |hop: Hop, paths: &[Path]| -> Vec<Path> {
            paths.iter().map(|path| path.clone().through(hop)).collect()
        };
        let before = paths.clone();
        for head in 0..dims.heads {
            for input in HeadInput::ALL {
                paths.extend(through(hop(layer, head, input), &before));
            }
        }
        let before = match dims.parallel {
            true => before,
            false => paths.clone(),
        };
        paths.extend(through(Hop::Mlp { layer }, &before));
    }
    paths
}

fn every_path_from_the_embedding_is_the_source<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let paths = all_paths(model.dims());
        assert_eq!(
            paths.len(),
            match name {
                "gpt_neox_plain" => 64,
                "phi_plain" => 196,
                _ => 676,
            }
        );
        let effects = patch_paths(&model, [&base, &source], &[paths], metric, &whole());
        let effects = effects.expect("valid");
        assert_close(&effects.patched, &[effects.source], 2e-5, name);
    }
}

fn a_budget_changes_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let [base, source, _] = inputs();
    let inputs = [&base, &source];
    let paths = all_paths(model.dims());
    let paths: Vec<Vec<Path>> = paths.chunks(80).map(<[Path]>::to_vec).collect();
    let receivers = [ReceiverInput::Value {
        layer: 1,
        kv_head: 1,
    }
    .into()];
    let run = |options: &RunOptions| {
        let trees = patch_paths(&model, inputs, &paths, metric, options).expect("valid");
        let grid = head_effects(
            &model,
            inputs,
            &receivers,
            Mlps::Recomputed,
            metric,
            options,
        );
        [trees.patched, grid.expect("valid").patched.values.concat()].concat()
    };
    let parts = run(&whole().with_max_rows(200));
    assert_close(&parts, &run(&whole()), 1e-5, "llama_gqa");
}

fn a_run_that_goes_on_is_an_interchange<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let words: Vec<String> = (0..5).map(|word| word.to_string()).collect();
        let grid = SweepGrid::layers_and_positions(Component::MlpOutput, 2, &words);
        let (inputs, swap) = ([&base, &source], VanillaIntervention);
        let swept = sweep(&model, &swap, inputs, &grid, metric, &whole()).expect("valid");
        let cells = (0..2).flat_map(|layer| (0..5).map(move |position| (layer, position)));
        let streams = cells.map(|(layer, position)| {
            let (node, at) = (Node::Mlp { layer }, Indices::Same(vec![position]));
            Stream::clean(0).with_run(node, at, Value::Clean(1))
        });
        let streams: Vec<Stream> = streams.collect();
        let found = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
        assert_close(&found, &swept.values.concat(), 1e-6, name);
    }
}

/// As `"positions"` are branched in nano-causal-interventions.
fn a_position_that_is_read_may_be_another_inputs<B: Backend>(device: &B::Device) {
    for name in MODELS {
        let model = load::<B>(name, device);
        let [base, source, _] = inputs();
        let inputs = [&base, &source];
        let words: Vec<String> = (0..5).map(|word| word.to_string()).collect();
        for component in [Component::AttentionInput, Component::MlpInput] {
            let grid = SweepGrid::layers_and_positions(component, 2, &words);
            let swept = sweep(
                &model,
                &VanillaIntervention,
                inputs,
                &grid,
                metric,
                &whole(),
            );
            let cells = (0..2).flat_map(|layer| (0..5).map(move |position| (layer, position)));
            let streams = cells.map(|(layer, position)| {
                let node = match component {
                    Component::MlpInput => Node::Mlp { layer },
                    _ => Node::Attention { layer },
                };
                reads_at(node, position, model.dims())
            });
            let streams: Vec<Stream> = streams.collect();
            let found = patch_streams(&model, &inputs, &streams, metric, &whole()).expect("valid");
            let expected = swept.expect("valid").values.concat();
            assert_close(&found, &expected, 1e-5, name);
        }
    }
}
