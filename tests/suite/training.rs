//! Training and evaluating interventions.

mod own_parts;

use burn::backend::{Autodiff, Flex};

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align::engine::LogitPositions;
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, UnitLocations,
};
use burn_align::interventions::{BuiltinFeaturizer, BuiltinMask, Intervention, OrthonormalMap};
use burn_align::training::{
    History, InterchangeData, Targets, TrainingConfig, TrainingError, TrainingEvent, evaluate,
    evaluate_with_controls, losses, train,
};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, ModelInput, TokenBatch,
};

use crate::support::{checkpoints, message, values};

on_every_backend!(
    training_finds_what_a_swap_does,
    what_is_kept_changes_nothing,
    every_epoch_deals_anew,
    padding_has_no_weight,
    a_model_is_left_as_it_is,
    boundaries_close_and_temperatures_fall,
    interventions_without_sources_are_trained,
);

pub(crate) type Model<B> = AlignableModel<B, Decoder<B>>;

pub(crate) fn load<B: Backend>(device: &B::Device) -> Decoder<B> {
    let folder = checkpoints()["gpt2_plain"].clone();
    Decoder::from_pretrained(folder, &LoadOptions::default(), device)
        .expect("a fixture")
        .model
}

fn representation(kind: InterventionType) -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(0, Component::BlockOutput)
        .with_intervention(kind)
        .with_low_rank_dimension(4)
}

pub(crate) fn model<B: Backend>(kind: InterventionType, device: &B::Device) -> Model<B> {
    let config = AlignableConfig::new([representation(kind)]);
    AlignableModel::new(config, load(device)).expect("it fits")
}

/// Pairs of prompts, and the model's prediction when the whole residual at position 3 is swapped.
pub(crate) fn data<B: Backend>(examples: usize, device: &B::Device) -> InterchangeData<B> {
    let prompts = |salt: usize| {
        let ids = (0..examples).map(|example| {
            let id = |pos: usize| ((example * 17 + pos * 29 + salt * (example + 3)) % 41) as u32;
            // Of different lengths; all of them have position 3.
            (0..4 + example % 3).map(id).collect()
        });
        TokenBatch::new(ids.collect()).expect("a batch")
    };
    let inputs = AlignableInputs::new(prompts(5))
        .with_sources([prompts(11)])
        .with_locations(3);
    let swapped = model::<B>(InterventionType::Vanilla, device);
    let logits = swapped
        .forward_inputs(&inputs)
        .expect("valid")
        .counterfactual;
    let predicted: Vec<i64> = logits.argmax(2).into_data().iter::<i64>().collect();
    let pos = inputs.base.pos();
    let lengths = inputs.base.lengths().into_iter().enumerate();
    let labels: Vec<u32> = lengths
        .map(|(example, length)| predicted[example * pos + length - 1] as u32)
        .collect();
    InterchangeData::new(inputs, labels)
}

fn run<B: Backend>(
    kind: InterventionType,
    config: &TrainingConfig,
    device: &B::Device,
) -> (Model<Autodiff<B>>, History) {
    train(
        model::<Autodiff<B>>(kind, device),
        &[data::<B>(24, device)],
        &[],
        config,
        losses::cross_entropy,
        |_| {},
    )
    .expect("it can be trained")
}

/// Burn 0.21's autodiff cleans up the graphs of all threads after each backward pass, and removes
/// what it considers orphaned. This is the same on every backend.
#[test]
fn runs_at_the_same_time_do_not_disturb_each_other() {
    let device = &Default::default();
    let config = TrainingConfig::default()
        .with_epochs(4)
        .with_batch_size(4)
        .with_accumulation(3)
        .with_learning_rate(3e-2);
    let losses = |kind| -> Vec<f64> {
        let history = run::<Flex>(kind, &config, device).1;
        history.steps.iter().map(|step| step.loss).collect()
    };
    let kinds = [
        InterventionType::LowRankRotatedSpace,
        InterventionType::BoundlessRotatedSpace,
    ];
    let alone = kinds.map(losses);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for (kind, alone) in kinds.into_iter().zip(&alone) {
                let losses = &losses;
                scope.spawn(move || {
                    for _ in 0..5 {
                        for (found, alone) in losses(kind).iter().zip(alone) {
                            let difference = (found - alone).abs();
                            assert!(difference < 1e-4, "{found}, alone {alone}");
                        }
                    }
                });
            }
        }
    });
}

