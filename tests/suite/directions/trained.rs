//! Directions that are trained on texts, against PyTorch (`tests/fixtures/make_reft_r1.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::methods::{
    Direction, DirectionError, DirectionMethod, DirectionOptions, PromptPositions, ReftR1Config,
    ReftR1Direction, ReftR1Error, ReftR1Text, find_direction, train_reft_r1,
};
use burn_align::training::{Checkpoints, TrainingConfig, TrainingError, TrainingEvent};
use burn_align_models::{Component, Decoder, Site};
use serde::Deserialize;

use super::{planted, planted_pairs, rows};
use crate::support::{fixtures, load, message, of_gradients};

on_every_backend!(
    trained_directions_are_those_of_pytorch,
    a_seed_trains_the_same_direction,
    texts_and_settings_that_are_refused,
);

const SITE: Site = Site::Block(0, Component::BlockOutput);

#[derive(Deserialize)]
struct Fixture {
    settings: Settings,
    start: Vec<f32>,
    texts: BTreeMap<String, Vec<Text>>,
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct Settings {
    steps: usize,
    rate: f64,
    top_k: usize,
    l1: f64,
    first: usize,
}

#[derive(Deserialize)]
struct Text {
    prompt: Vec<u32>,
    response: Vec<u32>,
}

/// What PyTorch found for one choice of the texts that are held out.
#[derive(Deserialize)]
struct Run {
    losses: Vec<f64>,
    direction: Vec<f64>,
    max_latent: f64,
    detection_auc: f64,
}

impl Fixture {
    fn read() -> Self {
        let json = fs::read_to_string(fixtures().join("reft_r1.json")).expect("the fixture");
        serde_json::from_str(&json).expect("JSON")
    }

    /// With the concept, and without.
    fn texts(&self) -> [Vec<ReftR1Text>; 2] {
        ["positive", "negative"].map(|class| {
            let texts = self.texts[class].iter();
            let texts = texts.map(|it| ReftR1Text::new(&it.prompt[..], &it.response[..]));
            texts.collect()
        })
    }

