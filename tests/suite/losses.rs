//! Losses, against their formulas.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_align::training::{Targets, losses};

use crate::support::values;

on_every_backend!(
    cross_entropy_is_minus_the_log_probability,
    logit_differences_are_of_two_classes,
    divergences_are_from_what_is_wanted,
    squared_errors_are_averaged,
);

const BATCH: usize = 2;
const UNITS: usize = 3;
const CLASSES: usize = 4;
const LABELS: [[usize; UNITS]; BATCH] = [[0, 3, 1], [2, 2, 0]];

/// `[batch][unit][class]`, of no particular values.
fn numbers(salt: f64) -> Vec<Vec<Vec<f64>>> {
    let number = |i: usize| (salt + 1.7 * i as f64).sin() * 2.0;
    let index = |row, unit, class| (row * UNITS + unit) * CLASSES + class;
    let unit = |row, unit| {
        (0..CLASSES)
            .map(|class| number(index(row, unit, class)))
            .collect()
    };
    (0..BATCH)
        .map(|row| (0..UNITS).map(|it| unit(row, it)).collect())
        .collect()
}

fn tensor<B: Backend>(numbers: &[Vec<Vec<f64>>], device: &B::Device) -> Tensor<B, 3> {
    let flat: Vec<f32> = numbers
        .iter()
        .flatten()
        .flatten()
        .map(|it| *it as f32)
        .collect();
    Tensor::from_data(TensorData::new(flat, [BATCH, UNITS, CLASSES]), device)
}

fn classes<B: Backend>(classes: [[usize; UNITS]; BATCH], device: &B::Device) -> Tensor<B, 2, Int> {
    let flat: Vec<i64> = classes.iter().flatten().map(|it| *it as i64).collect();
    Tensor::from_data(TensorData::new(flat, [BATCH, UNITS]), device)
}

/// Either all positions count, or two of the first example and all of the second.
fn targets<B: Backend>(padded: bool, device: &B::Device) -> Targets<B> {
    let weights = TensorData::from([[1.0_f32, 1.0, 0.0], [1.0, 1.0, 1.0]]);
    Targets {
        examples: (0, vec![0, 1]),
        labels: classes(LABELS, device),
        weights: padded.then(|| Tensor::from_data(weights, device)),
    }
}

/// The mean of a function of example and position over those that count.
fn mean(padded: bool, f: impl Fn(usize, usize) -> f64) -> f64 {
    let all = (0..BATCH).flat_map(|row| (0..UNITS).map(move |unit| (row, unit)));
    let counted: Vec<f64> = all
        .filter(|place| !padded || *place != (0, 2))
        .map(|(row, unit)| f(row, unit))
        .collect();
    counted.iter().sum::<f64>() / counted.len() as f64
}

fn probabilities(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|it| it.exp()).sum();
    logits.iter().map(|it| it.exp() / sum).collect()
}

fn assert_close<B: Backend>(found: Tensor<B, 1>, expected: f64) {
    let found = f64::from(values(found)[0]);
    assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
}

fn cross_entropy_is_minus_the_log_probability<B: Backend>(device: &B::Device) {
    let logits = numbers(0.3);
    for padded in [false, true] {
        let found = losses::cross_entropy(tensor(&logits, device), &targets::<B>(padded, device));
        let expected = mean(padded, |row, unit| {
            -probabilities(&logits[row][unit])[LABELS[row][unit]].ln()
        });
        assert_close(found, expected);
    }
}

fn logit_differences_are_of_two_classes<B: Backend>(device: &B::Device) {
    let logits = numbers(0.9);
    let others = [[1, 1, 2], [0, 3, 1]];
    for padded in [false, true] {
        let found = losses::logit_difference(
            tensor(&logits, device),
            &targets::<B>(padded, device),
            classes(others, device),
        );
        let expected = mean(padded, |row, unit| {
            logits[row][unit][others[row][unit]] - logits[row][unit][LABELS[row][unit]]
        });
        assert_close(found, expected);
    }
}

fn divergences_are_from_what_is_wanted<B: Backend>(device: &B::Device) {
    let (logits, wanted) = (numbers(0.1), numbers(2.2));
    let found = losses::kl_divergence::<B>(tensor(&logits, device), tensor(&wanted, device));
    let expected = mean(false, |row, unit| {
        let (p, q) = (
            probabilities(&wanted[row][unit]),
            probabilities(&logits[row][unit]),
        );
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
    });
    assert_close(found, expected);
    let same = losses::kl_divergence::<B>(tensor(&logits, device), tensor(&logits, device));
    assert_close(same, 0.0);
}

fn squared_errors_are_averaged<B: Backend>(device: &B::Device) {
    let (outputs, wanted) = (numbers(0.5), numbers(1.1));
    let found = losses::mean_squared_error::<B>(tensor(&outputs, device), tensor(&wanted, device));
    let expected = mean(false, |row, unit| {
        let pairs = outputs[row][unit].iter().zip(&wanted[row][unit]);
        pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>() / CLASSES as f64
    });
    assert_close(found, expected);
}