fn training_finds_what_a_swap_does<B: Backend>(device: &B::Device) {
    let data = [data::<B>(24, device)];
    let config = TrainingConfig::default()
        .with_epochs(40)
        .with_batch_size(8)
        .with_learning_rate(3e-2);
    let before = evaluate(
        &model::<B>(InterventionType::LowRankRotatedSpace, device),
        &data,
        7,
    );
    let (trained, history) = run::<B>(InterventionType::LowRankRotatedSpace, &config, device);
    let losses: Vec<f64> = history.epochs.iter().map(|epoch| epoch.loss).collect();
    assert!(losses[39] < 0.7 * losses[0], "{losses:?}");
    let trained = trained.valid();
    let after = evaluate(&trained, &data, 7).expect("valid");
    let before = before.expect("valid");
    assert!(after.accuracy > before.accuracy, "{before:?} {after:?}");
    let controls = evaluate_with_controls(&trained, &data, 5, 1).expect("valid");
    assert_eq!(controls.trained, after);
    assert_eq!(controls.whole_vector.accuracy, 1.0);
    assert!(controls.no_swap.accuracy < 1.0);
    let mut interventions = trained.interventions().to_vec();
    for intervention in &mut interventions {
        for rotation in intervention.orthonormal() {
            assert_eq!(rotation.map(), OrthonormalMap::Retraction);
            assert!(rotation.deviation() < 1e-5);
        }
    }
}

fn what_is_kept_changes_nothing<B: Backend>(device: &B::Device) {
    let config = TrainingConfig::default()
        .with_epochs(3)
        .with_batch_size(7)
        .with_accumulation(2);
    let kind = InterventionType::RotatedSpace;
    let kept = run::<B>(kind, &config, device).1;
    // 24 examples are 4 batches and 2 steps an epoch.
    assert_eq!(kept.steps.len(), 6);
    for bytes in [0, 3000] {
        let config = config.clone().with_memory_budget(bytes);
        let computed = run::<B>(kind, &config, device).1;
        for (kept, computed) in kept.steps.iter().zip(&computed.steps) {
            assert!((kept.loss - computed.loss).abs() < 1e-4, "{bytes}");
        }
    }
    let other = run::<B>(kind, &config.clone().with_seed(1), device).1;
    assert_ne!(kept.steps[0].loss, other.steps[0].loss);
}

/// The batches of each epoch, as the loss sees them.
fn batches<B: Backend>(config: &TrainingConfig, device: &B::Device) -> Vec<Vec<Vec<usize>>> {
    let seen = std::cell::RefCell::new(vec![Vec::new()]);
    let mut prepared = 0;
    let loss = |logits: Tensor<Autodiff<B>, 3>, targets: &Targets<Autodiff<B>>| {
        let last = |seen: &mut Vec<Vec<_>>| {
            seen.last_mut()
                .expect("an epoch")
                .push(targets.examples.1.clone());
        };
        last(&mut seen.borrow_mut());
        losses::cross_entropy(logits, targets)
    };
    let model = model::<Autodiff<B>>(InterventionType::LowRankRotatedSpace, device);
    let data = [data::<B>(24, device)];
    train(model, &data, &[], config, loss, |event| match event {
        TrainingEvent::Prepared { examples, of } => {
            assert!(examples > prepared && of == 24);
            prepared = examples;
        }
        TrainingEvent::Epoch(_) => seen.borrow_mut().push(Vec::new()),
        _ => {}
    })
    .expect("it can be trained");
    let all_fit = config.memory_budget > 1 << 20;
    assert_eq!(prepared == 24, all_fit, "{prepared} examples were prepared");
    let mut seen = seen.into_inner();
    seen.pop();
    seen
}

fn every_epoch_deals_anew<B: Backend>(device: &B::Device) {
    let config = TrainingConfig::default().with_epochs(3).with_batch_size(5);
    for budget in [2 << 30, 3000, 0] {
        let epochs = batches::<B>(&config.clone().with_memory_budget(budget), device);
        assert_eq!(epochs.len(), 3);
        let sorted = |batch: &Vec<usize>| {
            let mut batch = batch.clone();
            batch.sort_unstable();
            batch
        };
        for epoch in &epochs {
            let all: Vec<usize> = epoch.iter().flatten().copied().collect();
            assert_eq!(
                sorted(&all),
                (0..24).collect::<Vec<_>>(),
                "each example once"
            );
        }
        let sets = |epoch: usize| -> std::collections::BTreeSet<Vec<usize>> {
            epochs[epoch].iter().map(sorted).collect()
        };
        assert_eq!(sets(0).intersection(&sets(1)).count(), 0, "other batches");
    }
}

