//! MIB's causal-variable track: tasks, scores and submissions, against its own code
//! (`tests/fixtures/make_causal_variables.py`).

mod files;
mod scores;
mod tasks;

use std::path::PathBuf;

use burn::tensor::backend::Backend;
use burn_align::methods::causal_variables::{VariableTask, tasks as track};
use burn_align_models::{Decoder, FromPretrained, LoadOptions, Tokenizer};
use serde_json::Value;

use crate::support::fixtures;

fn folder() -> PathBuf {
    fixtures().join("causal_variables")
}

fn expected() -> Value {
    let text = std::fs::read_to_string(folder().join("expected.json")).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn capitals_model<B: Backend>(device: &B::Device) -> (Decoder<B>, Tokenizer) {
    let options = LoadOptions::default();
    let loaded = Decoder::from_pretrained("bundled:capitals", &options, device);
    let loaded = loaded.expect("the bundled model");
    let tokenizer = loaded.tokenizer().expect("its tokenizer").clone();
    (loaded.model, tokenizer)
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list").iter();
    list.map(|it| it.as_f64().expect("a number")).collect()
}

fn names_task() -> VariableTask {
    track::indirect_objects().expect("a task")
}
