//! The front against an oracle of plain PyTorch hooks (`tests/fixtures/make_interventions.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::backend::Backend;
use burn_align_models::{Decoder, FromPretrained, LoadOptions, ModelSource};
use workbench::requests::{Model, Request};

use crate::support::{fixtures, max_difference, read_tensors};

on_every_backend!(requests_match_pytorch_hooks);

const TOLERANCE: f32 = 2e-4;

fn requests_match_pytorch_hooks<B: Backend>(device: &B::Device) {
    let folder = fixtures().join("interventions");
    let expected = read_tensors(&folder.join("expected.safetensors"));
    let mut models: BTreeMap<String, Model<B>> = BTreeMap::new();
    let (mut served, mut compared) = (0, 0);
    let mut failures = Vec::new();
    for file in requests() {
        let name = file.file_stem().expect("a name").to_str().expect("ASCII");
        let json = std::fs::read_to_string(&file).expect("the request");
        let request = Request::parse(&json).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let source = request.model(&folder);
        let model = models
            .entry(format!("{source:?}"))
            .or_insert_with(|| load(source, device));
        let answer = match request.answer(&folder, model, device) {
            Ok(answer) => answer,
            Err(error) => {
                failures.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        served += 1;
        for (tensor, found) in answer.tensors {
            let difference = max_difference(found, &expected[&format!("{name}.{tensor}")]);
            if difference.is_nan() || difference > TOLERANCE {
                failures.push(format!("{name}.{tensor}: {difference}"));
            }
            compared += 1;
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(served >= 227, "only {served} requests");
    assert_eq!(
        compared,
        expected.len(),
        "some expected tensors were not compared"
    );
}

fn requests() -> impl Iterator<Item = PathBuf> {
    let entries = fixtures().join("interventions").read_dir();
    let files = entries
        .expect("the fixtures")
        .map(|entry| entry.expect("readable").path());
    files.filter(|file| {
        file.extension()
            .is_some_and(|extension| extension == "json")
    })
}

fn load<B: Backend>(source: ModelSource, device: &B::Device) -> Model<B> {
    Decoder::from_pretrained(source, &LoadOptions::default(), device).expect("a fixture")
}
