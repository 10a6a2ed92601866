//! Plans that cannot be run: each is rejected before anything is computed.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align::engine::{
    Edit, Indices, InputId, LogitPositions, Operand, Plan, PlanError, RunOptions, Units, WorldId,
    WorldInput,
};
use burn_align::interventions::{BuiltinIntervention, FillIntervention, VanillaIntervention};
use burn_align_models::{Component, InputKinds, Site, TokensError};

use crate::counted::Counted;
use crate::support::{load, message, tokens};

/// `gpt2_plain` and `llama_gqa` have 2 layers, 4 heads, `d_model` 16, 41 tokens and 32 positions.
/// LLaMA has 2 KV heads.
const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];

const OUTPUT: Site = Site::Block(0, Component::BlockOutput);
const QUERY: Site = Site::Block(0, Component::QueryOutput);
const KEY: Site = Site::Block(0, Component::KeyOutput);

/// Index of the intervention that takes a source.
const SWAP: usize = 0;
/// Index of the one that takes none.
const ZERO: usize = 1;

fn interventions() -> [BuiltinIntervention<Flex>; 2] {
    [
        BuiltinIntervention::from(VanillaIntervention),
        BuiltinIntervention::from(FillIntervention::ZERO),
    ]
}

/// The error of a plan, having checked that neither executor computes anything.
fn refused_by(name: &str, build: impl FnOnce(&mut Plan<Flex>)) -> PlanError {
    let model = Counted::new(load::<Flex>(name, &Default::default()));
    let mut plan = Plan::new();
    build(&mut plan);
    let error = plan.run(&model, &interventions()).expect_err("refused");
    let naive = plan.run_naively(&model, &interventions());
    assert_eq!(naive.expect_err("refused"), error);
    // It knows of no interventions.
    let of_interventions = matches!(
        error,
        PlanError::NoSuchIntervention { .. }
            | PlanError::OperandPresence { .. }
            | PlanError::FeatureOutOfRange { .. }
    );
    match plan.explain(&model) {
        Err(other) => assert_eq!(other, error),
        Ok(_) => assert!(of_interventions, "{error}"),
    }
    assert_eq!(model.stages(), 0, "{name}: {error}");
    error
}

/// The error that a plan has on both models.
fn refused(build: impl Fn(&mut Plan<Flex>)) -> PlanError {
    let [error, other] = MODELS.map(|name| refused_by(name, &build));
    assert_eq!(error, other);
    error
}

/// Two examples of 5 and 3 tokens.
fn base(plan: &mut Plan<Flex>) -> InputId {
    plan.tokens(&tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]))
}

/// A world under one edit, and its logits.
fn edited(plan: &mut Plan<Flex>, edit: Edit) {
    let input = base(plan);
    let world = plan.world(input, [edit]);
    plan.read_logits(world, LogitPositions::Last);
}

/// A swap between two worlds on the same input.
fn swap(plan: &mut Plan<Flex>, site: Site, from: Units, to: Units) {
    let input = base(plan);
    let world = plan.world(input, []);
    let operand = Operand::Activation {
        world,
        site,
        units: from,
    };
    edited(plan, Edit::new(site, to, SWAP, operand));
}

fn zero(site: Site, units: Units) -> Edit {
    Edit::new(site, units, ZERO, Operand::None)
}

fn each(positions: &[&[usize]]) -> Indices {
    Indices::Each(positions.iter().map(|list| list.to_vec()).collect())
}

fn assert_says(error: &PlanError, expected: &str) {
    assert_eq!(message(error), expected);
}

/// The first world of another plan that has several.
fn foreign_world(index: usize) -> WorldId {
    let mut other = Plan::<Flex>::new();
    let input = base(&mut other);
    let worlds: Vec<WorldId> = (0..=index).map(|_| other.world(input, [])).collect();
    worlds[index]
}