    /// A step takes all texts.
    fn config(&self) -> ReftR1Config {
        let config = ReftR1Config::default();
        let training = config.training.clone();
        config
            .with_top_k(self.settings.top_k)
            .with_l1(self.settings.l1)
            .with_first_position(self.settings.first)
            .with_start(&self.start[..])
            .with_training(
                training
                    .with_epochs(self.settings.steps)
                    .with_batch_size(16)
                    .with_learning_rate(self.settings.rate),
            )
    }
}

fn trained<B: Backend>(
    model: &Decoder<Autodiff<B>>,
    texts: &[Vec<ReftR1Text>; 2],
    config: &ReftR1Config,
    options: &DirectionOptions,
) -> Result<ReftR1Direction, ReftR1Error> {
    let texts = [&texts[0][..], &texts[1]];
    train_reft_r1::<Autodiff<B>, _>(model, texts, SITE, config, options, |_| {})
}

fn trained_directions_are_those_of_pytorch<B: Backend>(device: &B::Device) {
    let fixture = Fixture::read();
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let tolerance = of_gradients::<B>(device, 1e-5);
    let close = |found: f64, expected: f64| (found - expected).abs() <= tolerance;
    let mut seen = BTreeSet::new();
    for seed in 0..8 {
        for with_negative in [true, false] {
            let options = DirectionOptions::default().with_seed(seed);
            let config = fixture.config().with_trains_on_negative(with_negative);
            let found = trained::<B>(&model, &fixture.texts(), &config, &options).expect("trained");
            // The numbers of positions tell which texts are held out.
            let [positive, negative] = found.direction.provenance.examples;
            let run = format!("{positive} {negative} {with_negative}");
            let expected = &fixture.runs[&run];
            let losses: Vec<f64> = found.history.steps.iter().map(|step| step.loss).collect();
            assert_eq!(losses.len(), expected.losses.len());
            for (found, expected) in losses.iter().zip(&expected.losses) {
                assert!(close(*found, *expected), "{run}: {found}, {expected}");
            }
            for (found, expected) in found.direction.unit().iter().zip(&expected.direction) {
                assert!(close((*found).into(), *expected), "{run}: {found}");
            }
            assert!(close(found.max_latent, expected.max_latent), "{run}");
            assert_eq!(found.detection_auc, expected.detection_auc, "{run}");

            let direction = &found.direction;
            let method = DirectionMethod::ReftR1 { top_k: 3, l1: 0.4 };
            assert_eq!((direction.site, direction.method), (SITE, method));
            assert!((direction.norms.unscaled - 1.0).abs() < 1e-5);
            assert_ne!(direction.separation, direction.control);
            // One text of each class is held out, without its first position.
            let [positive, negative] = direction.separation.examples;
            assert!([6, 4, 8, 3].contains(&positive) && [6, 3, 7].contains(&negative));
            seen.insert(run);
        }
    }
    assert!(seen.len() >= 6, "other texts are held out: {seen:?}");

    // Nothing is cached: the same.
    let options = DirectionOptions::default().with_positions(&PromptPositions::From(1));
    let config = fixture.config();
    let found = trained::<B>(&model, &fixture.texts(), &config, &options).expect("trained");
    let training = config.training.clone().with_memory_budget(0);
    let uncached = config.with_training(training);
    let again = trained::<B>(&model, &fixture.texts(), &uncached, &options).expect("trained");
    for (one, other) in found.history.steps.iter().zip(&again.history.steps) {
        assert!(close(one.loss, other.loss), "{one:?} {other:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    found.direction.save(folder.path()).expect("written");
    let read = Direction::load(folder.path()).expect("a direction");
    assert_eq!(read, found.direction);

    // Latents, by hand.
    let both = rows(&[vec![1.0; 16], vec![-1.0; 16]]);
    let sum: f64 = found.direction.unit().iter().map(|x| f64::from(*x)).sum();
    let latents = read.latents(&both).expect("of this width");
    assert!(close(latents[0], sum.max(0.0)) && close(latents[1], (-sum).max(0.0)));
    let error = read
        .latents(&rows(&[vec![1.0; 3]]))
        .expect_err("too narrow");
    assert!(matches!(error, DirectionError::Width { found: 3, .. }));
}

fn a_seed_trains_the_same_direction<B: Backend>(device: &B::Device) {
    let fixture = Fixture::read();
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let folder = tempfile::tempdir().expect("a folder");
    let config = |training: TrainingConfig| {
        let mut config = fixture.config().with_training(training);
        config.start = None;
        config
    };
    let training = fixture.config().training.with_epochs(3).with_batch_size(2);
    let with_seed = |seed: u64| {
        let options = DirectionOptions::default().with_seed(seed);
        let config = config(training.clone());
        trained::<B>(&model, &fixture.texts(), &config, &options).expect("trained")
    };
    let found = with_seed(3);
    // Three texts with the concept and two without, in batches of two.
    assert_eq!(found.history.steps.len(), 3 * 3);
    assert_eq!(with_seed(3), found);
    assert_ne!(with_seed(4).direction.vector, found.direction.vector);

    // A checkpoint of another weight is not resumed; one of the same is.
    let kept = training.with_checkpoints(Checkpoints::new(folder.path()));
    let options = DirectionOptions::default().with_seed(3);
    let saved = config(kept.clone());
    let first = trained::<B>(&model, &fixture.texts(), &saved, &options).expect("trained");
    assert_eq!(first, found);
    let texts = fixture.texts();
    let texts = [&texts[0][..], &texts[1]];
    let mut resumed = false;
    let again = train_reft_r1::<Autodiff<B>, _>(&model, texts, SITE, &saved, &options, |event| {
        resumed |= matches!(event, TrainingEvent::Resumed(_));
        assert!(!matches!(event, TrainingEvent::Step(_)), "it has ended");
    });
    assert_eq!(again.expect("read"), found);
    assert!(resumed);
    let other = config(kept).with_l1(0.5);
    let error = trained::<B>(&model, &fixture.texts(), &other, &options).expect_err("another");
    let is_other = matches!(error, ReftR1Error::Training(TrainingError::OtherRun { .. }));
    assert!(is_other, "{error:?}");
}

fn texts_and_settings_that_are_refused<B: Backend>(device: &B::Device) {
    let fixture = Fixture::read();
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let refused = |texts: &[Vec<ReftR1Text>; 2], config: &ReftR1Config| {
        let options = DirectionOptions::default();
        let error = trained::<B>(&model, texts, config, &options).expect_err("refused");
        message(&error)
    };
    let (good, config) = (fixture.texts(), fixture.config());
    for (config, expected) in [
        (
            config.clone().with_top_k(0),
            "top_k: expected at least 1, found 0",
        ),
        (
            config.clone().with_l1(-0.5),
            "l1: expected a finite number, not below 0, found -0.5",
        ),
        (
            config.clone().with_l1(f64::NAN),
            "l1: expected a finite number, not below 0, found NaN",
        ),
        (
            config.clone().with_start([0.0; 16]),
            "start: expected finite numbers that are not all 0, found others",
        ),
        (
            config.clone().with_start([1.0; 3]),
            "start: expected 16 features, found 3",
        ),
        (
            config.clone().with_first_position(4),
            "example 3: expected more than 4 tokens, found 4",
        ),
    ] {
        assert_eq!(refused(&good, &config), expected);
    }
    let with = |class: usize, text: ReftR1Text| {
        let mut texts = good.clone();
        texts[class].push(text);
        texts
    };
    for (texts, expected) in [
        (
            with(0, ReftR1Text::new([0; 0], [3])),
            "positive text 4: expected at least one token of its prompt, found none",
        ),
        (
            with(1, ReftR1Text::new([3], [0; 0])),
            "negative text 3: expected at least one token of its response, found none",
        ),
        (
            [good[0].clone(), good[1][..1].to_vec()],
            "expected negative activations of more prompts, so that some can be held out; found \
             those of 1 prompt; add prompts",
        ),
        (
            [Vec::new(), good[1].clone()],
            "the batch is empty: expected at least one example",
        ),
    ] {
        assert_eq!(refused(&texts, &config), expected);
    }
    let unknown = refused(&with(0, ReftR1Text::new([3, 1], [41])), &config);
    assert!(unknown.contains("41"), "{unknown}");

    // Activations alone do not give one.
    let data = planted_pairs(&planted(4, 12, 3.0, 2));
    let method = DirectionMethod::ReftR1 { top_k: 8, l1: 0.0 };
    let options = DirectionOptions::default();
    let error = find_direction(&data, SITE, method, &options).expect_err("refused");
    assert_eq!(error, DirectionError::TrainedOnTexts);
}
