//! The results of evaluations, compared with the logits themselves.

use burn::backend::Flex;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::front::{AlignableInputs, InterventionType};
use burn_align::training::{
    Evaluation, InterchangeData, InterchangeExample, Mean, TrainingError, evaluate,
    evaluate_with_controls,
};
use burn_align_models::{AlignableTransformer, TokensError};
use burn_dataset::Dataset;
use burn_dataset::transform::{MapperDataset, PartialDataset};

use crate::support::{message, values};
use crate::training::{data, model};

on_every_backend!(
    evaluations_are_what_the_logits_say,
    without_a_swap_nothing_moves,
    datasets_of_burn_become_interchanges,
);

const Z: f64 = 1.959_964;

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-4
}

/// Mean and interval, by their definitions.
fn assert_mean(found: Mean, values: &[f64]) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    let interval = found.interval.expect("several examples");
    assert_eq!(found.examples, values.len());
    assert!(close(found.mean, mean), "{found:?}, not {mean}");
    assert!(
        close(interval[0], mean - half) && close(interval[1], mean + half),
        "{interval:?}, not {mean} ± {half}"
    );
}

/// The logits at the last position of each example.
fn last<B: Backend>(logits: Tensor<B, 3>, lengths: &[usize]) -> Vec<Vec<f64>> {
    let [_batch, pos, vocab] = logits.dims();
    let all = values(logits);
    let rows = lengths.iter().enumerate();
    rows.map(|(row, length)| {
        let start = (row * pos + length - 1) * vocab;
        all[start..start + vocab]
            .iter()
            .map(|it| f64::from(*it))
            .collect()
    })
    .collect()
}

fn largest(logits: &[f64]) -> usize {
    let pairs = logits.iter().enumerate();
    pairs.max_by(|a, b| a.1.total_cmp(b.1)).expect("classes").0
}

fn log_probabilities(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|it| it.exp()).sum();
    logits.iter().map(|it| it - sum.ln()).collect()
}

fn evaluations_are_what_the_logits_say<B: Backend>(device: &B::Device) {
    let rotated = model::<B>(InterventionType::LowRankRotatedSpace, device);
    let mut data = data::<B>(20, device);
    let lengths = data.inputs.base.lengths();
    let inputs = data.inputs.clone().with_original_output();
    let output = rotated.forward_inputs(&inputs).expect("valid");
    let (clean, changed) = (
        last(output.original.expect("asked for"), &lengths),
        last(output.counterfactual, &lengths),
    );
    // For some examples the label is what the model predicts anyway.
    for example in (0..20).step_by(6) {
        data.labels[example] = vec![largest(&clean[example]) as u32];
    }
    let (mut right, mut differences, mut divergences) = (0, Vec::new(), Vec::new());
    for (example, (clean, changed)) in clean.iter().zip(&changed).enumerate() {
        let (label, before) = (data.labels[example][0] as usize, largest(clean));
        right += usize::from(largest(changed) == label);
        if label != before {
            differences.push(changed[label] - changed[before]);
        }
        let (p, q) = (log_probabilities(clean), log_probabilities(changed));
        let terms = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q));
        divergences.push(terms.sum::<f64>());
    }
    assert!(
        differences.len() <= 16,
        "labels that are predicted anyway are left out"
    );
    // In batches of any size.
    for batch_size in [20, 7, 1] {
        let found = evaluate(&rotated, std::slice::from_ref(&data), batch_size).expect("valid");
        assert_eq!(found.accuracy, right as f64 / 20.0);
        assert_mean(
            found.logit_difference.expect("there are some"),
            &differences,
        );
        assert_mean(found.kl_divergence, &divergences);
    }
}

fn without_a_swap_nothing_moves<B: Backend>(device: &B::Device) {
    let rotated = model::<B>(InterventionType::LowRankRotatedSpace, device);
    let data = [data::<B>(20, device)];
    let controls = evaluate_with_controls(&rotated, &data, 8, 5).expect("valid");
    let none = controls.no_swap;
    assert_eq!(none.kl_divergence.mean, 0.0);
    // No class has a larger logit than the one that is predicted.
    assert!(none.logit_difference.expect("labels differ").mean < 0.0);
    assert!(controls.whole_vector.kl_divergence.mean > 0.0);
    // The labels are the predictions under a swap of the whole vector.
    assert!(
        controls
            .whole_vector
            .logit_difference
            .expect("labels differ")
            .mean
            > 0.0
    );
    let json = serde_json::to_string(&controls).expect("JSON");
    let read: burn_align::training::Controlled = serde_json::from_str(&json).expect("the same");
    assert_eq!(read, controls);
}

