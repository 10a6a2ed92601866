//! Interventions, their features and their operands.

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, PlanError, Units};
use burn_align_models::{Component, Site};

use super::{
    KEY, OUTPUT, QUERY, SWAP, ZERO, assert_says, base, each, edited, interventions, refused, swap,
    zero,
};
use crate::support::{load, tokens};

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
