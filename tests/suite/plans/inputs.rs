//! Inputs: those that a model cannot read, and rows that do not fit the budget.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use burn_align::engine::{
    Edit, Indices, LogitPositions, Plan, PlanError, RunOptions, Units, WorldInput,
};
use burn_align_models::{
    Component, Decoder, FromPretrained, InputKinds, LoadOptions, Site, TokensError,
};

use super::{
    OUTPUT, QUERY, SWAP, ZERO, assert_says, base, each, edited, interventions, refused, refused_by,
    swap, zero,
};
use crate::counted::Counted;
use crate::support::{checkpoints, load, tokens};

#[test]
fn input_that_the_model_cannot_read() {
    let error = refused(|plan| {
        base(plan);
        let input = plan.tokens(&tokens(&[&[1], &[0, 41]]));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    });
    let cause = TokensError::UnknownToken {
        example: 1,
        pos: 1,
        found: 41,
        vocab: 41,
    };
    assert_eq!(error, PlanError::Input { input: 1, cause });
    assert_says(
        &error,
        "the model cannot read input 1: \
         example 1, position 1: expected a token id below 41, found 41",
    );

    let error = refused_by("gpt2_plain", |plan| {
        let input = plan.tokens(&tokens(&[&[0; 33]]));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    });
    assert_says(
        &error,
        "the model cannot read input 0: example 0: expected at most 32 tokens, found 33",
    );
}

#[test]
fn vectors_longer_than_the_model_can_read() {
    let error = refused_by("gpt2_plain", |plan| {
        let features = Tensor::zeros([2, 33, 16], &Default::default());
        let input = plan.input(WorldInput::Features(features));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    });
    let cause = TokensError::TooLong {
        example: 0,
        found: 33,
        max_positions: 32,
    };
    assert_eq!(error, PlanError::Input { input: 0, cause });
}

#[test]
fn vectors_without_examples_or_positions() {
    for shape in [[0, 3, 16], [2, 0, 16]] {
        let error = refused(|plan| {
            let features = Tensor::zeros(shape, &Default::default());
            let input = plan.input(WorldInput::Features(features));
            let world = plan.world(input, []);
            plan.read_logits(world, LogitPositions::Last);
        });
        assert!(
            matches!(
                error,
                PlanError::Input {
                    input: 0,
                    cause: TokensError::EmptyBatch | TokensError::EmptyExample { example: 0 }
                }
            ),
            "{error:?}"
        );
    }
}

#[test]
fn vectors_of_another_width() {
    let error = refused(|plan| {
        let features = Tensor::zeros([2, 5, 15], &Default::default());
        let input = plan.input(WorldInput::Features(features));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    });
    let expected = InputKinds {
        tokens: true,
        features: Some(16),
    };
    let found = InputKinds::features(15);
    assert_eq!(
        error,
        PlanError::InputKind {
            input: 0,
            expected,
            found
        }
    );
    assert_says(
        &error,
        "input 0: the model reads token ids, or vectors of 16 features; found vectors of 15 \
         features",
    );
}

#[test]
fn tokens_beside_vectors() {
    let error = refused(|plan| {
        base(plan);
        let features = Tensor::zeros([2, 5, 16], &Default::default());
        plan.input(WorldInput::Features(features));
    });
    assert_eq!(error, PlanError::MixedInputs);
    assert_says(
        &error,
        "expected all inputs to be token ids, all to be vectors, or all to be resumed runs; found \
         several kinds",
    );
}

