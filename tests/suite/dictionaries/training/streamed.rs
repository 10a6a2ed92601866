//! Dictionaries of a model's activations: streamed, interrupted and resumed, measured, read.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use burn_align::dictionaries::{Dictionary, FeatureActivation};
use burn_align::engine::{Plan, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    DictionaryTextError, DictionaryTextOptions, evaluate_dictionary, top_activations,
};
use burn_align::training::dictionary::{
    DictionaryHistory, DictionaryTrainingConfig, DictionaryTrainingError, DictionaryTrainingEvent,
    JumpReluSparsity, Sparsity, train_dictionary,
};
use burn_align::training::{CheckpointInterval, Checkpoints, TrainingError};
use burn_align_models::{Component, Decoder, Site, TokenBatch};

use crate::support::{load, message, tokens, values};

type B = Flex;

const SITE: Site = Site::Block(0, Component::BlockOutput);
/// The width of the model's residual stream.
const WIDTH: usize = 16;

fn model() -> Decoder<B> {
    load("gpt2_plain", &Default::default())
}

/// Examples of 3 to 7 tokens, in two batches.
fn text() -> [TokenBatch; 2] {
    [0, 20].map(|first| {
        let ids = (first..first + 20).map(|example: usize| {
            let id = |pos: usize| ((example * 17 + pos * 29 + example * pos) % 41) as u32;
            (0..3 + example % 5).map(id).collect()
        });
        TokenBatch::new(ids.collect()).expect("a batch")
    })
}

/// 4 passes over the 160 tokens after the first of each example, in parts of about 50.
fn config() -> DictionaryTrainingConfig {
    DictionaryTrainingConfig::new(48, Sparsity::top_k(3), 640)
        .with_batch_tokens(32)
        .with_buffer_tokens(50)
        .with_examples_at_once(7)
        .with_learning_rate(1e-2)
        .with_dead_after(3)
        .with_resampling(6)
        .with_seed(5)
}

/// All numbers of a dictionary to the bit, and its history.
type Outcome = (Vec<u32>, DictionaryHistory);

