//! Invalid uses of the front: each is rejected before anything is computed.

mod locations;
mod representations;
mod sources;
mod subspaces;

use burn::backend::Flex;
use burn_align::engine::{Indices, PlanError};
use burn_align::front::{
    AlignError, AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    Locations, Mode, RepresentationLocations, Unit, UnitLocations,
};
use burn_align_models::{Component, TokenBatch, TokensError};

use crate::counted::Counted;
use crate::support::{load, message, tokens};

/// `gpt2_plain` and `llama_gqa` have 2 layers, 4 heads, `d_model` 16, 41 tokens and 32 positions.
const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];

fn model(name: &str) -> Counted<Flex> {
    Counted::new(load::<Flex>(name, &Default::default()))
}

fn at(layer: usize, component: Component) -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(layer, component)
}

/// The output of the first block.
fn output() -> AlignableRepresentationConfig {
    at(0, Component::BlockOutput)
}

/// Two examples of 5 and 3 tokens.
fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]])
}

/// As many examples as the base, of the same lengths.
fn source() -> TokenBatch {
    tokens(&[&[7, 7, 2, 0, 8], &[1, 1, 40]])
}

fn inputs(sources: usize) -> AlignableInputs<Flex> {
    AlignableInputs::new(base())
        .with_sources(vec![source(); sources])
        .with_locations(1)
}

/// The error of a configuration, the same on both models.
fn config_refused<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    mode: Mode,
) -> AlignError {
    let [error, other] = MODELS.map(|name| {
        let config = AlignableConfig::new(representations.clone()).with_mode(mode);
        AlignableModel::<Flex, _>::new(config, model(name)).expect_err("refused")
    });
    assert_eq!(error, other);
    error
}

/// The error of inputs, the same on both models, having checked that nothing was computed.
fn refused<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    mode: Mode,
    inputs: &AlignableInputs<Flex>,
) -> AlignError {
    let [error, other] = MODELS.map(|name| {
        let config = AlignableConfig::new(representations.clone()).with_mode(mode);
        let model = AlignableModel::new(config, model(name)).expect("the configuration is right");
        let error = model.forward_inputs(inputs).expect_err("refused");
        assert_eq!(model.model().stages(), 0, "{error}");
        error
    });
    assert_eq!(error, other);
    error
}

fn parallel<const N: usize>(
    representations: [AlignableRepresentationConfig; N],
    inputs: &AlignableInputs<Flex>,
) -> AlignError {
    refused(representations, Mode::Parallel, inputs)
}

fn assert_says(error: &AlignError, expected: &str) {
    assert_eq!(message(error), expected);
}

fn units(rows: &[&[usize]]) -> Option<RepresentationLocations> {
    let rows = rows.iter().map(|row| row.to_vec()).collect();
    Some(Indices::Each(rows).into())
}

fn sides(
    source: Vec<Option<RepresentationLocations>>,
    base: Vec<Option<RepresentationLocations>>,
) -> UnitLocations {
    UnitLocations::SourcesToBase {
        source: Some(Locations::Each(source)),
        base: Locations::Each(base),
    }
}

#[test]
fn right_inputs_are_computed_and_counted() {
    let model = AlignableModel::new(AlignableConfig::new([output()]), model("llama_gqa"));
    let model = model.expect("right");
    model.forward_inputs(&inputs(1)).expect("right");
    assert_eq!(model.model().stages(), 5);
}

/// What a user can get wrong when giving tokens, sources and locations.
#[test]
fn wrong_uses() {
    let query = || at(1, Component::QueryOutput).with_unit(Unit::Head);
    let plan = |error: AlignError| match error {
        AlignError::Plan(error) => error,
        other => panic!("{other:?}"),
    };
    // An unknown component.
    let error = "mlp_outputs".parse::<Component>().expect_err("refused");
    assert!(
        message(&error).starts_with(
            "unknown component `mlp_outputs`; expected one of block_input, attention_input, "
        ),
        "{error}"
    );
    // A layer past the last one.
    let config = AlignableConfig::new([at(7, Component::BlockOutput)]);
    let error = AlignableModel::<Flex, _>::new(config, model("gpt2_plain")).expect_err("refused");
    assert!(matches!(error, AlignError::NoSuchSite { layers: 2, .. }));
    // A head or a position past the last one, on either side.
    for (source, base) in [(0, 4), (4, 0)] {
        let error = plan(parallel(
            [query()],
            &inputs(1).with_locations((source, base)),
        ));
        assert!(matches!(
            error,
            PlanError::HeadOutOfRange {
                found: 4,
                heads: 4,
                ..
            }
        ));
    }
    for (source, base) in [(0, 3), (3, 0)] {
        let error = plan(parallel(
            [output()],
            &inputs(1).with_locations((source, base)),
        ));
        let length = 3;
        assert!(matches!(
            error,
            PlanError::PositionOutOfRange { example: 1, found: 3, length: of, .. } if of == length
        ));
    }
    // Locations for other examples, of different numbers, twice the same, none.
    let right = || vec![units(&[&[0], &[0]])];
    let error_at = |base| {
        plan(parallel(
            [output()],
            &inputs(1).with_locations(sides(right(), vec![units(base)])),
        ))
    };
    assert!(matches!(error_at(&[&[0]]), PlanError::WrongBatch { .. }));
    assert!(matches!(
        error_at(&[&[0], &[0, 1]]),
        PlanError::RaggedUnits { .. }
    ));
    assert!(matches!(
        error_at(&[&[0, 0], &[0, 1]]),
        PlanError::RepeatedUnit { .. }
    ));
    assert!(matches!(error_at(&[&[], &[]]), PlanError::NoUnits { .. }));
    // More units on one side.
    assert!(matches!(
        error_at(&[&[0, 1], &[0, 1]]),
        PlanError::OperandShape { .. }
    ));
    // Whole representations of different lengths.
    let longer = tokens(&[&[1, 2, 3, 4, 5, 6], &[1]]);
    let wrong = AlignableInputs::new(base()).with_sources([longer]);
    assert!(matches!(
        plan(parallel([output()], &wrong)),
        PlanError::OperandShape { .. }
    ));
    // Padding must not replace a token; it may replace padding.
    let wrong =
        AlignableInputs::new(base()).with_sources([tokens(&[&[1, 2, 3], &[1, 2, 3, 4, 5]])]);
    assert!(matches!(
        plan(parallel([output()], &wrong)),
        PlanError::PaddingTaken { .. }
    ));
    // Tokens that the model does not have, and none.
    for bad in [tokens(&[&[0], &[99]]), tokens(&[&[99], &[0]])] {
        let error = plan(parallel([output()], &inputs(0).with_sources([bad.clone()])));
        assert!(matches!(error, PlanError::Input { .. }));
        let wrong = AlignableInputs::new(bad).with_sources([source()]);
        let error = plan(parallel([output()], &wrong.with_locations(0)));
        assert!(matches!(error, PlanError::Input { .. }));
    }
    let empty = TokenBatch::new(vec![vec![1], vec![]]).expect_err("refused");
    assert_eq!(empty, TokensError::EmptyExample { example: 1 });
    let empty = TokenBatch::new(vec![]).expect_err("refused");
    assert_eq!(empty, TokensError::EmptyBatch);
}
