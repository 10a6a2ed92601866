//! Logits and activations against Hugging Face `transformers`
//! (`tests/fixtures/make_checkpoints.py`).

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Component, FromPretrained, LanguageModel, LoadOptions, ModelInput, Site,
    Tap, TokenBatch,
};

use crate::support::{checkpoints, max_difference, read_tensors, values};

on_every_backend!(
    logits_match_transformers,
    activations_match_pytorch_hooks,
    padding_changes_nothing,
    features_are_token_embeddings,
    fused_attention_is_the_same,
);

const TOLERANCE: f32 = 1e-4;

fn load<B: Backend>(folder: &std::path::Path, device: &B::Device) -> LanguageModel<B> {
    LanguageModel::from_pretrained(folder, &LoadOptions::default(), device)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .model
}

fn tokens<B: Backend>(ids: &TensorData, device: &B::Device) -> ModelInput<B> {
    ModelInput::Tokens(Tensor::<B, 2, Int>::from_data(ids.clone(), device))
}

fn logits_match_transformers<B: Backend>(device: &B::Device) {
    let mut compared = 0;
    let mut failures = Vec::new();
    for (name, folder) in checkpoints() {
        let model = load::<B>(&folder, device);
        let expected = read_tensors(&folder.join("expected.safetensors"));
        for case in (0..).map_while(|case| {
            expected
                .contains_key(&format!("case{case}.logits"))
                .then(|| format!("case{case}"))
        }) {
            let input = tokens(&expected[&format!("{case}.input_ids")], device);
            let logits = model.forward(input);
            let difference = max_difference(logits, &expected[&format!("{case}.logits")]);
            if difference.is_nan() || difference > TOLERANCE {
                failures.push(format!("{name} {case}: {difference}"));
            }
            compared += 1;
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(compared >= 99, "only {compared} cases found");
}

/// Keeps every activation.
struct Record<B: Backend> {
    seen: BTreeMap<Site, Tensor<B, 4>>,
}

impl<B: Backend> Tap<B> for Record<B> {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let before = self.seen.insert(site, activation.clone());
        assert!(before.is_none(), "{site} was reached twice");
        activation
    }
}

fn activations_match_pytorch_hooks<B: Backend>(device: &B::Device) {
    let checkpoints = checkpoints();
    for name in [
        "gpt2_plain",
        "llama_gqa",
        "llama_mqa_head_dim",
        "qwen2_plain",
    ] {
        let model = load::<B>(&checkpoints[name], device);
        let expected = read_tensors(&checkpoints[name].join("expected.safetensors"));
        let mut record = Record {
            seen: BTreeMap::new(),
        };
        model.forward_tapped(tokens(&expected["case2.input_ids"], device), &mut record);

        let mut compared = 0;
        for (key, expected) in &expected {
            let Some(place) = key.strip_prefix("case2.act.") else {
                continue;
            };
            let site = match place.split_once('.') {
                None if place == "embedding" => Site::Embedding,
                None => Site::FinalNorm,
                Some((layer, component)) => Site::Block(
                    layer.parse().expect("a layer"),
                    component.parse::<Component>().expect("a component"),
                ),
            };
            let found = record.seen[&site].clone();
            let [batch, head, pos, width] = found.dims();
            let difference = if expected.shape.num_dims() == 3 {
                let merged = found.swap_dims(1, 2).reshape([batch, pos, head * width]);
                max_difference(merged, expected)
            } else {
                max_difference(found, expected)
            };
            assert!(difference <= TOLERANCE, "{name} {site}: {difference}");
            compared += 1;
        }
        assert_eq!(
            compared,
            record.seen.len(),
            "{name}: sites without an expectation"
        );
        let sites = Component::ALL.map(|component| model.site(Site::Block(0, component)));
        let blocks = sites.iter().flatten().count() * model.dims().layers;
        assert_eq!(
            record.seen.len(),
            blocks + 2,
            "{name}: dims and taps disagree"
        );
    }
}

fn padding_changes_nothing<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa", "mistral_window"] {
        let model = load::<B>(&checkpoints()[name], device);
        let rows = vec![vec![3, 1, 4, 1, 5, 9, 2, 6], vec![5, 3], vec![5, 8, 9, 7]];
        let batch = TokenBatch::new(rows.clone()).expect("a batch");
        assert_eq!(batch.lengths(), [8, 2, 4]);
        let together = model.forward(ModelInput::Tokens(batch.to_tensor(device)));
        for (row, ids) in rows.into_iter().enumerate() {
            let pos = ids.len();
            let alone = TokenBatch::new(vec![ids]).expect("a batch");
            let alone = model.forward(ModelInput::Tokens(alone.to_tensor(device)));
            let padded = together.clone().narrow(0, row, 1).narrow(1, 0, pos);
            let difference = max_difference(padded, &alone.into_data());
            assert!(difference <= 2e-5, "{name} row {row}: {difference}");
        }
    }
}

fn features_are_token_embeddings<B: Backend>(device: &B::Device) {
    let model = load::<B>(&checkpoints()["gpt2_plain"], device);
    let LanguageModel::Gpt2(gpt2) = &model else {
        panic!("a GPT-2");
    };
    let ids = Tensor::<B, 2, Int>::from_data([[7, 2, 30]], device);
    let features = gpt2.wte.forward(ids.clone());
    let by_ids = model.forward(ModelInput::Tokens(ids));
    let by_features = model.forward(ModelInput::Features(features));
    assert_eq!(values(by_ids), values(by_features));
}

fn fused_attention_is_the_same<B: Backend>(device: &B::Device) {
    for (name, folder) in checkpoints() {
        let model = load::<B>(&folder, device);
        let ids = Tensor::<B, 2, Int>::from_data([[7, 2, 30, 11, 5], [1, 1, 40, 0, 9]], device);
        let plain = model.forward(ModelInput::Tokens(ids.clone()));
        let fused = model
            .with_fused_attention(true)
            .forward(ModelInput::Tokens(ids));
        let difference = max_difference(fused, &plain.into_data());
        assert!(difference <= 2e-5, "{name}: {difference}");
    }
}