#[test]
fn a_right_plan_is_computed_and_counted() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let mut plan = Plan::new();
    edited(&mut plan, zero(OUTPUT, Units::position(2)));
    plan.run(&model, &interventions()).expect("right");
    // the embedding, two blocks, the norm and the unembedding
    assert_eq!(model.stages(), 5);
}

#[test]
fn a_site_that_is_named_but_not_tapped() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default())).silent();
    let site = Site::Block(1, Component::MlpInput);
    let (mut edited_there, mut read_there) = (Plan::new(), Plan::new());
    edited(&mut edited_there, zero(site, Units::position(2)));
    let input = base(&mut read_there);
    let world = read_there.world(input, []);
    read_there.read(world, site, Units::position(2));
    for plan in [edited_there, read_there] {
        let error = plan.run(&model, &interventions()).expect_err("refused");
        assert_eq!(
            message(&error),
            "the model never taps the activation at layer 1 mlp_input: call Cx::stream or \
             Cx::heads there, or take it out of the model's ModelLayout"
        );
    }
}

#[test]
fn worlds_that_nobody_reads_are_not_computed() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let mut plan = Plan::new();
    let input = base(&mut plan);
    plan.world(input, [zero(OUTPUT, Units::position(2))]);
    assert_eq!(
        plan.run(&model, &interventions())
            .expect("right")
            .iter()
            .count(),
        0
    );
    assert_eq!(model.stages(), 0);
}

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
        "input 0: the model reads token ids, or vectors of 16 features; found vectors of 15 features",
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

#[test]
fn ids_of_another_plan() {
    let unknown = |what, found, count| PlanError::UnknownId { what, found, count };

    let error = refused(|plan| {
        edited(
            plan,
            Edit::from_world(foreign_world(3), OUTPUT, Units::ALL, SWAP),
        )
    });
    assert_eq!(error, unknown("world", 3, 1));
    assert_says(
        &error,
        "world 3 is not one of the 1 of this plan; ids are only valid in the plan that gave them, \
         and in copies of it",
    );

    let error = refused(|plan| {
        plan.read(foreign_world(2), OUTPUT, Units::ALL);
    });
    assert_eq!(error, unknown("world", 2, 0));

    let error = refused(|plan| {
        plan.read_logits(foreign_world(0), LogitPositions::All);
    });
    assert_eq!(error, unknown("world", 0, 0));

    let error = refused(|plan| {
        let input = base(&mut Plan::new());
        plan.world(input, []);
    });
    assert_eq!(error, unknown("input", 0, 0));

    let error = refused(|plan| {
        let constant = Plan::<Flex>::new().constant(Tensor::zeros([1, 1, 16], &Default::default()));
        let operand = Operand::Constant(constant);
        edited(plan, Edit::new(OUTPUT, Units::ALL, SWAP, operand));
    });
    assert_eq!(error, unknown("constant", 0, 0));
}