fn run(
    config: &DictionaryTrainingConfig,
    observe: impl FnMut(DictionaryTrainingEvent<'_>),
) -> Result<Outcome, DictionaryTrainingError> {
    let found = train_dictionary(&model(), &text(), SITE, config, observe)?;
    let it = &found.dictionary;
    let mut numbers = values(it.encoder.val());
    numbers.extend(values(it.encoder_bias.val()));
    numbers.extend(values(it.decoder.val()));
    numbers.extend(values(it.decoder_bias.val()));
    if let FeatureActivation::JumpRelu(it) = &it.activation {
        numbers.extend(values(it.threshold.val()));
    }
    let bits = numbers.into_iter().map(f32::to_bits).collect();
    Ok((bits, found.history))
}

#[test]
fn a_model_is_reconstructed_better_and_better() {
    let mut parts = Vec::new();
    let found = train_dictionary(&model(), &text(), SITE, &config(), |event| {
        if let DictionaryTrainingEvent::Activations { tokens } = event {
            parts.push(tokens);
        }
    })
    .expect("trained");
    let steps = &found.history.steps;
    assert_eq!(steps.len(), 20);
    assert!(steps.iter().all(|step| step.l0 <= 3.0));
    assert!(steps[19].explained_variance > steps[0].explained_variance);
    // Every token once in each pass, in parts that fit the buffer.
    assert_eq!(parts.iter().sum::<usize>(), 640);
    assert!(parts.iter().all(|part| *part <= 50), "{parts:?}");
    assert!(found.scale > 0.0 && found.scale != 1.0);
    assert_eq!(found.info.input.map(|hook| hook.site), Some(Some(SITE)));

    // The factor is part of the weights: on activations as they are, the error is that of training,
    // in their own scale.
    let options = DictionaryTextOptions::default();
    let quality = evaluate_dictionary(&model(), &found.dictionary, &text(), SITE, &options);
    let quality = quality.expect("it fits");
    let last = &steps[15..];
    let mean = last.iter().map(|step| step.error).sum::<f64>() / 5.0;
    let error = quality.error * found.scale * found.scale;
    assert!(
        (error / mean - 1.0).abs() < 0.4,
        "{error}, in training {mean}"
    );
    assert_eq!(quality.tokens, 160);
    assert!((quality.l0 - steps[19].l0).abs() < 0.5);
    let active: f64 = quality.densities.iter().sum();
    assert!((active - quality.l0).abs() < 1e-9);
}

#[test]
fn examples_at_once_change_no_more_than_rounding() {
    let (weights, one) = run(&config(), |_| {}).expect("trained");
    let (_, other) = run(&config().with_examples_at_once(40), |_| {}).expect("trained");
    for (a, b) in one.steps.iter().zip(&other.steps).take(3) {
        assert!((a.loss - b.loss).abs() <= 1e-4 * b.loss, "{a:?} {b:?}");
    }
    let (again, history) = run(&config(), |_| {}).expect("trained");
    assert_eq!((&again, &history), (&weights, &one));
    let (seeded, _) = run(&config().with_seed(6), |_| {}).expect("trained");
    assert_ne!(weights, seeded);
}

fn saved_in(config: DictionaryTrainingConfig, folder: &Path) -> DictionaryTrainingConfig {
    let checkpoints = Checkpoints::new(folder).with_every(CheckpointInterval::Steps(3));
    config.with_checkpoints(checkpoints)
}

#[test]
fn an_interrupted_run_ends_with_the_same_dictionary() {
    let jump = JumpReluSparsity::new(0.01)
        .with_dead_coefficient(1e-3)
        .with_warm_up(5);
    let jump = DictionaryTrainingConfig::new(48, jump, 640)
        .with_batch_tokens(32)
        .with_buffer_tokens(50)
        .with_learning_rate(1e-2)
        .with_dead_after(3);
    for config in [config(), jump] {
        let whole = run(&config, |_| {}).expect("trained");
        let folder = tempfile::tempdir().expect("a folder");
        let saved = saved_in(config, folder.path());
        for cut in [4, 11] {
            let cut_off = catch_unwind(AssertUnwindSafe(|| {
                run(&saved, |event| {
                    let is_there =
                        matches!(event, DictionaryTrainingEvent::Step(it) if it.step == cut);
                    assert!(!is_there, "interrupted");
                })
            }));
            assert!(cut_off.is_err());
        }
        let (mut resumed, mut first) = (None, None);
        let found = run(&saved, |event| match event {
            DictionaryTrainingEvent::Resumed(history) => {
                resumed = Some(history.steps.len());
                assert_eq!(history.steps[..], whole.1.steps[..history.steps.len()]);
            }
            DictionaryTrainingEvent::Step(step) => {
                first.get_or_insert(step.step);
            }
            _ => {}
        });
        assert_eq!(found.expect("trained"), whole);
        assert_eq!((resumed, first), (Some(9), Some(9)));
        // A finished run is not run again.
        let again = run(&saved, |event| {
            let is_read = matches!(event, DictionaryTrainingEvent::Resumed(_));
            assert!(is_read, "{event:?}");
        });
        assert_eq!(again.expect("read"), whole);
    }
}

#[test]
fn checkpoints_of_other_runs_and_damaged_ones_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let saved = saved_in(config(), folder.path());
    run(&saved, |_| {}).expect("trained");
    let file = folder.path().join("dictionary.safetensors");
    let right = fs::read(&file).expect("written");
    for (other, expected) in [
        (saved.clone().with_seed(6), "config.seed"),
        (
            saved.clone().with_learning_rate(1e-3),
            "config.learning_rate",
        ),
    ] {
        match run(&other, |_| {}).expect_err("refused") {
            DictionaryTrainingError::Checkpoint(TrainingError::OtherRun { what, .. }) => {
                assert_eq!(what, expected);
            }
            error => panic!("{error}"),
        }
    }
    let shorter = &text()[..1];
    let error = train_dictionary(&model(), shorter, SITE, &saved, |_| {}).expect_err("refused");
    assert!(message(&error).contains("another run: text: "), "{error}");
    // Neither what is computed at once nor the interval is part of the run.
    run(&saved.clone().with_examples_at_once(3), |_| {}).expect("read");
    assert_eq!(fs::read(&file).expect("still there"), right);

    let text = |from: &str, to: &str| {
        let found = right
            .windows(from.len())
            .position(|it| it == from.as_bytes());
        let mut bytes = right.clone();
        bytes[found.expect("it is there")..][..from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, expected) in [
        (right[..right.len() - 1].to_vec(), ""),
        (Vec::new(), ""),
        (
            text("\"encoder.moment_1\"", "\"encoder.moment_7\""),
            "encoder.moment_1: expected a tensor of F32 and shape [48, 16], found none",
        ),
        (
            text("\\\"done\\\":20", "\\\"done\\\":19"),
            "history: expected a tensor of F64 and shape [19, 6], found F64 and [20, 6]",
        ),
    ] {
        fs::write(&file, &bytes).expect("written");
        match run(&saved, |_| {}).expect_err("refused") {
            DictionaryTrainingError::Checkpoint(TrainingError::CheckpointDamaged {
                reason,
                ..
            }) => assert!(reason.contains(expected), "{reason}"),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn what_has_no_activations_is_an_error() {
    let model = model();
    let refused = |batches: &[TokenBatch], site, config: &DictionaryTrainingConfig| {
        train_dictionary(&model, batches, site, config, |_| {}).expect_err("refused")
    };
    for (error, expected) in [
        (
            refused(&[], SITE, &config()),
            "the text has 0 tokens to train on, after the first 1 of each example are left out: \
             expected at least 32; give more text, longer examples, or a smaller batch",
        ),
        (
            refused(&text(), SITE, &config().with_skipped_positions(6)),
            "the text has 8 tokens to train on, after the first 6 of each example are left out: \
             expected at least 32; give more text, longer examples, or a smaller batch",
        ),
        (
            refused(
                &text(),
                Site::Block(0, Component::AttentionWeights),
                &config(),
            ),
            "site layer 0 attention_weight: expected an activation that is a vector, found \
             attention scores or weights, which have a number for each key position",
        ),
    ] {
        assert_eq!(message(&error), expected);
    }
    let error = refused(&text(), Site::Block(9, Component::BlockOutput), &config());
    assert!(matches!(error, DictionaryTrainingError::Plan(_)), "{error}");
    let unknown = [tokens(&[&[1; 40], &[2, 3, 99]])];
    let error = refused(&unknown, SITE, &config());
    assert!(matches!(error, DictionaryTrainingError::Plan(_)), "{error}");
}

/// A feature for each coordinate and each sign: reconstructs everything.
fn exact(decoder: f32) -> Dictionary<B> {
    let device = Default::default();
    let eye = Tensor::<B, 2>::eye(WIDTH, &device);
    let encoder = Tensor::cat(vec![eye.clone(), -eye], 1); // [width, feature]
    let zeros = |count: usize| Tensor::<B, 1>::zeros([count], &device);
    Dictionary::new(
        (encoder.clone(), zeros(2 * WIDTH)),
        FeatureActivation::relu(),
        (encoder.transpose() * decoder, zeros(WIDTH)),
    )
    .expect("it fits")
}

/// The activations at a site, `[batch, pos, width]`.
fn activations(batch: &TokenBatch) -> (Vec<f32>, usize) {
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(batch);
    let world = plan.world(input, []);
    let read = plan.read(world, SITE, Units::ALL);
    let results = plan.run(&model(), &[VanillaIntervention; 0]);
    let found = results.expect("valid").get(read);
    let [_batch, pos, _width] = found.dims();
    (values(found.cast(DType::F32)), pos)
}

#[test]
fn a_perfect_dictionary_recovers_everything_and_an_empty_one_nothing() {
    let (model, text) = (model(), text());
    let options = DictionaryTextOptions::default().with_tokens_at_once(13);
    let evaluate = |decoder, options: &DictionaryTextOptions| {
        let dictionary = exact(decoder);
        evaluate_dictionary(&model, &dictionary, &text, SITE, options).expect("it fits")
    };
    let perfect = evaluate(1.0, &options);
    assert_eq!((perfect.tokens, perfect.losses.predictions), (160, 120));
    assert!(perfect.error < 1e-9, "{perfect:?}");
    assert!((perfect.explained_variance - 1.0).abs() < 1e-6);
    assert!((perfect.l0 - WIDTH as f64).abs() < 1e-9);
    assert!(perfect.dead() < 0.5);
    let losses = perfect.losses;
    assert!((losses.spliced - losses.clean).abs() < 1e-6, "{losses:?}");
    assert!((losses.recovered_from_zero() - 1.0).abs() < 1e-3);
    assert!((losses.recovered_from_mean() - 1.0).abs() < 1e-3);

    let empty = evaluate(0.0, &options);
    let losses = empty.losses;
    assert_eq!(losses.clean, perfect.losses.clean);
    assert!((losses.spliced - losses.zero).abs() < 1e-6, "{losses:?}");
    assert!(losses.recovered_from_zero().abs() < 1e-3);
    assert!(losses.mean != losses.zero && losses.zero != losses.clean);
    // The squared norm is left, in its mean over all tokens.
    let mut squares = 0.0;
    for batch in &text {
        let (numbers, pos) = activations(batch);
        for (row, vector) in numbers.chunks(WIDTH).enumerate() {
            if (1..batch.lengths()[row / pos]).contains(&(row % pos)) {
                squares += vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            }
        }
    }
    let expected = squares / 160.0;
    assert!((empty.error / expected - 1.0).abs() < 1e-5, "{empty:?}");
    // With the first token of each example.
    let whole = evaluate(1.0, &options.with_skipped_positions(0));
    assert_eq!((whole.tokens, whole.losses.predictions), (200, 160));
}

#[test]
fn losses_are_measured_on_as_many_batches_as_asked_for() {
    let (model, text, dictionary) = (model(), text(), exact(0.5));
    let all = DictionaryTextOptions::default();
    let evaluate = |text: &[TokenBatch], options: &DictionaryTextOptions| {
        evaluate_dictionary(&model, &dictionary, text, SITE, options).expect("it fits")
    };
    let whole = evaluate(&text, &all);
    let one = all.clone().with_loss_batches(1);
    let (part, first) = (evaluate(&text, &one), evaluate(&text[..1], &all));
    assert!(first.losses.predictions < whole.losses.predictions);
    assert_eq!(part.tokens, whole.tokens);
    assert_eq!(part.explained_variance, whole.explained_variance);
    assert_eq!(part.losses.predictions, first.losses.predictions);
    assert_eq!(part.losses.clean, first.losses.clean);
    assert_eq!(part.losses.spliced, first.losses.spliced);
    assert_eq!(part.losses.zero, first.losses.zero);
    // The mean is that of all batches.
    assert_ne!(part.losses.mean, first.losses.mean);

    let none = evaluate_dictionary(&model, &dictionary, &text, SITE, &all.with_loss_batches(0));
    assert!(
        matches!(none, Err(DictionaryTextError::Nothing { .. })),
        "{none:?}"
    );
}

#[test]
fn the_tokens_on_which_features_are_most_active() {
    const COUNT: usize = 4;
    let text = text();
    let features = [3, 3 + WIDTH, 7];
    let options = DictionaryTextOptions::default().with_tokens_at_once(9);
    let found = top_activations(
        &model(),
        &exact(1.0),
        &text,
        SITE,
        &features,
        COUNT,
        &options,
    );
    let found = found.expect("it fits");
    for (found, feature) in found.iter().zip(features) {
        let (coordinate, sign) = (feature % WIDTH, if feature < WIDTH { 1.0 } else { -1.0 });
        // By hand: all values above 0, with their places, the largest first.
        let mut expected = Vec::new();
        for (number, batch) in text.iter().enumerate() {
            let (numbers, pos) = activations(batch);
            for (example, ids) in batch.ids().iter().enumerate() {
                for (position, token) in ids.iter().enumerate().skip(1) {
                    let row = example * pos + position;
                    let value = sign * numbers[row * WIDTH + coordinate];
                    expected.push((value, [number, example, position], *token));
                }
            }
        }
        assert_eq!(found.tokens, expected.len());
        expected.retain(|(value, _, _)| *value > 0.0);
        assert_eq!((found.feature, found.active), (feature, expected.len()));
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(found.top.len(), COUNT);
        for (top, (value, place, token)) in found.top.iter().zip(expected) {
            assert_eq!([top.batch, top.example, top.position], place);
            assert_eq!(top.token, token);
            assert!((top.value - value).abs() <= 1e-6, "{} {value}", top.value);
            let (context, at) = top.context(&text, 1).expect("it is there");
            let ids = &text[top.batch].ids()[top.example];
            assert_eq!(context[at], ids[top.position]);
            assert_eq!(context[0], ids[top.position - 1]);
            assert!(context.len() <= 3);
            let whole = top.context(&text, usize::MAX).expect("it is there");
            assert_eq!(whole, (&ids[..], top.position));
            assert_eq!(top.context(&text[..0], 1), None);
        }
    }
    // All in all there may be fewer.
    let options = DictionaryTextOptions::default();
    let few = [tokens(&[&[1, 2]])];
    let found = top_activations(&model(), &exact(1.0), &few, SITE, &[0, 16], 9, &options);
    let found = found.expect("it fits");
    assert_eq!(found.iter().map(|it| it.top.len()).sum::<usize>(), 1);
}

#[test]
fn a_dictionary_that_does_not_fit_is_an_error() {
    let (model, text) = (model(), text());
    let options = DictionaryTextOptions::default();
    let refused = |batches: &[TokenBatch], site, features: &[usize]| {
        let found = top_activations(&model, &exact(1.0), batches, site, features, 3, &options);
        found.expect_err("refused")
    };
    let mlp = Site::Block(0, Component::MlpActivation);
    let error = refused(&text, mlp, &[1]);
    assert!(
        matches!(
            error,
            DictionaryTextError::Width { expected: 16, found, .. } if found != 16
        ),
        "{error}"
    );
    let weights = Site::Block(0, Component::AttentionWeights);
    for (error, expected) in [
        (
            refused(&[], SITE, &[1]),
            "expected at least one batch, found none",
        ),
        (
            refused(&text, SITE, &[32]),
            "feature 32: expected features below 32, the number in this dictionary",
        ),
        (
            refused(&text, SITE, &[]),
            "no feature is selected: expected at least one",
        ),
        (
            refused(&text, weights, &[1]),
            "site layer 0 attention_weight: expected an activation that is a vector, found \
             attention scores or weights, which have a number for each key position",
        ),
    ] {
        assert_eq!(message(&error), expected);
    }
    let short = [tokens(&[&[1], &[2]])];
    let error = evaluate_dictionary(&model, &exact(1.0), &short, SITE, &options);
    assert_eq!(
        message(&error.expect_err("refused")),
        "expected at least one token after those at the beginning that are left out, found none"
    );
    let short = [tokens(&[&[1, 2], &[2, 3]])];
    let error = evaluate_dictionary(&model, &exact(1.0), &short, SITE, &options);
    assert_eq!(
        message(&error.expect_err("refused")),
        "expected at least one token that is predicted, found none"
    );
}
