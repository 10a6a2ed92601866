//! A family of models that is defined outside of the library, by the example `starcoder2`, against
//! `transformers` (`tests/fixtures/make_starcoder2.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Plan, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{logit_differences, patch_paths};
use burn_align::paths::{Node, Path as Hops};
use burn_align_models::pretrained::LoadError;
use burn_align_models::{
    AlignableTransformer, Component, FromPretrained, LoadOptions, ModelInput, Pass, Pretrained,
    SavePretrained, Site, Tables, Tap, TokenBatch,
};
use serde_json::{Value, json};

use crate::engine::random_plans::random_plans_of;
use crate::loading::logits;
use crate::scratch::{Scratch, raw_tensors};
use crate::support::{fixtures, max_difference, message, read_tensors, tokens};

#[path = "../../examples/starcoder2/model.rs"]
mod starcoder2;

use starcoder2::{Starcoder2, Starcoder2Config};

on_every_backend!(
    logits_and_activations_are_those_of_transformers,
    random_plans_run_as_their_definition_says,
    heads_and_a_bias_sum_to_the_attention,
    a_head_mixes_what_it_reads,
    all_paths_together_are_the_source,
    saving_and_loading_changes_nothing,
    a_stored_head_must_be_the_embedding,
    what_is_not_computed_is_refused,
);

type Loaded<B> = Pretrained<Starcoder2<B>, Starcoder2Config>;

fn folder() -> PathBuf {
    fixtures().join("starcoder2")
}

fn try_load<B: Backend>(folder: &Path, device: &B::Device) -> Result<Loaded<B>, LoadError> {
    Starcoder2::from_pretrained(folder, &LoadOptions::default(), device)
}

fn load<B: Backend>(folder: &Path, device: &B::Device) -> Loaded<B> {
    try_load(folder, device).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// A copy of the fixture, to be changed.
fn copy() -> Scratch {
    let scratch = Scratch::empty();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder().join(name), scratch.file(name)).expect("a copy");
    }
    scratch
}

/// Keeps every activation, `[batch, head, pos, width]`.
struct Record<B: Backend>(BTreeMap<Site, Tensor<B, 4>>);

impl<B: Backend> Tap<B> for Record<B> {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let before = self.0.insert(site, activation.clone());
        assert!(before.is_none(), "{site} was reached twice");
        activation
    }
}

/// The site of a name in the fixture: `embedding`, `final_norm` or `<layer>.<component>`.
fn site(name: &str) -> Site {
    match name.split_once('.') {
        Some((layer, component)) => Site::Block(
            layer.parse().expect("a layer"),
            component.parse().expect("a component"),
        ),
        None if name == "embedding" => Site::Embedding,
        None => Site::FinalNorm,
    }
}

/// Heads are side by side in some expected activations, and apart in others.
fn difference<B: Backend>(found: Tensor<B, 4>, expected: &TensorData) -> f32 {
    match expected.shape.num_dims() {
        3 => {
            let [batch, head, pos, width] = found.dims();
            let merged = found.swap_dims(1, 2).reshape([batch, pos, head * width]);
            max_difference(merged, expected)
        }
        _ => max_difference(found, expected),
    }
}

fn logits_and_activations_are_those_of_transformers<B: Backend>(device: &B::Device) {
    let model = load::<B>(&folder(), device).model;
    let expected = read_tensors(&folder().join("expected.safetensors"));
    let prefix = "case2.act.";
    let (mut lengths, mut compared) = (Vec::new(), BTreeSet::new());
    for case in 0..4 {
        let ids = expected[&format!("case{case}.input_ids")].clone();
        let input = || ModelInput::Tokens(Tensor::<B, 2, Int>::from_data(ids.clone(), device));
        let logits = &expected[&format!("case{case}.logits")];
        let mut record = Record(BTreeMap::new());
        for found in [
            model.forward(input()),
            model.forward_tapped(input(), &mut record),
        ] {
            let difference = max_difference(found, logits);
            assert!(difference <= 1e-4, "case {case}: {difference}");
        }
        lengths.push(ids.shape[1]);
        if case != 2 {
            continue;
        }
        let activations = expected.iter();
        let activations =
            activations.filter_map(|(name, data)| Some((name.strip_prefix(prefix)?, data)));
        for (name, expected) in activations {
            let site = site(name);
            let found = record.0.remove(&site).expect("the site is reached");
            let difference = difference(found, expected);
            assert!(difference <= 1e-4, "{site}: {difference}");
            compared.insert(site);
        }
        assert!(record.0.is_empty(), "{:?}", record.0.keys());
    }
    assert_eq!(lengths, [1, 5, 9, 14], "three are longer than the window");
    let blocks = (0..2).flat_map(|layer| Component::ALL.map(|it| Site::Block(layer, it)));
    let all = [Site::Embedding, Site::FinalNorm].into_iter().chain(blocks);
    let all: BTreeSet<Site> = all.filter(|site| model.site(*site).is_some()).collect();
    assert_eq!(compared, all);
    assert_eq!(all.len(), 2 + 2 * 16);
}