fn padding_has_no_weight<B: Backend>(device: &B::Device) {
    // All positions of prompts of 4 to 6 tokens: values at padding must not count.
    let with_padding = |label: u32| {
        let data = data::<B>(24, device);
        let lengths = data.inputs.base.lengths();
        let labels = lengths
            .iter()
            .map(|length| {
                (0..6)
                    .map(|pos| if pos < *length { 7 } else { label })
                    .collect()
            })
            .collect();
        data.with_labels(LogitPositions::All, labels)
    };
    let config = TrainingConfig::default().with_epochs(2).with_batch_size(5);
    let run = |data: InterchangeData<B>, budget| {
        let model = model::<Autodiff<B>>(InterventionType::LowRankRotatedSpace, device);
        let config = config.clone().with_memory_budget(budget);
        let data = [data];
        let run = train(model, &data, &data, &config, losses::cross_entropy, |_| {});
        run.expect("it can be trained").1
    };
    let history = run(with_padding(0), 2 << 30);
    assert_eq!(history, run(with_padding(1), 2 << 30));
    // Examples that are cut to the length of their batch, or not.
    for (one, other) in history.steps.iter().zip(&run(with_padding(0), 0).steps) {
        assert!((one.loss - other.loss).abs() < 1e-4, "{one:?} {other:?}");
    }
}

fn a_model_is_left_as_it_is<B: Backend>(device: &B::Device) {
    let config = TrainingConfig::default().with_epochs(1);
    let (trained, _) = run::<B>(InterventionType::SigmoidMask, &config, device);
    let untouched = load::<B>(device);
    let ids = TokenBatch::new(vec![vec![3, 1, 4, 1, 5]]).expect("a batch");
    let logits = [trained.valid().model(), &untouched]
        .map(|model| values(model.forward(ModelInput::Tokens(ids.to_tensor(device)))));
    assert_eq!(logits[0], logits[1]);
}

fn boundaries_close_and_temperatures_fall<B: Backend>(device: &B::Device) {
    let config = TrainingConfig::default()
        .with_epochs(10)
        .with_penalty(100.0)
        .with_temperature(5.0, 0.5);
    let (trained, _) = run::<B>(InterventionType::BoundlessRotatedSpace, &config, device);
    let trained = &trained.interventions()[0];
    assert_eq!(trained.temperature(), 0.5);
    let BuiltinMask::Boundary(trained) = &trained.mask else {
        panic!("the type of the intervention changed");
    };
    // It began in the middle, and a penalty of 100 outweighs everything.
    assert!(trained.within() < 7.0, "{}", trained.within());
}

fn interventions_without_sources_are_trained<B: Backend>(device: &B::Device) {
    use burn_align::interventions::ReftKind;
    for kind in [
        ReftKind::LoReft,
        ReftKind::NoReft,
        ReftKind::ConsReft,
        ReftKind::LobiReft,
        ReftKind::DiReft,
        ReftKind::NodiReft,
    ] {
        let mut data = data::<B>(24, device).with_locations(UnitLocations::base(3));
        data.inputs.sources = Vec::new();
        let config = TrainingConfig::default()
            .with_epochs(20)
            .with_learning_rate(2e-2);
        let model = model::<Autodiff<B>>(InterventionType::Reft(kind), device);
        let (_, history) = train(model, &[data], &[], &config, losses::cross_entropy, |_| {})
            .expect("it can be trained");
        let (first, last) = (history.epochs[0].loss, history.epochs[19].loss);
        assert!(last < 0.99 * first, "{kind:?}: {first} to {last}");
    }
}

#[test]
fn early_stopping_keeps_the_best_epoch() {
    type B = Flex;
    let device = Default::default();
    let data = [data::<B>(24, &device)];
    let config = TrainingConfig::default()
        .with_epochs(200)
        .with_batch_size(8)
        .with_learning_rate(3e-2)
        .with_patience(3);
    let model = model::<Autodiff<B>>(InterventionType::LowRankRotatedSpace, &device);
    let (trained, history) =
        train(model, &data, &data, &config, losses::cross_entropy, |_| {}).expect("trained");
    assert!(history.epochs.len() < 200);
    let accuracy = |epoch: usize| history.epochs[epoch].held_out.expect("held out").accuracy;
    let best = (0..history.epochs.len()).map(accuracy).fold(0.0, f64::max);
    let end = evaluate(&trained.valid(), &data, 8).expect("valid");
    assert_eq!(end.accuracy, best);
}

