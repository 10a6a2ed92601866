//! Training dictionaries: against SAELens and PyTorch
//! (`tests/fixtures/make_dictionary_training.py`), on planted features, and on a model's
//! activations.

#[cfg(feature = "flex")]
mod planted;
#[cfg(feature = "flex")]
mod streamed;

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::dictionaries::{Dictionary, FeatureActivation};
use burn_align::training::RateSchedule;
use burn_align::training::dictionary::{
    DictionaryStep, DictionaryTrainer, DictionaryTrainingConfig, JumpReluSparsity, L0Penalty,
    Products, Sparsity, TopKSparsity,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{fixtures, max_difference, read_tensors, values};

on_every_backend!(
    steps_are_those_of_saelens_and_pytorch,
    products_of_active_features_are_those_of_all,
);

const CASES: [&str; 5] = [
    "top_k",
    "jump_relu",
    "jump_relu_target",
    "unit_top_k",
    "unit_jump_relu",
];
const STEPS: usize = 8;

/// The settings of a case, as in the script.
fn settings(case: &str, rows: usize, features: usize) -> DictionaryTrainingConfig {
    let jump = |coefficient| JumpReluSparsity::new(coefficient).with_bandwidth(0.5);
    let sparsity: Sparsity = match case {
        "top_k" => TopKSparsity::new(2).with_auxiliary(0.5).into(),
        "unit_top_k" => TopKSparsity::new(2).into(),
        "jump_relu" => jump(0.3).with_warm_up(4).with_dead_coefficient(0.05).into(),
        "jump_relu_target" => jump(0.1).with_penalty(L0Penalty::Target(3.0)).into(),
        _ => jump(0.3).with_warm_up(4).into(),
    };
    DictionaryTrainingConfig::new(features, sparsity, STEPS * rows)
        .with_batch_tokens(rows)
        .with_learning_rate(1e-2)
        .with_schedule(RateSchedule::WarmUpHoldDecay {
            warm_up: 3.0 / 8.0,
            decay: 2.0 / 8.0,
        })
        .with_unit_decoder(case.starts_with("unit"))
        .with_dead_after(1)
}

/// What the script wrote about a case.
struct Case<'a> {
    name: &'a str,
    tensors: &'a BTreeMap<String, TensorData>,
}

impl Case<'_> {
    fn data(&self, part: &str) -> &TensorData {
        let name = format!("{}.{part}", self.name);
        self.tensors.get(&name).unwrap_or_else(|| panic!("{name}"))
    }

    fn tensor<B: Backend, const D: usize>(&self, part: &str, device: &B::Device) -> Tensor<B, D> {
        Tensor::from_data(self.data(part).clone(), (device, DType::F32))
    }

    fn numbers(&self, part: &str) -> Vec<f32> {
        self.data(part).to_vec().expect("f32 values")
    }

    fn start<B: Backend>(&self, device: &B::Device) -> Dictionary<B> {
        let activation = match self.name.ends_with("top_k") {
            true => FeatureActivation::top_k(2),
            false => FeatureActivation::jump_relu(self.tensor("start.threshold", device)),
        };
        let of = |part: &str| self.tensor(&format!("start.{part}"), device);
        let biases = |part: &str| self.tensor(&format!("start.{part}"), device);
        let encoder = (of("W_enc"), biases("b_enc"));
        let decoder = (of("W_dec"), biases("b_dec"));
        let subtracts = !["jump_relu_target", "unit_jump_relu"].contains(&self.name);
        Dictionary::new(encoder, activation, decoder)
            .and_then(|it| it.with_subtracted_bias(subtracts))
            .expect("it fits")
    }

    /// Checks a dictionary after the last step.
    fn check_end<B: Backend>(&self, found: &Dictionary<B>) {
        let weights = [
            ("W_enc", found.encoder.val()),
            ("W_dec", found.decoder.val()),
        ];
        let mut vectors = vec![
            ("b_enc", found.encoder_bias.val()),
            ("b_dec", found.decoder_bias.val()),
        ];
        if let FeatureActivation::JumpRelu(it) = &found.activation {
            vectors.push(("threshold", it.threshold.val()));
        }
        let weights =
            weights.map(|(part, it)| (part, max_difference(it, self.data(&format!("end.{part}")))));
        let vectors = vectors
            .into_iter()
            .map(|(part, it)| (part, max_difference(it, self.data(&format!("end.{part}")))));
        for (part, difference) in weights.into_iter().chain(vectors) {
            assert!(difference <= 1e-4, "{} {part}: {difference}", self.name);
        }
    }
}

