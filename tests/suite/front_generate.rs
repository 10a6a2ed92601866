//! Generation in the vocabulary of pyvene: against pyvene's `generate`
//! (`tests/fixtures/make_generate.py`), the engine's, and forward passes over whole texts.

use std::collections::BTreeMap;
use std::fs;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Indices, Operand, Plan, Units};
use burn_align::front::{
    AlignGenerateError, AlignableConfig, AlignableInputs, AlignableModel,
    AlignableRepresentationConfig, AlignableTexts, InterveneAt, InterventionType, Source,
    Subspaces, UnitLocations,
};
use burn_align::generate::{
    GenerateOptions, GeneratedRow, GeneratedWorld, StepEdit, StepOperand, generate,
};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::{Component, Decoder, Site, TokenBatch};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{fixtures, load, max_difference, read_tensors, tokens};

on_every_backend!(
    texts_are_those_of_pyvene,
    every_place_is_what_the_engine_says,
    steps_are_positions_of_the_whole_text
);

const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Expected {
    base: Vec<Vec<u32>>,
    sources: Vec<Vec<Vec<u32>>>,
    direction: Vec<f32>,
    new_tokens: usize,
    plain: Vec<Vec<u32>>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    at: InterveneAt,
    config: AlignableConfig,
    sources: usize,
    constant: bool,
    unit_locations: Value,
    subspaces: Value,
    original: bool,
    ids: Vec<Vec<u32>>,
}

fn ids<B: Backend>(rows: &[GeneratedRow<B>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.tokens.clone()).collect()
}

/// All examples in one tensor, `[batch, step, width]`.
fn stacked<B: Backend>(rows: impl Iterator<Item = Option<Tensor<B, 2>>>) -> Tensor<B, 3> {
    let rows = rows.map(|row| row.expect("it was asked for").unsqueeze::<3>());
    Tensor::cat(rows.collect(), 0)
}

fn logits<B: Backend>(rows: &[GeneratedRow<B>]) -> Tensor<B, 3> {
    stacked(rows.iter().map(|row| row.logits.clone()))
}

#[track_caller]
fn assert_close<B: Backend>(what: &str, found: Tensor<B, 3>, expected: &TensorData) {
    let difference = max_difference(found, expected);
    assert!(difference <= TOLERANCE, "{what}: {difference}");
}

fn texts_are_those_of_pyvene<B: Backend>(device: &B::Device) {
    let text = fs::read_to_string(fixtures().join("generate.json")).expect("the fixture");
    let expected: Expected = serde_json::from_str(&text).expect("the fixture");
    let tensors = read_tensors(&fixtures().join("generate.safetensors"));
    let batch = |ids: &Vec<Vec<u32>>| TokenBatch::new(ids.clone()).expect("a batch");
    let direction = TensorData::new(expected.direction, [1, 1, 16]);
    let direction = Tensor::<B, 3>::from_data(direction, device);
    let options = GenerateOptions::new(expected.new_tokens).with_logits();
    let mut compared = 0;
    for (name, case) in &expected.cases {
        let decoder = load::<B>("gpt2_plain", device);
        let model = AlignableModel::<B, _>::new(case.config.clone(), decoder).expect("it fits");
        let runs = expected.sources[..case.sources].iter();
        let mut sources: Vec<Source<B>> = runs.map(|ids| batch(ids).into()).collect();
        if case.constant {
            sources.push(Source::Values(direction.clone()));
        }
        let mut inputs = AlignableInputs::new(batch(&expected.base))
            .with_sources(sources)
            .with_locations(UnitLocations::try_from(&case.unit_locations).expect("locations"))
            .with_subspaces(Subspaces::try_from(&case.subspaces).expect("subspaces"));
        inputs.output_original_output = case.original;
        let on_prompt = case.at != InterveneAt::Steps;
        let at = InterveneAt::of_pyvene(&inputs.locations, on_prompt);
        assert_eq!(at, case.at, "{name}");

        let texts = model.generate_inputs(&inputs, at, &options, |_| {});
        let texts = texts.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ids(&texts.rows), case.ids, "{name}");
        assert_close(
            name,
            logits(&texts.rows),
            &tensors[&format!("{name}.logits")],
        );
        let original = texts.original.as_deref().map(ids);
        assert_eq!(
            original,
            case.original.then(|| expected.plain.clone()),
            "{name}"
        );
        compared += 1;
        let collected = texts.collected.values().next().cloned();
        let at_steps = texts.collected_at_steps.values().next();
        let at_steps = at_steps.map(|rows| stacked(rows.iter().cloned()));
        let found = collected.or(at_steps);
        match (found, tensors.get(&format!("{name}.collected"))) {
            (Some(found), Some(expected)) => {
                assert_close(name, found, expected);
                compared += 1;
            }
            (None, None) => {}
            (found, _) => panic!("{name}: collected {}", found.is_some()),
        }
    }
    assert_eq!(compared, tensors.len());
}