/// A frozen plan goes on from the residual stream of the model that it was frozen on.
#[test]
fn a_frozen_plan_on_another_model() {
    let model = load::<Flex>("gpt2_plain", &Default::default());
    let other = load::<Flex>("llama_gqa", &Default::default());
    let mut plan = Plan::new();
    let late = Site::Block(1, Component::MlpOutput);
    edited(&mut plan, zero(late, Units::position(2)));
    let options = RunOptions::default();
    let frozen = [&model, &other].map(|model| {
        let frozen = plan.freeze(model, &interventions(), |it| it == ZERO, &options);
        frozen.expect("it can be frozen")
    });
    let counted = Counted::new(other.clone());
    let error = frozen[0].run(&counted, &interventions());
    let error = error.expect_err("refused");
    let naive = frozen[0].run_naively(&counted, &interventions());
    assert_eq!(naive.expect_err("refused"), error);
    let explained = frozen[0].explain(&counted).map(drop);
    assert_eq!(explained.expect_err("refused"), error);
    assert_eq!(counted.stages(), 0);
    assert_says(
        &error,
        "input 0: the plan was frozen on a model with another number of key-value heads: expected \
         4, found 2; run it on the model that it was frozen on, or freeze the whole plan on this \
         one",
    );

    // Of the same sizes, with blocks that are made up differently.
    let error = frozen[0].run(&Counted::new(model.clone()), &interventions());
    let error = error.expect_err("refused");
    let is_of_layout = matches!(
        error,
        PlanError::FrozenMisfit {
            input: 0,
            what: "layout of its layers",
            ..
        }
    );
    assert!(is_of_layout, "{error}");

    // The same model in another dtype.
    let rounded = LoadOptions::default().with_dtype(DType::BF16);
    let folder = checkpoints()["gpt2_plain"].clone();
    let rounded = Decoder::<Flex>::from_pretrained(folder.as_path(), &rounded, &Default::default());
    let rounded = rounded.expect("the fixture loads").model;
    let error = frozen[0].run(&rounded, &interventions());
    let expected = PlanError::FrozenMisfit {
        input: 0,
        what: "dtype",
        expected: "F32".to_owned(),
        found: "BF16".to_owned(),
    };
    assert_eq!(error.expect_err("refused"), expected);

    // Some of the examples run where all of them do.
    let part = frozen[0].examples(&[1]).expect("it has two");
    part.run(&model.clone(), &interventions()).expect("right");
    let error = part.run(&other, &interventions()).expect_err("refused");
    assert!(matches!(error, PlanError::FrozenMisfit { .. }), "{error}");

    // Parts of one plan that were frozen on different models.
    let expected = PlanError::Different {
        what: "number of key-value heads",
        expected: "4".to_owned(),
        found: "2".to_owned(),
    };
    assert_eq!(Plan::join(&frozen).expect_err("refused"), expected);
}

#[test]
fn padding_in_a_tokens_place() {
    let run = |rows: [&'static [u32]; 2], to: Option<Indices>| {
        move |plan: &mut Plan<Flex>| {
            let source = plan.tokens(&tokens(&rows));
            let world = plan.world(source, []);
            let mut edit = Edit::from_world(world, QUERY, Units::head(1), SWAP);
            if let Some(positions) = to.clone() {
                edit.units.positions = positions;
            }
            edited(plan, edit);
        }
    };
    let (three, five): (&[u32], &[u32]) = (&[1, 2, 3], &[1, 2, 3, 4, 5]);
    let error = refused(run([three, five], None));
    let expected = PlanError::PaddingTaken {
        site: QUERY,
        example: 0,
        found: 3,
        pos: 5,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "layer 0 query_output: the source's example 0 has 3 tokens, but the intervention takes all \
         5 positions of the batch, including padding; name the positions, or give source and base \
         the same lengths",
    );
    // The same where the base's positions are listed.
    let lists = each(&[&[0, 1, 2], &[0, 1, 2]]);
    let error = refused(run([three, &[1]], Some(lists)));
    assert!(matches!(
        error,
        PlanError::PaddingTaken {
            example: 1,
            found: 1,
            pos: 3,
            ..
        }
    ));
    // Anything may replace the base's own padding.
    let model = load::<Flex>("gpt2_plain", &Default::default());
    for rows in [[five, three], [five, five]] {
        let mut plan = Plan::new();
        run(rows, None)(&mut plan);
        plan.run(&model, &interventions())
            .expect("no token is lost");
    }
}

#[test]
fn row_budget_below_one_world() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let mut plan = Plan::new();
    swap(&mut plan, OUTPUT, Units::position(0), Units::position(1));
    let options = RunOptions::default().with_max_rows(1);
    let error = plan
        .run_with(&model, &interventions(), &options)
        .expect_err("refused");
    let PlanError::RowBudget {
        needed,
        max_rows: 1,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_says(
        &error,
        &format!(
            "max_rows: expected at least {needed}, for one world with its sources at a time, \
             found 1; raise it, or give fewer examples at a time"
        ),
    );
    assert_eq!(model.stages(), 0);
    let options = RunOptions::default().with_max_rows(needed);
    plan.run_with(&model, &interventions(), &options)
        .expect("enough");
}