/// With suffixes of rows, and with attention that leaves queries out: the generator counts both.
fn random_plans_run_as_their_definition_says<B: Backend>(device: &B::Device) {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|n| n.parse().ok()).unwrap_or(80);
    random_plans_of("starcoder2", &load::<B>(&folder(), device).model, cases);
}

/// Two inputs that are longer than the window.
fn inputs() -> [TokenBatch; 2] {
    [
        tokens(&[&[3, 1, 4, 1, 5, 9], &[2, 6, 5, 3, 5, 8]]),
        tokens(&[&[2, 7, 1, 8, 2, 8], &[31, 4, 15, 9, 26, 5]]),
    ]
}

fn heads_and_a_bias_sum_to_the_attention<B: Backend>(device: &B::Device) {
    let model = load::<B>(&folder(), device).model;
    let heads = model.by_head().expect("it has heads");
    let weights = read_tensors(&folder().join("model.safetensors"));
    let mut record = Record(BTreeMap::new());
    let input = ModelInput::Tokens(inputs()[0].to_tensor(device));
    model.forward_tapped(input, &mut record);
    for layer in 0..2 {
        let bias = weights[&format!("model.layers.{layer}.self_attn.o_proj.bias")].clone();
        let mut sum = Tensor::<B, 1>::from_data(bias, device).reshape([1, 1, 16]);
        let mixed = record.0[&Site::Block(layer, Component::AttentionValueOutput)].clone();
        for head in 0..4 {
            let own = mixed.clone().narrow(1, head, 1).squeeze_dim(1); // [batch, pos, d_head]
            sum = sum + heads.head_output(layer, head, own);
        }
        let output = record.0[&Site::Block(layer, Component::AttentionOutput)].clone();
        let difference = max_difference(sum, &output.squeeze_dim::<3>(1).into_data());
        assert!(difference <= 2e-5, "layer {layer}: {difference}");
    }
}

/// Queries, keys and values read the base or the source; the other way to say so is to swap the
/// attention's keys or values in from the source.
fn a_head_mixes_what_it_reads<B: Backend>(device: &B::Device) {
    let model = load::<B>(&folder(), device).model;
    let heads = model.by_head().expect("it has heads");
    let [base, source] = inputs();
    let pass = Pass::new(base.pos(), device, &Tables::new());
    for layer in 0..2 {
        for [keys, values] in [[0, 0], [1, 0], [0, 1], [1, 1]] {
            let site = |component| Site::Block(layer, component);
            let mut plan = Plan::new();
            let worlds = [&base, &source].map(|tokens| {
                let input = plan.tokens(tokens);
                (input, plan.world(input, []))
            });
            let [(input, _), (_, other)] = worlds;
            let edits = [
                (keys, Component::KeyOutput),
                (values, Component::ValueOutput),
            ];
            let edits = edits
                .into_iter()
                .filter(|(from_source, _)| *from_source == 1);
            let edits = edits.map(|(_, it)| Edit::from_world(other, site(it), Units::ALL, 0));
            let edited = plan.world(input, edits);
            let streams =
                worlds.map(|(_, world)| plan.read(world, site(Component::BlockInput), Units::ALL));
            let mixed = plan.read(edited, site(Component::AttentionValueOutput), Units::ALL);
            let results = plan.run(&model, &[VanillaIntervention]).expect("valid");
            let stream = |which: usize| results.get(streams[which]);
            for head in 0..4 {
                let read = [stream(0), stream(keys), stream(values)];
                let found = heads.head_mixed(layer, head, read, &pass);
                let expected = results.get(mixed).narrow(2, head * 4, 4).into_data();
                let difference = max_difference(found, &expected);
                assert!(difference <= 2e-5, "{layer}.{head}: {difference}");
            }
        }
    }
}

