//! Attention patterns.

use std::fs;

use burn::tensor::backend::Backend;
use burn_align::engine::{Plan, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::lens::{LensError, attention_patterns};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site, TokenBatch,
};
use serde_json::Value;

use super::prompts;
use crate::support::{FAMILIES, fixtures, load, values};

on_every_backend!(
    patterns_are_the_weights_of_heads,
    heads_look_where_they_were_built_to,
    heads_that_do_not_exist_are_refused,
);

fn patterns_are_the_weights_of_heads<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let (layers, count) = (model.dims().layers, model.dims().heads);
        let heads = (0..layers).flat_map(|layer| (0..count).map(move |head| (layer, head)));
        let heads: Vec<(usize, usize)> = heads.collect();
        let options = RunOptions::default();
        let found = attention_patterns(&model, prompts(), &heads, &options).expect("valid");

        let mut plan = Plan::<B>::new();
        let input = plan.tokens(&prompts());
        let world = plan.world(input, []);
        let reads = (0..layers).map(|layer| {
            let weights = Site::Block(layer, Component::AttentionWeights);
            plan.read(world, weights, Units::ALL)
        });
        let reads: Vec<_> = reads.collect();
        let results = plan.run(&model, &[VanillaIntervention; 0]).expect("valid");
        let pos = 5;
        assert_eq!(found.len(), heads.len(), "{name}");
        for (pattern, (layer, head)) in found.iter().zip(&heads) {
            assert_eq!((pattern.layer, pattern.head), (*layer, *head), "{name}");
            // [batch, q_pos, head * k_pos]
            let all = values(results.get(reads[*layer]));
            let at = |example: usize, query: usize, key: usize| {
                all[((example * pos + query) * count + head) * pos + key]
            };
            for (example, length) in [5, 3, 5].into_iter().enumerate() {
                let rows = &pattern.values[example];
                assert_eq!(rows.len(), length, "{name}");
                for (query, row) in rows.iter().enumerate() {
                    assert_eq!(row.len(), length, "{name}");
                    let sum: f64 = row.iter().sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{name}: {sum}");
                    for (key, weight) in row.iter().enumerate() {
                        let off = (weight - f64::from(at(example, query, key))).abs();
                        assert!(off < 1e-6, "{name}, {layer}.{head}: {query}, {key}");
                        assert!(key <= query || *weight == 0.0, "{name}: {weight}");
                    }
                }
            }
        }
    }
}

/// The heads of `tests/fixtures/make_planted.py`: one looks at the token before, the other after
/// an earlier occurrence of the same token.
fn heads_look_where_they_were_built_to<B: Backend>(device: &B::Device) {
    let folder = fixtures().join("planted");
    let json = fs::read_to_string(folder.join("prompts.json")).expect("the fixture");
    let json: Value = serde_json::from_str(&json).expect("the fixture");
    let rows: Vec<Vec<u32>> = serde_json::from_value(json["clean"].clone()).expect("token ids");
    let options = LoadOptions::default();
    let loaded = Decoder::<B>::from_pretrained(folder.as_path(), &options, device);
    let model = loaded.expect("the fixture loads").model;
    let batch = TokenBatch::new(rows.clone()).expect("a batch");
    let options = RunOptions::default();
    let found = attention_patterns(&model, batch, &[(0, 2), (1, 3)], &options).expect("valid");
    let [before, induction] = &found[..] else {
        panic!("two heads");
    };
    let labels: Vec<String> = (0..8).map(|position| position.to_string()).collect();
    for (example, row) in rows.iter().enumerate() {
        let grid = before.grid(example, &labels).expect("eight labels");
        for (query, weights) in grid.values.iter().enumerate().skip(1) {
            let weight = weights[query - 1];
            assert!(weight > 0.9, "example {example}, {query}: {weight}");
        }
        let place = row.iter().position(|token| *token == row[7]);
        let after = place.expect("an earlier occurrence") + 1;
        let weight = induction.values[example][7][after];
        assert!(weight > 0.9, "example {example}: {weight}");
    }
    assert_eq!(before.grid(0, &labels[1..]), None);
    assert_eq!(before.grid(rows.len(), &labels), None);
}

fn heads_that_do_not_exist_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let options = RunOptions::default();
    let read = |heads: &[(usize, usize)]| attention_patterns(&model, prompts(), heads, &options);
    assert_eq!(read(&[]), Err(LensError::Nothing { what: "head" }));
    for (layer, head) in [(2, 0), (0, 4)] {
        let expected = LensError::NoSuchHead {
            layer,
            head,
            layers: 2,
            heads: 4,
        };
        assert_eq!(read(&[(0, 0), (layer, head)]), Err(expected));
    }
}
