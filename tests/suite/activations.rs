//! Activation functions against Hugging Face `transformers` (`make_activations.py`).

use std::collections::BTreeMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::Activation;

use crate::support::{fixtures, values};

on_every_backend!(activation_functions_match_transformers);

fn activation_functions_match_transformers<B: Backend>(device: &B::Device) {
    let json = std::fs::read_to_string(fixtures().join("activations.json")).expect("the fixture");
    let functions: BTreeMap<String, Vec<f32>> = serde_json::from_str(&json).expect("JSON");
    let x = Tensor::<B, 1>::from_floats(functions["x"].as_slice(), device);
    assert_eq!(functions.len(), 21, "x and 20 functions");
    for (name, expected) in functions.iter().filter(|(name, _)| *name != "x") {
        let activation: Activation = name.parse().expect("a known activation function");
        for (i, (found, expected)) in values(activation.forward(x.clone()))
            .iter()
            .zip(expected)
            .enumerate()
        {
            let tolerance = 2e-5 * expected.abs().max(1.0);
            assert!(
                (found - expected).abs() <= tolerance,
                "{name}({}): expected {expected}, found {found}",
                functions["x"][i]
            );
        }
    }
}