fn all_paths_together_are_the_source<B: Backend>(device: &B::Device) {
    let model = load::<B>(&folder(), device).model;
    let [base, source] = inputs();
    let others = Node::all(model.dims()).into_iter();
    let others = others.filter(|node| !matches!(node, Node::Attention { .. }));
    let one_by_one = Node::heads(model.dims()).into_iter().chain(others);
    let sets = [Vec::new(), one_by_one.map(Hops::new).collect()];
    let metric = |logits: Tensor<B, 2>| logit_differences(logits, &[5, 30], &[17, 2]);
    let options = RunOptions::default();
    let effects = patch_paths(&model, [&base, &source], &sets, metric, &options).expect("valid");
    assert!((effects.base - effects.source).abs() > 0.1, "{effects:?}");
    for (found, expected) in effects.patched.iter().zip([effects.base, effects.source]) {
        assert!((found - expected).abs() <= 5e-5, "{effects:?}");
    }
}

fn saving_and_loading_changes_nothing<B: Backend>(device: &B::Device) {
    let loaded = load::<B>(&folder(), device);
    let scratch = Scratch::empty();
    let saved = loaded
        .model
        .save_pretrained(&loaded.config, None, scratch.path());
    saved.expect("the model can be saved");
    let again = load::<B>(scratch.path(), device);
    assert_eq!(again.config, loaded.config);
    assert!(again.notes.is_empty(), "{:?}", again.notes);
    assert_eq!(logits(&again.model, device), logits(&loaded.model, device));
    let original = raw_tensors(&folder().join("model.safetensors"));
    assert!(scratch.tensors() == original, "tensors differ");
    let text = fs::read_to_string(scratch.file("config.json")).expect("written");
    let written: Value = serde_json::from_str(&text).expect("JSON");
    let text = fs::read_to_string(folder().join("config.json")).expect("the fixture");
    let original: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in written.as_object().expect("an object") {
        let expected = match key.as_str() {
            "head_dim" => json!(4), // the width of the model divided by the number of heads
            key => original[key].clone(),
        };
        assert_eq!(*value, expected, "{key}");
    }
}

fn a_stored_head_must_be_the_embedding<B: Backend>(device: &B::Device) {
    let scratch = copy();
    let head = |from: &str| {
        scratch.edit_tensors(|tensors| {
            tensors.insert("lm_head.weight".to_owned(), tensors[from].clone());
        });
        try_load::<B>(scratch.path(), device)
    };
    let same = head("model.embed_tokens.weight").expect("the embedding");
    let expected = logits(&load::<B>(&folder(), device).model, device);
    assert_eq!(logits(&same.model, device), expected);
    let error = head("model.layers.0.mlp.c_fc.weight").expect_err("another matrix");
    assert!(message(&error).contains("lm_head.weight"), "{error}");
}

fn what_is_not_computed_is_refused<B: Backend>(device: &B::Device) {
    for (changes, expected) in [
        (json!({"model_type": "llama"}), "`model_type` = \"llama\""),
        (json!({"use_bias": false}), "`use_bias` = false"),
        (json!({"hidden_act": "relu"}), "`hidden_act` = \"relu\""),
        (json!({"attn_twice": true}), "unknown `attn_twice` = true"),
        (
            json!({"num_key_value_heads": 3}),
            "a divisor of num_attention_heads = 4",
        ),
        (json!({"num_attention_heads": 3}), "a divisor of"),
        (json!({"head_dim": 5}), "an even number"),
        (json!({"norm_epsilon": null}), "norm_epsilon"),
        (json!({"intermediate_size": 25}), "c_fc"),
    ] {
        let scratch = copy();
        scratch.set_config(changes);
        let error = try_load::<B>(scratch.path(), device).expect_err("a checkpoint to refuse");
        let said = message(&error);
        assert!(said.contains(expected), "{expected:?} is not in: {said}");
    }
    // Keys of published files that change nothing.
    let scratch = copy();
    scratch.set_config(json!({"norm_type": "layer_norm", "layer_norm_epsilon": 0.1}));
    let found = logits(&load::<B>(scratch.path(), device).model, device);
    assert_eq!(found, logits(&load::<B>(&folder(), device).model, device));
}

/// The code of the guide's chapter, which is not compiled there.
#[test]
fn the_guide_shows_what_the_example_has() {
    let root = fixtures().join("../..");
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("text");
    let model = read("examples/starcoder2/model.rs");
    let chapter = read("burn-align/guide/10-adding-a-model.md");
    let blocks = chapter.split("```rust,ignore\n").skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() > 4, "{}", blocks.len());
    for block in blocks {
        assert!(model.contains(block), "the example has no\n{block}");
    }
}
