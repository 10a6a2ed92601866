//! Ids of inputs and worlds that belong to another plan.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align::engine::{Edit, LogitPositions, Operand, Plan, PlanError, RunOptions, Units};
use burn_align_models::{Component, Site};

use super::{
    MODELS, OUTPUT, SWAP, ZERO, assert_says, base, edited, foreign_world, interventions, refused,
    zero,
};
use crate::support::{load, tokens};

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
