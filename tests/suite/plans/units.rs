//! Sites, heads and positions that are not there.

use burn::backend::Flex;
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, PlanError, Units};
use burn_align_models::{Component, Site};

use super::{
    KEY, OUTPUT, QUERY, SWAP, assert_says, base, each, edited, refused, refused_by, swap, zero,
};

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