const AFTER_BLOCK_0: Site = Site::Block(0, Component::BlockOutput);

/// Two examples of different lengths, and their sources.
fn examples() -> [TokenBatch; 2] {
    [
        tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]),
        tokens(&[&[7, 7, 2, 0, 8], &[1, 1, 40]]),
    ]
}

fn swapping<B: Backend>(model: &Decoder<B>) -> AlignableModel<B, Decoder<B>> {
    let residual = AlignableRepresentationConfig::new(0, Component::BlockOutput);
    AlignableModel::new(AlignableConfig::new([residual]), model.clone()).expect("it fits")
}

/// Position 2 of the source goes to position 1 of the base, to the steps, to one, or to both.
fn every_place_is_what_the_engine_says<B: Backend>(device: &B::Device) {
    let decoder = load::<B>("llama_gqa", device);
    let model = swapping(&decoder);
    let [base, source] = examples();
    let options = GenerateOptions::new(6).with_logits();

    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&source);
    let world = plan.world(input, []);
    let read = plan.read(world, AFTER_BLOCK_0, Units::position(2));
    let taken = model.run(&plan).expect("valid").get(read); // [batch, 1, d_model]

    let mut seen = Vec::new();
    for at in [
        InterveneAt::Prompt,
        InterveneAt::Steps,
        InterveneAt::Step(2),
        InterveneAt::All,
    ] {
        let to = if at.is_in_prompt() { 1 } else { 0 };
        let texts = model.generate(&base, std::slice::from_ref(&source), (2, to), at, &options);
        let texts = texts.expect("valid");

        let mut plan = Plan::<B>::new();
        let input = plan.tokens(&base);
        let constant = plan.constant(taken.clone());
        let edit = Edit::new(
            AFTER_BLOCK_0,
            Units::position(1),
            0,
            Operand::Constant(constant),
        );
        let in_prompt = at.is_in_prompt().then_some(edit);
        let world = GeneratedWorld::new(plan.world(input, in_prompt)).with_streams([0, 1]);
        let step = StepEdit::new(AFTER_BLOCK_0, 0, StepOperand::Constant(taken.clone()));
        let world = match at {
            InterveneAt::Prompt => world,
            InterveneAt::Step(number) => world.with_edit(step.at_step(number)),
            _ => world.with_edit(step),
        };
        let swap = [VanillaIntervention];
        let expected = generate(&decoder, &swap, &plan, &[world], &options, |_| {});
        let expected = expected.expect("valid").rows;
        assert_eq!(ids(&texts.rows), ids(&expected), "{at:?}");
        let logits_of = |rows: &[GeneratedRow<B>]| logits(rows).into_data().convert::<f32>();
        assert_close(
            &format!("{at:?}"),
            logits(&texts.rows),
            &logits_of(&expected),
        );
        seen.push(logits_of(&expected));
    }
    for (index, one) in seen.iter().enumerate() {
        assert!(!seen[..index].contains(one), "two places are the same");
    }
}