/// Plans built the same way have the same indices, but no id in common.
#[test]
fn ids_of_another_plan_that_are_in_range() {
    let unknown = |what| PlanError::UnknownId {
        what,
        found: 0,
        count: 1,
    };
    let edited_by = |operand: Operand| Edit::new(OUTPUT, Units::position(0), SWAP, operand);
    let mut other = Plan::<Flex>::new();
    let other_input = base(&mut other);
    let other_world = other.world(other_input, []);
    let other_constant = other.constant(Tensor::zeros([1, 1, 16], &Default::default()));

    let error = refused(|plan| {
        base(plan);
        plan.world(other_input, []);
    });
    assert_eq!(error, unknown("input"));
    let error = refused(|plan| {
        let input = base(plan);
        plan.world(input, []);
        plan.read_logits(other_world, LogitPositions::Last);
    });
    assert_eq!(error, unknown("world"));
    let error = refused(|plan| {
        plan.constant(Tensor::zeros([1, 1, 16], &Default::default()));
        edited(plan, edited_by(Operand::Constant(other_constant)));
    });
    assert_eq!(error, unknown("constant"));

    // What is added to a copy of a plan does not belong to the original, and vice versa.
    let mut plan = Plan::<Flex>::new();
    let input = base(&mut plan);
    let world = plan.world(input, []);
    let shared = plan.read_logits(world, LogitPositions::Last);
    let mut copy = plan.clone();
    let mine = plan.read_logits(world, LogitPositions::Last);
    let copied = copy.read(world, OUTPUT, Units::position(0));
    let model = load::<Flex>(MODELS[0], &Default::default());
    let [results, copied_results] =
        [&plan, &copy].map(|plan| plan.run(&model, &interventions()).expect("it runs"));
    assert_eq!(
        results.get(shared).dims(),
        copied_results.get(shared).dims()
    );
    assert_eq!(results.get(mine).dims()[2], 41);
    assert_eq!(copied_results.get(copied).dims()[2], 16);
    for (results, read) in [(results.clone(), copied), (copied_results, mine)] {
        let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| results.get(read)));
        let payload = got.expect_err("a mistake in code");
        let said = payload.downcast_ref::<String>().expect("in words");
        assert!(
            said.starts_with("read 1 belongs to a different plan"),
            "{said}"
        );
    }
    // Of some examples, on another device or frozen, it is the same plan.
    let part = plan.examples(&[0]).expect("it has one");
    assert_eq!(
        part.run(&model, &interventions())
            .expect("it runs")
            .get(shared)
            .dims()[0],
        1
    );
    let naive = plan.run_naively(&model, &interventions()).expect("it runs");
    assert_eq!(naive.get(mine).dims(), results.get(mine).dims());
}

/// A frozen plan keeps worlds and reads, but its worlds start elsewhere.
#[test]
fn ids_of_inputs_that_have_been_frozen() {
    let model = load::<Flex>(MODELS[0], &Default::default());
    let mut plan = Plan::<Flex>::new();
    let input = base(&mut plan);
    let late = Site::Block(1, Component::MlpOutput);
    let world = plan.world(input, [zero(late, Units::position(0))]);
    let read = plan.read_logits(world, LogitPositions::Last);
    let options = RunOptions::default();
    let mut frozen = plan
        .freeze(&model, &interventions(), |index| index == ZERO, &options)
        .expect("it can be frozen");
    let expected = plan
        .run(&model, &interventions())
        .expect("it runs")
        .get(read);
    let found = frozen
        .run(&model, &interventions())
        .expect("it runs")
        .get(read);
    let largest = (expected - found).abs().max().into_scalar();
    assert!(largest < 1e-4, "{largest}");
    frozen.world(input, []);
    let error = frozen.run(&model, &interventions()).expect_err("refused");
    assert!(
        matches!(
            error,
            PlanError::UnknownId {
                what: "input",
                found: 0,
                ..
            }
        ),
        "{error}"
    );
}

/// An edit may name a world that is added later, and whose input is another plan's.
#[test]
fn operand_from_a_later_world_on_an_input_of_another_plan() {
    let error = refused(|plan| {
        let mut other = Plan::new();
        base(&mut other);
        let foreign = other.tokens(&tokens(&[&[1]]));
        edited(
            plan,
            Edit::from_world(foreign_world(1), OUTPUT, Units::ALL, SWAP),
        );
        plan.world(foreign, []);
    });
    let expected = PlanError::UnknownId {
        what: "input",
        found: 1,
        count: 1,
    };
    assert_eq!(error, expected);
}

