//! Gradients and effects by PyTorch hooks, see `tests/fixtures/make_attribution.py`.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::{TensorData, backend::Backend};
use burn_align::engine::{RunOptions, Units};
use burn_align::methods::attribution::{
    AtpOptions, NodeEffects, attribution_patching, site_gradients,
};
use burn_align_models::{AlignableTransformer, Component, Site};

use super::{base, block, metric, noising};
use crate::support::{fixtures, load, max_difference, read_tensors};

on_every_backend!(gradients_are_those_of_hooks, estimates_are_those_of_hooks,);

/// The last one has three layers, so that the mean over dropped layers is not their sum.
const MODELS: [&str; 3] = ["gpt2_plain", "llama_gqa", "gpt2_inverse_layer"];
/// Of gradients and effects, relative to the largest one.
const TOLERANCE: f32 = 2e-4;
/// Rows and positions of the prompts.
const SIZE: [usize; 2] = [2, 5];
const HEADS: usize = 4;

fn expected() -> BTreeMap<String, TensorData> {
    read_tensors(&fixtures().join("attribution.safetensors"))
}

fn numbers(data: &TensorData) -> Vec<f32> {
    data.to_vec().expect("f32 values")
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

fn gradients_are_those_of_hooks<B: Backend>(device: &B::Device) {
    let expected = expected();
    for name in MODELS {
        let model = load::<Autodiff<B>>(name, device);
        let sites = [
            ("input1", block(1, Component::BlockInput)),
            ("mlp0", block(0, Component::MlpOutput)),
            ("mixed1", block(1, Component::AttentionValueOutput)),
        ];
        let units: Vec<(Site, Units)> = sites.iter().map(|(_, site)| (*site, Units::ALL)).collect();
        let options = RunOptions::default();
        let found = site_gradients(&model, base(), &units, &metric(), &options).expect("valid");
        let clean = numbers(&expected[&format!("{name}.metric.base")]);
        for (found, expected) in found.metric.iter().zip(clean) {
            assert!((found - f64::from(expected)).abs() <= 1e-4, "{name}");
        }
        for ((site, _), gradient) in sites.iter().zip(found.gradients) {
            let expected = &expected[&format!("{name}.gradient.{site}")];
            let scale = largest(&numbers(expected));
            let off = max_difference(gradient, expected);
            assert!(off <= TOLERANCE * scale, "{name}, {site}: {off} of {scale}");
        }
    }
}

/// Nodes of one component, for each head and position.
fn by_head(layer: usize, component: Component, heads: usize) -> Vec<(Site, Units)> {
    let site = block(layer, component);
    let [_batch, pos] = SIZE;
    let nodes = (0..heads).flat_map(|head| (0..pos).map(move |position| (head, position)));
    let nodes = nodes.map(|(head, position)| (site, Units::position(position).of_head(head)));
    nodes.collect()
}

/// Compares effects with a tensor `[batch, head, pos]`, or `[batch, pos]`.
fn assert_effects(what: &str, found: &NodeEffects, expected: &TensorData) {
    let expected = numbers(expected);
    let (scale, count) = (largest(&expected), found.effects.len());
    assert_eq!(expected.len(), SIZE[0] * count, "{what}");
    assert!(scale > 1e-3, "{what}: no effect");
    for (example, expected) in expected.chunks(count).enumerate() {
        for (node, expected) in expected.iter().enumerate() {
            let found = found.effects[node][example];
            let off = (found - f64::from(*expected)).abs();
            assert!(
                off <= f64::from(TOLERANCE * scale),
                "{what}, example {example}, node {node}: expected {expected}, found {found}"
            );
        }
    }
}

fn estimates_are_those_of_hooks<B: Backend>(device: &B::Device) {
    let expected = expected();
    for name in MODELS {
        let model = load::<Autodiff<B>>(name, device);
        let kv_heads = model.dims().kv_heads;
        let estimate = |nodes: &[(Site, Units)], options: &AtpOptions| {
            attribution_patching(&model, &noising(), nodes, &metric(), options).expect("valid")
        };
        let plain = AtpOptions::default();
        let fixed = plain.clone().with_qk_fix(true);
        let dropped = plain.clone().with_grad_drop(true);
        for layer in 0..model.dims().layers {
            let check = |what: &str, found: &NodeEffects| {
                let key = format!("{name}.{what}{layer}");
                assert_effects(&key, found, &expected[&key]);
            };
            let mixed = by_head(layer, Component::AttentionValueOutput, HEADS);
            let found = estimate(&mixed, &plain);
            check("atp.mixed", &found);
            let other = numbers(&expected[&format!("{name}.metric.source")]);
            for (found, expected) in found.source.iter().zip(other) {
                assert!((found - f64::from(expected)).abs() <= 1e-4, "{name}");
            }
            let mlps: Vec<_> = (0..SIZE[1])
                .map(|at| (block(layer, Component::MlpOutput), Units::position(at)))
                .collect();
            check("star.mlp", &estimate(&mlps, &dropped));
            check("star.mlp", &estimate(&mlps, &AtpOptions::star()));

            let queries = by_head(layer, Component::QueryOutput, HEADS);
            let keys = by_head(layer, Component::KeyOutput, kv_heads);
            check("fixed.q", &estimate(&queries, &fixed));
            check("fixed.k", &estimate(&keys, &fixed));
            check("star.q", &estimate(&queries, &AtpOptions::star()));
            check("star.k", &estimate(&keys, &AtpOptions::star()));
            // All kinds of nodes at once.
            let all = [queries, mixed, keys].concat();
            let found = estimate(&all, &fixed);
            let [batch, pos] = SIZE;
            assert_eq!(found.effects.len(), pos * (2 * HEADS + kv_heads));
            assert_eq!(found.effects[0].len(), batch);
            let part = |nodes: std::ops::Range<usize>| NodeEffects {
                effects: found.effects[nodes].to_vec(),
                ..found.clone()
            };
            check("fixed.q", &part(0..pos * HEADS));
            check("atp.mixed", &part(pos * HEADS..2 * pos * HEADS));
            check("fixed.k", &part(2 * pos * HEADS..found.effects.len()));
        }
    }
}