#[test]
fn a_model_in_bf16_trains_as_in_f32() {
    type B = Flex;
    let device = Default::default();
    let data = [data::<B>(200, &device)];
    let accuracies = [DType::F32, DType::BF16].map(|dtype| {
        let options = LoadOptions::default().with_dtype(dtype);
        let folder = checkpoints()["gpt2_plain"].clone();
        let loaded = Decoder::<Autodiff<B>>::from_pretrained(folder, &options, &device);
        let representation = representation(InterventionType::RotatedSpace);
        let config = AlignableConfig::new([representation.with_low_rank(6)]);
        let model = AlignableModel::new(config, loaded.expect("a fixture").model).expect("fits");
        let config = TrainingConfig::default()
            .with_epochs(20)
            .with_learning_rate(1e-2);
        let (trained, history) =
            train(model, &data, &[], &config, losses::cross_entropy, |_| {}).expect("trained");
        let mut losses = history.epochs.iter().map(|epoch| epoch.loss);
        let (first, last) = (losses.next(), losses.next_back());
        assert!(last < first, "{dtype:?}: {first:?} to {last:?}");
        let BuiltinFeaturizer::Rotation(rotated) = &trained.interventions()[0].featurizer else {
            panic!("the type of the intervention changed");
        };
        assert_eq!(rotated.rotation.parameter.val().dtype(), DType::F32);
        assert!(rotated.rotation.deviation() < 1e-5);
        evaluate(&trained.valid(), &data, 50)
            .expect("valid")
            .accuracy
    });
    let [f32, bf16] = accuracies;
    assert!(
        f32 > 0.5 && (f32 - bf16).abs() <= 0.02,
        "{f32} in f32, {bf16} in bf16"
    );
}

#[test]
fn intervals_are_those_of_wilson() {
    type B = Flex;
    let device = Default::default();
    let swapped = model::<B>(InterventionType::Vanilla, &device);
    let evaluation = evaluate(&swapped, &[data::<B>(10, &device)], 3).expect("valid");
    assert_eq!((evaluation.accuracy, evaluation.examples), (1.0, 10));
    // 1 / (1 + z² / n) with z = 1.96
    assert!((evaluation.interval[0] - 0.722_47).abs() < 1e-4);
    assert!((evaluation.interval[1] - 1.0).abs() < 1e-9);
}

#[test]
fn what_cannot_be_trained() {
    type B = Flex;
    let device = Default::default();
    let attempt = |kind, data: InterchangeData<B>, config: &TrainingConfig| {
        let model = model::<Autodiff<B>>(kind, &device);
        train(model, &[data], &[], config, losses::cross_entropy, |_| {})
            .map(|_| ())
            .expect_err("refused")
    };
    let config = TrainingConfig::default();
    let rotated = InterventionType::RotatedSpace;
    let right = || data::<B>(4, &device);

    let mut short = right();
    short.labels.pop();
    assert_eq!(
        message(&attempt(rotated, short, &config)),
        "labels: expected those of 4 examples, found 3"
    );
    let mut unknown = right();
    unknown.labels[2] = vec![41];
    assert_eq!(
        message(&attempt(rotated, unknown, &config)),
        "labels: example 2: expected a class below 41, found 41"
    );
    let mut many = right();
    many.labels[1] = vec![1, 2];
    assert_eq!(
        message(&attempt(rotated, many, &config)),
        "labels: expected 1 for each example, one for each position, found 2 for example 1"
    );
    assert_eq!(
        message(&attempt(InterventionType::Vanilla, right(), &config)),
        "expected at least one intervention with parameters, found none"
    );
    for (config, expected) in [
        (
            config.clone().with_batch_size(0),
            "batch_size: expected at least 1, found 0",
        ),
        (
            config.clone().with_learning_rate(f64::NAN),
            "learning_rate: expected a finite number, not below 0, found NaN",
        ),
        (
            config.clone().with_temperature(1.0, 0.0),
            "temperature: expected numbers above 0, found 0",
        ),
    ] {
        assert_eq!(message(&attempt(rotated, right(), &config)), expected);
    }
    let nowhere = |logits: Tensor<Autodiff<B>, 3>, _: &Targets<Autodiff<B>>| {
        (logits.sum() * f64::NAN).unsqueeze()
    };
    let model = model::<Autodiff<B>>(rotated, &device);
    let error = train(model, &[right()], &[], &config, nowhere, |_| {}).map(|_| ());
    assert!(matches!(
        error.expect_err("refused"),
        TrainingError::Diverged { step: 0, .. }
    ));
    let two = AlignableInputs::new(TokenBatch::new(vec![vec![1, 2]]).expect("a batch"));
    let error = attempt(rotated, InterchangeData::new(two, [1]), &config);
    assert!(matches!(error, TrainingError::Align(_)), "{error:?}");
}
