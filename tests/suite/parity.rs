//! Logits and activations against Hugging Face `transformers`
//! (`tests/fixtures/make_checkpoints.py`).

use std::collections::BTreeSet;

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, ModelInput, Site, Tap,
    TokenBatch,
};

use clap::ValueEnum;
use workbench::backends::DTypeChoice;
use workbench::parity;

use crate::support::{checkpoints, max_difference, values};

on_every_backend!(
    all_dtypes_match_transformers,
    dims_and_taps_agree,
    padding_changes_nothing,
    features_are_token_embeddings,
    fused_attention_is_the_same,
);

fn load<B: Backend>(folder: &std::path::Path, device: &B::Device) -> Decoder<B> {
    Decoder::from_pretrained(folder, &LoadOptions::default(), device)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .model
}

/// In every dtype that the backend supports.
fn all_dtypes_match_transformers<B: Backend>(device: &B::Device) {
    let all = DTypeChoice::value_variants().iter();
    for dtype in all.filter(|dtype| B::supports_dtype(device, dtype.dtype())) {
        let found = parity::measure::<B>(dtype.dtype(), device).expect("it can be compared");
        assert!(found.logits.len() >= 99, "{}", found.logits.len());
        assert!(
            found.activations.len() >= 120,
            "{}",
            found.activations.len()
        );
        let tolerance = parity::tolerance(*dtype);
        let all = found.logits.iter().chain(&found.activations);
        let failures: Vec<_> = all.filter(|it| !it.is_within(tolerance)).collect();
        assert!(failures.is_empty(), "{dtype}: {failures:#?}");
    }
}

/// Records the visited sites.
struct Visited(BTreeSet<Site>);

impl<B: Backend> Tap<B> for Visited {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        self.0.insert(site);
        activation
    }
}

fn dims_and_taps_agree<B: Backend>(device: &B::Device) {
    for (name, folder) in checkpoints() {
        let model = load::<B>(&folder, device);
        let mut visited = Visited(BTreeSet::new());
        let ids = Tensor::<B, 2, Int>::from_data([[7, 2, 30]], device);
        model.forward_tapped(ModelInput::Tokens(ids), &mut visited);
        let blocks = (0..model.dims().layers)
            .flat_map(|layer| Component::ALL.map(|component| Site::Block(layer, component)));
        let expected: BTreeSet<Site> = [Site::Embedding, Site::FinalNorm]
            .into_iter()
            .chain(blocks)
            .filter(|site| model.site(*site).is_some())
            .collect();
        assert_eq!(visited.0, expected, "{name}");
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
    let ids = Tensor::<B, 2, Int>::from_data([[7, 2, 30]], device);
    let features = model.embedding.forward(ids.clone());
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