/// A text of one example, the logits of its tokens, and a forward pass over all of it.
fn whole_text<B: Backend>(
    model: &AlignableModel<B, Decoder<B>>,
    prompt: &[u32],
    at: InterveneAt,
    positions: Option<std::ops::Range<usize>>,
) -> AlignableTexts<B> {
    let options = GenerateOptions::new(5).with_logits();
    let inputs = AlignableInputs::new(tokens(&[prompt]));
    let texts = model.generate_inputs(&inputs, at, &options, |_| {});
    let texts = texts.expect("valid");
    let text = [prompt, &texts.rows[0].tokens].concat();
    let mut inputs = AlignableInputs::new(tokens(&[&text]));
    if let Some(positions) = positions {
        inputs = inputs.with_locations(UnitLocations::base(positions));
    }
    let output = model.forward_inputs(&inputs).expect("valid");
    let chosen_from = output.counterfactual.narrow(1, prompt.len() - 1, 5);
    let chosen_from = chosen_from.into_data().convert::<f32>();
    assert_close(&format!("{at:?}"), logits(&texts.rows), &chosen_from);
    for (representation, rows) in &texts.collected_at_steps {
        let found = stacked(rows.iter().cloned());
        let [_, steps, _] = found.dims();
        let first = match at {
            InterveneAt::Step(step) => prompt.len() + step,
            _ => prompt.len(),
        };
        let expected = output.collected[representation].clone();
        let [_, units, _] = expected.dims();
        let start = if units == text.len() { first } else { 0 };
        let expected = expected
            .narrow(1, start, steps)
            .into_data()
            .convert::<f32>();
        assert_close("collected", found, &expected);
    }
    texts
}

fn steps_are_positions_of_the_whole_text<B: Backend>(device: &B::Device) {
    let decoder = load::<B>("llama_gqa", device);
    let prompt = [2, 7, 1, 8];
    let collect = AlignableRepresentationConfig::new(1, Component::BlockOutput)
        .with_intervention(InterventionType::Collect);
    for kind in [InterventionType::Zero, InterventionType::Skip] {
        let changed = AlignableRepresentationConfig::new(0, Component::MlpOutput);
        let changed = changed.with_intervention(kind);
        let config = AlignableConfig::new([changed, collect.clone()]);
        let model = AlignableModel::<B, _>::new(config, decoder.clone()).expect("it fits");
        let texts = whole_text(&model, &prompt, InterveneAt::All, None);
        assert_eq!(texts.collected[&1].dims(), [1, 4, 16]);
        let texts = whole_text(&model, &prompt, InterveneAt::Steps, Some(4..8));
        assert!(texts.collected.is_empty());
        let rows = &texts.collected_at_steps[&1];
        assert_eq!(rows[0].as_ref().expect("there").dims(), [4, 16]);
        let texts = whole_text(&model, &prompt, InterveneAt::Step(2), Some(6..7));
        let rows = &texts.collected_at_steps[&1];
        assert_eq!(rows[0].as_ref().expect("there").dims(), [1, 16]);
        let texts = whole_text(&model, &prompt, InterveneAt::Prompt, Some(0..4));
        assert!(texts.collected_at_steps.is_empty());
    }
}