fn steps_are_those_of_saelens_and_pytorch<B: Backend>(device: &B::Device) {
    let tensors = read_tensors(&fixtures().join("dictionary_training.safetensors"));
    for name in CASES {
        let case = Case {
            name,
            tensors: &tensors,
        };
        let x: Tensor<B, 3> = case.tensor("x", device);
        let [steps, rows, width] = x.dims();
        assert_eq!(steps, STEPS);
        let expected = ["loss", "error", "dead", "rate"].map(|part| case.numbers(part));
        for products in [Products::Sparse, Products::Dense] {
            let start = case.start::<B>(device);
            let config = settings(name, rows, start.features()).with_products(products);
            let mut trainer = DictionaryTrainer::from_dictionary(&start, &config).expect("it fits");
            for step in 0..steps {
                let batch = x.clone().narrow(0, step, 1).reshape([rows, width]);
                let found = trainer.step(batch).expect("finite");
                let numbers = [
                    found.loss,
                    found.error,
                    found.dead as f64,
                    found.learning_rate,
                ];
                for (found, expected) in numbers.into_iter().zip(&expected) {
                    let expected = f64::from(expected[step]);
                    let close = (found - expected).abs() <= 1e-4 * expected.abs();
                    assert!(close, "{name}, step {step}: {found}, not {expected}");
                }
            }
            case.check_end(&trainer.dictionary().expect("it fits"));
        }
    }
}

/// With so many features that the active ones are few, and some values in the estimator's window.
fn products_of_active_features_are_those_of_all<B: Backend>(device: &B::Device) {
    const WIDTH: usize = 12;
    const FEATURES: usize = 300;
    let jump = JumpReluSparsity::new(0.02)
        .with_bandwidth(0.4)
        .with_threshold(2.2)
        .with_dead_coefficient(1e-3);
    let target = jump.clone().with_penalty(L0Penalty::Target(5.0));
    let sparsities: [Sparsity; 3] = [TopKSparsity::new(6).into(), jump.into(), target.into()];
    for sparsity in sparsities {
        let run = |products| {
            let config = DictionaryTrainingConfig::new(FEATURES, sparsity.clone(), 6 * 64)
                .with_batch_tokens(64)
                .with_learning_rate(1e-3)
                .with_dead_after(2)
                .with_resampling(4)
                .with_products(products)
                .with_seed(3);
            let mut trainer = DictionaryTrainer::<B>::new(WIDTH, &config, device).expect("it fits");
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let steps = (0..6).map(|_| {
                let numbers = noise(&mut rng, 64 * WIDTH);
                trainer
                    .step(tensor(numbers, WIDTH, device))
                    .expect("finite")
            });
            let steps: Vec<DictionaryStep> = steps.collect();
            (steps, trainer.dictionary().expect("it fits"))
        };
        let (sparse, few) = run(Products::Sparse);
        let (dense, all) = run(Products::Dense);
        for (a, b) in sparse.iter().zip(&dense) {
            assert!(a.l0 > 0.0 && a.l0 < FEATURES as f64 / 16.0, "{}", a.l0);
            assert!(
                (a.loss - b.loss).abs() <= 1e-4 * b.loss.abs(),
                "{a:?} {b:?}"
            );
            assert_eq!(a.dead, b.dead);
        }
        assert!(dense[3].dead > 0, "{dense:?}");
        let both = [&few, &all].map(|it| values(it.decoder.val()));
        for (a, b) in both[0].iter().zip(&both[1]) {
            assert!((a - b).abs() <= 1e-4, "{a} {b}");
        }
        let both = [&few, &all].map(|it| values(it.encoder.val()));
        for (a, b) in both[0].iter().zip(&both[1]) {
            assert!((a - b).abs() <= 1e-4, "{a} {b}");
        }
    }
}

/// Numbers with about the variance 1.
fn noise(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.7..1.7)).collect()
}

fn tensor<B: Backend>(numbers: Vec<f32>, width: usize, device: &B::Device) -> Tensor<B, 2> {
    let rows = numbers.len() / width;
    Tensor::from_data(
        TensorData::new(numbers, [rows, width]),
        (device, DType::F32),
    )
}
