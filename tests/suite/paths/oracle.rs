//! Path patching by PyTorch hooks, see `tests/fixtures/make_paths.py`.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, RunOptions};
use burn_align::methods::{
    Mlps, PathPatch, ReceiverInput, logit_difference, patch_paths, path_patch,
};
use burn_align::paths::{HeadInput, Hop, Node, Path};
use burn_align_models::TokenBatch;
use serde::Deserialize;

use crate::support::{fixtures, load};

on_every_backend!(
    senders_and_receivers_are_those_of_hooks,
    paths_are_those_of_hooks,
);

const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Expected {
    base: Vec<Vec<u32>>,
    source: Vec<Vec<u32>>,
    pairs: [[u32; 2]; 2],
    models: BTreeMap<String, Model>,
}

#[derive(Deserialize)]
struct Model {
    clean: [[f64; 2]; 2],
    patches: BTreeMap<String, [f64; 2]>,
    paths: BTreeMap<String, [f64; 2]>,
}

impl Expected {
    fn read() -> Self {
        let text = std::fs::read_to_string(fixtures().join("paths.json")).expect("a fixture");
        serde_json::from_str(&text).expect("as the script writes it")
    }

    fn inputs(&self) -> [TokenBatch; 2] {
        [&self.base, &self.source].map(|ids| TokenBatch::new(ids.clone()).expect("a batch"))
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

/// `embedding`, `m0` or `0.3`.
fn node(text: &str) -> Node {
    match text.split_once('.') {
        Some((layer, head)) => Node::Head {
            layer: number(layer),
            head: number(head),
        },
        None if text == "embedding" => Node::Embedding,
        None => Node::Mlp {
            layer: number(&text[1..]),
        },
    }
}

/// `m0` or `0.3.q`.
fn parts(text: &str) -> (usize, Option<(usize, &str)>) {
    let parts: Vec<&str> = text.split('.').collect();
    match parts[..] {
        [layer, head, input] => (number(layer), Some((number(head), input))),
        _ => (number(&text[1..]), None),
    }
}

fn receiver(text: &str) -> ReceiverInput {
    if text == "logits" {
        return ReceiverInput::Logits;
    }
    let (layer, head) = parts(text);
    match head {
        None => ReceiverInput::Mlp { layer },
        Some((head, "q")) => ReceiverInput::Query { layer, head },
        Some((kv_head, "k")) => ReceiverInput::Key { layer, kv_head },
        Some((kv_head, _)) => ReceiverInput::Value { layer, kv_head },
    }
}

fn hop(text: &str) -> Hop {
    let (layer, head) = parts(text);
    let input = |letter| match letter {
        "q" => HeadInput::Query,
        "k" => HeadInput::Key,
        _ => HeadInput::Value,
    };
    match head {
        None => Hop::Mlp { layer },
        Some((head, letter)) => Hop::Head {
            layer,
            head,
            input: input(letter),
        },
    }
}

/// `0.2@[1, 3] > m0 > 1.2.q`
fn path(text: &str) -> Path {
    let mut nodes = text.split(" > ");
    let start = nodes.next().expect("a start");
    let start = match start.split_once('@') {
        None => Path::new(node(start)),
        Some((start, positions)) => {
            let positions = serde_json::from_str(positions).expect("a list");
            Path::new(node(start)).at(Indices::Same(positions))
        }
    };
    nodes.fold(start, |path, text| path.through(hop(text)))
}

fn assert_close(name: &str, what: &str, found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= TOLERANCE,
        "{name}, {what}: expected {expected}, found {found}"
    );
}

fn senders_and_receivers_are_those_of_hooks<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    let [base, source] = expected.inputs();
    for (name, of_model) in &expected.models {
        let model = load::<B>(name, device);
        for (mlps, word) in [(Mlps::Frozen, "frozen "), (Mlps::Recomputed, "recomputed ")] {
            let mut texts = Vec::new();
            let mut patches = Vec::new();
            for text in of_model.patches.keys() {
                let Some(patch) = text.strip_prefix(word) else {
                    continue;
                };
                let (from, to) = patch.split_once(" > ").expect("two ends");
                patches.push(PathPatch::new(node(from), receiver(to)));
                texts.push(text);
            }
            assert!(patches.len() > 40);
            for (index, [a, b]) in expected.pairs.into_iter().enumerate() {
                let effects = path_patch(
                    &model,
                    [&base, &source],
                    &patches,
                    mlps,
                    |logits| logit_difference(logits, a, b),
                    &RunOptions::default(),
                )
                .expect("valid");
                assert_close(name, "base", effects.base, of_model.clean[0][index]);
                assert_close(name, "source", effects.source, of_model.clean[1][index]);
                for (text, found) in texts.iter().zip(effects.patched) {
                    assert_close(name, text, found, of_model.patches[*text][index]);
                }
            }
        }
    }
}

fn paths_are_those_of_hooks<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    let [base, source] = expected.inputs();
    for (name, of_model) in &expected.models {
        let model = load::<B>(name, device);
        let sets: Vec<Vec<Path>> = of_model.paths.keys().map(|text| vec![path(text)]).collect();
        assert!(sets.len() > 50);
        for (index, [a, b]) in expected.pairs.into_iter().enumerate() {
            let metric = |logits| logit_difference(logits, a, b);
            let options = RunOptions::default();
            let effects = patch_paths(&model, [&base, &source], &sets, metric, &options);
            let patched = effects.expect("valid").patched;
            for ((text, expected), found) in of_model.paths.iter().zip(patched) {
                assert_close(name, text, found, expected[index]);
            }
        }
    }
}