#[test]
fn sites_that_the_model_does_not_have() {
    let deep = Site::Block(2, Component::MlpOutput);
    let rotary = Site::Block(0, Component::RotaryQuery);
    let builds: [fn(&mut Plan<Flex>, Site); 3] = [
        |plan, site| edited(plan, zero(site, Units::ALL)),
        |plan, site| {
            // Only the operand's site is wrong.
            let input = base(plan);
            let world = plan.world(input, []);
            let operand = Operand::Activation {
                world,
                site,
                units: Units::ALL,
            };
            edited(plan, Edit::new(OUTPUT, Units::ALL, SWAP, operand));
        },
        |plan, site| {
            let input = base(plan);
            let world = plan.world(input, []);
            plan.read(world, site, Units::ALL);
        },
    ];
    for build in builds {
        let error = refused_by("llama_gqa", |plan| build(plan, deep));
        let expected = PlanError::NoSuchSite {
            site: deep,
            layers: 2,
            lacks: "",
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "layer 2 mlp_output: the model has no such site; it has 2 layers",
        );

        let error = refused_by("gpt2_plain", |plan| build(plan, rotary));
        let expected = PlanError::NoSuchSite {
            site: rotary,
            layers: 2,
            lacks: " and no rotary embedding",
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "layer 0 rotary_query: the model has no such site; \
             it has 2 layers and no rotary embedding",
        );
    }
}

#[test]
fn head_out_of_range() {
    let error = refused(|plan| edited(plan, zero(QUERY, Units::head(4))));
    let expected = |site, heads| PlanError::HeadOutOfRange {
        site,
        found: heads,
        heads,
    };
    assert_eq!(error, expected(QUERY, 4));
    assert_says(
        &error,
        "layer 0 query_output: expected a head below 4, found 4",
    );
    // Keys have their own heads, and a stream only has the first.
    let error = refused_by("llama_gqa", |plan| edited(plan, zero(KEY, Units::head(2))));
    assert_eq!(error, expected(KEY, 2));
    assert_says(
        &error,
        "layer 0 key_output: expected a key-value head below 2, found 2",
    );
    let error = refused(|plan| edited(plan, zero(OUTPUT, Units::head(1))));
    assert_eq!(error, expected(OUTPUT, 1));
    let heads = each(&[&[0], &[4]]);
    let error = refused(|plan| {
        let units = Units {
            heads: heads.clone(),
            positions: Indices::All,
        };
        edited(plan, zero(QUERY, units));
    });
    assert_eq!(error, expected(QUERY, 4));
}

#[test]
fn position_out_of_range() {
    // Position 3 is past the end of the second example only.
    let error = refused(|plan| edited(plan, zero(OUTPUT, Units::position(3))));
    let expected = |at: &str| PlanError::PositionOutOfRange {
        at: at.to_owned(),
        example: 1,
        found: 3,
        length: 3,
    };
    assert_eq!(error, expected("layer 0 block_output"));
    assert_says(
        &error,
        "layer 0 block_output: example 1 has 3 tokens; expected a position below that, found 3",
    );
    let error = refused(|plan| swap(plan, OUTPUT, Units::position(3), Units::position(2)));
    assert_eq!(error, expected("layer 0 block_output"));
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Each(vec![vec![4], vec![3]]));
    });
    assert_eq!(error, expected("logits"));
}

#[test]
fn indices_for_another_number_of_examples() {
    let expected = |at: &str, found| PlanError::WrongBatch {
        at: at.to_owned(),
        batch: 2,
        found,
    };
    let error = refused(|plan| {
        let units = Units::positions(each(&[&[0], &[0], &[0]]));
        edited(plan, zero(OUTPUT, units));
    });
    assert_eq!(error, expected("layer 0 block_output", 3));
    assert_says(
        &error,
        "layer 0 block_output: expected indices for 2 examples, found 3",
    );
    let error = refused(|plan| {
        let units = Units {
            heads: each(&[]),
            positions: Indices::All,
        };
        edited(plan, zero(QUERY, units));
    });
    assert_eq!(error, expected("heads at layer 0 query_output", 0));
    let error = refused(|plan| {
        let edit = zero(OUTPUT, Units::ALL).with_features(each(&[&[0]]));
        edited(plan, edit);
    });
    assert_eq!(error, expected("features at layer 0 block_output", 1));
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Each(vec![vec![0]]));
    });
    assert_eq!(error, expected("logits", 1));
}