#[test]
fn labels_that_are_predicted_anyway_have_no_difference() {
    let device = Default::default();
    let swapped = model::<Flex>(InterventionType::Vanilla, &device);
    let mut data = data::<Flex>(1, &device);
    let inputs = data.inputs.clone().with_original_output();
    let clean = swapped.forward_inputs(&inputs).expect("valid").original;
    let clean = last(clean.expect("asked for"), &data.inputs.base.lengths());
    data.labels = vec![vec![largest(&clean[0]) as u32]];
    let found = evaluate(&swapped, &[data], 4).expect("valid");
    assert_eq!(found.logit_difference, None);
    // The error of a mean of one value is unknown.
    assert_eq!(found.kl_divergence.interval, None);
    let json = serde_json::to_string(&found).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Evaluation>(&json).expect("the same"),
        found
    );
}

/// A user's own examples, for instance numbers that represent prompts.
struct Numbers(usize);

impl Dataset<usize> for Numbers {
    fn get(&self, index: usize) -> Option<usize> {
        (index < self.0).then_some(index)
    }

    fn len(&self) -> usize {
        self.0
    }
}

fn example(number: usize) -> InterchangeExample {
    let ids = |salt: usize| {
        (0..4)
            .map(|pos| ((number * 7 + pos * salt) % 41) as u32)
            .collect()
    };
    InterchangeExample {
        base: ids(3),
        sources: vec![ids(5)],
        label: (number % 41) as u32,
    }
}

fn datasets_of_burn_become_interchanges<B: Backend>(device: &B::Device) {
    struct Interchange;
    impl burn_dataset::transform::Mapper<usize, InterchangeExample> for Interchange {
        fn map(&self, number: &usize) -> InterchangeExample {
            example(*number)
        }
    }
    let part = PartialDataset::new(Numbers(50), 10, 30);
    let dataset = MapperDataset::new(part, Interchange);
    let data = InterchangeData::<B>::from_examples(dataset.iter()).expect("examples");
    let data = data.with_locations(3);
    assert_eq!((data.len(), &data.labels[0][..]), (20, &[10][..]));
    let swapped = model::<B>(InterventionType::Vanilla, device);
    let found = evaluate(&swapped, std::slice::from_ref(&data), 8).expect("valid");
    // The same, assembled by hand.
    let batch = |of: &dyn Fn(InterchangeExample) -> Vec<u32>| {
        let rows = (10..30).map(|number| of(example(number))).collect();
        burn_align_models::TokenBatch::new(rows).expect("a batch")
    };
    let inputs = AlignableInputs::new(batch(&|it| it.base))
        .with_sources([batch(&|mut it| it.sources.remove(0))])
        .with_locations(3);
    let by_hand = InterchangeData::new(inputs, (10..30).map(|number| number % 41));
    assert_eq!(evaluate(&swapped, &[by_hand], 8).expect("valid"), found);
    assert!(swapped.model().dims().vocab >= 41);
}

#[test]
fn examples_that_cannot_be_put_together() {
    let refused = |examples: Vec<InterchangeExample>| {
        InterchangeData::<Flex>::from_examples(examples).expect_err("refused")
    };
    let mut more = example(1);
    more.sources.push(vec![1]);
    assert_eq!(
        message(&refused(vec![example(0), more])),
        "example 1: expected 1 sources, as the first one has, found 2"
    );
    let mut empty = example(1);
    empty.base.clear();
    let expected = TokensError::EmptyExample { example: 1 };
    assert_eq!(
        refused(vec![example(0), empty]),
        TrainingError::Tokens(expected)
    );
    let expected = TokensError::EmptyBatch;
    assert_eq!(refused(Vec::new()), TrainingError::Tokens(expected));
}