#[test]
#[cfg(feature = "flex")]
fn places_are_read_from_json() {
    for (json, at) in [
        (r#""prompt""#, InterveneAt::Prompt),
        (r#""steps""#, InterveneAt::Steps),
        (r#""all""#, InterveneAt::All),
        (r#"{"step":3}"#, InterveneAt::Step(3)),
    ] {
        assert_eq!(serde_json::from_str::<InterveneAt>(json).expect(json), at);
        assert_eq!(serde_json::to_string(&at).expect("JSON"), json);
    }
    for json in [r#""everywhere""#, r#"{"step":-1}"#, r#""step""#, "3"] {
        serde_json::from_str::<InterveneAt>(json).expect_err(json);
    }
}

#[test]
#[cfg(feature = "flex")]
fn wrong_texts_are_refused() {
    use burn_align::engine::PlanError;
    use burn_align::front::AlignError;
    use burn_align::generate::{AtLimit, GenerateError};

    use crate::support::message;

    type B = burn::backend::Flex;
    let decoder = load::<B>("gpt2_plain", &Default::default());
    let device = Default::default();
    let [base, source] = examples();
    let options = GenerateOptions::new(5);
    let refused = |inputs: &AlignableInputs<B>, at, options: &GenerateOptions| {
        let texts = swapping(&decoder).generate_inputs(inputs, at, options, |_| {});
        texts.map(drop).expect_err("refused")
    };
    let inputs = |locations: UnitLocations| {
        AlignableInputs::<B>::new(base.clone())
            .with_sources([source.clone()])
            .with_locations(locations)
    };

    let error = refused(
        &inputs(UnitLocations::from((2, 0))),
        InterveneAt::Step(4),
        &options,
    );
    assert_eq!(error, AlignGenerateError::NoSuchStep { found: 4, steps: 4 });
    assert_eq!(
        message(&error),
        "expected a step below 4: of 5 new tokens the last one is chosen and not computed; found 4"
    );

    for (locations, found) in [
        (UnitLocations::from((2, 1)), "[1]"),
        (UnitLocations::from(1..3), "[1, 2]"),
        (UnitLocations::from((2, Indices::one_each([0, 1]))), "[1]"),
    ] {
        let error = refused(&inputs(locations), InterveneAt::Steps, &options);
        let expected = AlignGenerateError::StepLocation {
            representation: 0,
            found: found.to_owned(),
        };
        assert_eq!(error, expected);
    }

    let two = AlignGenerateError::StepSource {
        representation: 0,
        found: 2,
    };
    let error = refused(
        &inputs(UnitLocations::from((1..3, 0))),
        InterveneAt::Steps,
        &options,
    );
    assert_eq!(error, two);
    let error = refused(
        &inputs(UnitLocations::from(1..3)),
        InterveneAt::All,
        &options,
    );
    assert_eq!(error, two);
    let error = refused(&inputs(UnitLocations::Whole), InterveneAt::Steps, &options);
    assert!(
        message(&error).contains("found 5; name one position of the source"),
        "{error}"
    );
    let values = |shape| {
        inputs(UnitLocations::from((2, 0)))
            .with_sources([Source::Values(zeros::<B>(shape, &device))])
    };
    let error = refused(&values([1, 2, 16]), InterveneAt::Steps, &options);
    assert_eq!(error, two);

    // A direction of another width.
    for at in [InterveneAt::Prompt, InterveneAt::Steps] {
        let error = refused(&values([1, 1, 15]), at, &options);
        let is_shape = matches!(
            &error,
            AlignGenerateError::Align(AlignError::Plan(PlanError::OperandShape { .. }))
        );
        assert!(is_shape, "{error}");
    }

    let wrong = inputs(UnitLocations::from((2, 0))).with_sources([tokens(&[&[1, 2, 3]])]);
    let error = refused(&wrong, InterveneAt::Steps, &options);
    let is_batch = matches!(
        error,
        AlignGenerateError::Align(AlignError::BatchMismatch { .. })
    );
    assert!(is_batch, "{error}");

    // Longer than the model reads, with and without new tokens.
    let long = AlignableInputs::<B>::new(tokens(&[&[1; 33]]))
        .with_sources([tokens(&[&[1, 2, 3]])])
        .with_locations((2, 0));
    let error = refused(&long, InterveneAt::Steps, &options);
    let is_long = matches!(
        error,
        AlignGenerateError::Generate(GenerateError::TooLong { prompt: 33, .. })
    );
    assert!(is_long, "{error}");
    let cut = options.clone().with_at_limit(AtLimit::Cut);
    let error = refused(&long, InterveneAt::Steps, &cut);
    let is_long = matches!(
        error,
        AlignGenerateError::Align(AlignError::Plan(PlanError::Input { .. }))
    );
    assert!(is_long, "{error}");

    // Attention weights, and what a later intervention changes.
    let zero = |component| {
        AlignableRepresentationConfig::new(0, component).with_intervention(InterventionType::Zero)
    };
    let collect = zero(Component::MlpOutput).with_intervention(InterventionType::Collect);
    let with = |representations: Vec<AlignableRepresentationConfig>, at| {
        let config = AlignableConfig::new(representations);
        let model = AlignableModel::<B, _>::new(config, decoder.clone()).expect("it fits");
        let inputs = AlignableInputs::new(base.clone());
        model.generate_inputs(&inputs, at, &options, |_| {})
    };
    let patterns = with(vec![zero(Component::AttentionWeights)], InterveneAt::Steps);
    let is_pattern = matches!(
        patterns,
        Err(AlignGenerateError::Generate(GenerateError::Pattern { .. }))
    );
    assert!(is_pattern, "attention weights of a step");
    let before = vec![collect.clone(), zero(Component::MlpOutput)];
    let error = with(before.clone(), InterveneAt::All).map(drop);
    let expected = AlignGenerateError::CollectedBeforeChange {
        representation: 0,
        later: 1,
    };
    assert_eq!(error, Err(expected));
    // In the prompt, and after it, it can be collected.
    with(before, InterveneAt::Prompt).expect("valid");
    with(vec![zero(Component::MlpOutput), collect], InterveneAt::All).expect("valid");
}

#[cfg(feature = "flex")]
fn zeros<B: Backend>(shape: [usize; 3], device: &B::Device) -> Tensor<B, 3> {
    Tensor::zeros(shape, device)
}

/// A stop text that never comes ends nothing; generation is explained before it runs.
#[test]
#[cfg(feature = "flex")]
fn texts_end_and_are_explained() {
    use burn_align::generate::Finish;
    use burn_align_models::{FromPretrained, LoadOptions};

    type B = burn::backend::Flex;
    let device = Default::default();
    let loaded =
        Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device);
    let loaded = loaded.expect("bundled");
    let tokenizer = loaded.tokenizer().expect("it has one");
    let encode = |text: &str| tokenizer.encode_batch([text]).expect("text");
    let residual = AlignableRepresentationConfig::new(2, Component::BlockOutput);
    let model = AlignableModel::new(AlignableConfig::new([residual]), loaded.model.clone());
    let model = model.expect("it fits");
    let inputs = AlignableInputs::<B>::new(encode("The capital of Spain is"))
        .with_sources([encode("The capital of Italy is")])
        .with_locations(4)
        .with_original_output();
    let options = GenerateOptions::new(4).with_stop_texts(tokenizer, ["nowhere at all"]);
    let explained = model.explain_generation(&inputs, InterveneAt::Prompt, &options);
    let explained = explained.expect("valid");
    assert_eq!([explained.rows, explained.steps], [2, 3]);
    let mut shown = Vec::new();
    let texts = model.generate_inputs(&inputs, InterveneAt::Prompt, &options, |token| {
        shown.push((token.row, token.token));
    });
    let texts = texts.expect("valid");
    let original = texts.original.expect("asked for");
    let first = |row: &GeneratedRow<B>| tokenizer.decode(&row.tokens[..1]).expect("text");
    assert_eq!(first(&texts.rows[0]), "Rome");
    assert_eq!(first(&original[0]), "Madrid");
    for (number, row) in [(0, &texts.rows[0]), (1, &original[0])] {
        assert_eq!(row.finish, Finish::Length);
        let of_row = shown.iter().filter(|(row, _)| *row == number);
        assert!(
            of_row
                .map(|(_, token)| *token)
                .eq(row.tokens.iter().copied())
        );
    }
}