#[test]
fn ragged_units() {
    let error = refused(|plan| {
        let units = Units::positions(each(&[&[0, 1], &[0]]));
        edited(plan, zero(OUTPUT, units));
    });
    let expected = PlanError::RaggedUnits {
        at: "layer 0 block_output".to_owned(),
        example: 1,
        expected: 2,
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "layer 0 block_output: example 1 has 1 unit, the first has 2; \
         every example needs the same number",
    );
}

#[test]
fn no_units() {
    let error = refused(|plan| {
        let units = Units::positions(Indices::Same(Vec::new()));
        edited(plan, zero(OUTPUT, units));
    });
    let at = "layer 0 block_output".to_owned();
    assert_eq!(error, PlanError::NoUnits { at });
    assert_says(
        &error,
        "layer 0 block_output: expected at least one unit, found none",
    );
}

#[test]
fn repeated_unit() {
    let error = refused(|plan| {
        let units = Units::positions(each(&[&[0, 1], &[2, 2]]));
        edited(plan, zero(OUTPUT, units));
    });
    let expected = PlanError::RepeatedUnit {
        at: "layer 0 block_output".to_owned(),
        example: 1,
        found: 2,
    };
    assert_eq!(error, expected);
    assert_says(&error, "layer 0 block_output: example 1 names 2 twice");
}

#[test]
fn operand_of_another_shape() {
    let expected = |expected, found| PlanError::OperandShape {
        site: OUTPUT,
        expected,
        found,
    };
    // Another number of units.
    let two = || Units::positions(Indices::Same(vec![0, 1]));
    let error = refused(|plan| swap(plan, OUTPUT, two(), Units::position(0)));
    assert_eq!(error, expected([2, 1, 16], [2, 2, 16]));
    assert_says(
        &error,
        "layer 0 block_output: the intervention changes [2, 1, 16] [batch, unit, d_site], but its \
         operand is [2, 2, 16]; choose the same number of units of the same width, from the same \
         number of examples",
    );
    // Another width.
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world(input, []);
        let operand = Operand::Activation {
            world,
            site: QUERY,
            units: Units::position(0).of_head(0),
        };
        edited(plan, Edit::new(OUTPUT, Units::position(0), SWAP, operand));
    });
    assert_eq!(error, expected([2, 1, 16], [2, 1, 4]));
    // Another number of examples.
    let error = refused(|plan| {
        let input = plan.tokens(&tokens(&[&[1, 2, 3, 4, 5]]));
        let world = plan.world(input, []);
        edited(
            plan,
            Edit::from_world(world, OUTPUT, Units::position(0), SWAP),
        );
    });
    assert_eq!(error, expected([2, 1, 16], [1, 1, 16]));
    // A constant that does not stretch.
    let error = refused(|plan| {
        let constant = plan.constant(Tensor::zeros([1, 2, 16], &Default::default()));
        let operand = Operand::Constant(constant);
        edited(plan, Edit::new(OUTPUT, Units::ALL, SWAP, operand));
    });
    assert_eq!(error, expected([2, 5, 16], [2, 2, 16]));
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

#[test]
fn no_such_intervention() {
    let error = refused(|plan| edited(plan, Edit::new(OUTPUT, Units::ALL, 2, Operand::None)));
    let expected = PlanError::NoSuchIntervention {
        site: OUTPUT,
        found: 2,
        count: 2,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "layer 0 block_output: intervention 2, but only 2 are given",
    );
}

#[test]
fn feature_out_of_range() {
    let error = refused(|plan| {
        let edit = zero(OUTPUT, Units::ALL).with_features(each(&[&[0], &[15, 16]]));
        edited(plan, edit);
    });
    let expected = |site, example, d_site| PlanError::FeatureOutOfRange {
        site,
        example,
        features: d_site,
        found: d_site,
    };
    assert_eq!(error, expected(OUTPUT, 1, 16));
    assert_says(
        &error,
        "layer 0 block_output: example 1: expected a feature below 16, found 16",
    );
    // Of one head, its own features count.
    let error = refused(|plan| {
        let edit = zero(QUERY, Units::head(1)).with_features(Indices::Same(vec![4]));
        edited(plan, edit);
    });
    assert_eq!(error, expected(QUERY, 0, 4));
}

#[test]
fn operand_missing_or_in_excess() {
    let error = refused(|plan| edited(plan, Edit::new(OUTPUT, Units::ALL, SWAP, Operand::None)));
    let expected = |intervention, needed| PlanError::OperandPresence {
        site: OUTPUT,
        intervention,
        needed,
    };
    assert_eq!(error, expected(SWAP, true));
    assert_says(
        &error,
        "layer 0 block_output: intervention 0 takes a source, but the edit has none",
    );
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world(input, []);
        edited(plan, Edit::from_world(world, OUTPUT, Units::ALL, ZERO));
    });
    assert_eq!(error, expected(ZERO, false));
    assert_says(
        &error,
        "layer 0 block_output: intervention 1 takes no source, but the edit has one",
    );
}

#[test]
fn operands_in_a_circle() {
    // From the edit itself.
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world_with(input, |own| {
            vec![Edit::from_world(own, OUTPUT, Units::ALL, SWAP)]
        });
        plan.read_logits(world, LogitPositions::Last);
    });
    assert_eq!(error, PlanError::Circular { site: OUTPUT });
    assert_says(
        &error,
        "layer 0 block_output: the operand of this edit depends on the edit itself",
    );
    // From a deeper site of the same run.
    let error = refused(|plan| {
        let input = base(plan);
        let world = plan.world_with(input, |world| {
            let operand = Operand::Activation {
                world,
                site: Site::Block(1, Component::BlockOutput),
                units: Units::ALL,
            };
            vec![Edit::new(OUTPUT, Units::ALL, SWAP, operand)]
        });
        plan.read_logits(world, LogitPositions::Last);
    });
    assert_eq!(error, PlanError::Circular { site: OUTPUT });
    // Two worlds from one another, at one site and at two.
    for other in [OUTPUT, KEY] {
        let error = refused(|plan| {
            let input = base(plan);
            let [first, second] = plan.upcoming_worlds(2)[..] else {
                panic!("two ids");
            };
            let from = |world, site, at| {
                let operand = Operand::Activation {
                    world,
                    site,
                    units: Units::position(0).of_head(0),
                };
                Edit::new(at, Units::position(0).of_head(0), SWAP, operand)
            };
            // The second world takes what the first's edit has changed, and the reverse.
            let (at, back) = match other {
                OUTPUT => (OUTPUT, OUTPUT),
                _ => (Site::Block(1, Component::KeyOutput), KEY),
            };
            plan.world(input, [from(second, at, at)]);
            plan.world(input, [from(first, at, back)]);
            plan.read_logits(first, LogitPositions::Last);
        });
        assert!(matches!(error, PlanError::Circular { .. }), "{error:?}");
    }
}

#[test]
fn operands_in_a_circle_that_nobody_reads_are_no_matter() {
    let model = load::<Flex>("gpt2_plain", &Default::default());
    let mut plan = Plan::new();
    let input = base(&mut plan);
    let world = plan.world_with(input, |own| {
        let deep = Site::Block(1, Component::BlockOutput);
        vec![Edit::from_world(own, deep, Units::ALL, SWAP)]
    });
    plan.read(world, OUTPUT, Units::ALL);
    plan.run(&model, &interventions())
        .expect("the edit is past the read");
}
