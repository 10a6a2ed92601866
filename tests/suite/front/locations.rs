//! Locations: their number, their form, and what they are in text.

use burn_align::engine::{Indices, PlanError};
use burn_align::front::{
    AlignError, AlignableConfig, AlignableModel, Locations, Mode, RepresentationLocations, Unit,
    UnitLocations,
};
use burn_align_models::Component;
use serde_json::json;

use super::{
    assert_says, at, config_refused, inputs, model, output, parallel, refused, sides, units,
};
use crate::support::message;

#[test]
fn locations_for_another_number_of_representations() {
    let two = || vec![units(&[&[0], &[0]]), units(&[&[1], &[1]])];
    let three = || vec![units(&[&[0], &[0]]), None, None];
    for locations in [sides(three(), two()), sides(two(), three())] {
        let error = parallel([output(), output()], &inputs(2).with_locations(locations));
        let expected = AlignError::LocationCount {
            expected: 2,
            found: 3,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "unit locations: expected entries for 2 representations, found 3",
        );
    }
    // Each link of a chain has one.
    let link = || (Some(Locations::Each(two())), Locations::from(0));
    let chain = UnitLocations::Chain(vec![link(), link()]);
    let error = refused(
        [output(), output()],
        Mode::Serial,
        &inputs(2).with_locations(chain),
    );
    let expected = AlignError::LocationCount {
        expected: 1,
        found: 2,
    };
    assert_eq!(error, expected);
}

#[test]
fn locations_of_the_wrong_form_for_the_unit() {
    let query = |unit| at(0, Component::QueryOutput).with_unit(unit);
    let pairs = || {
        let rows = vec![vec![0], vec![0]];
        let pair =
            RepresentationLocations::HeadsAndPositions([rows.clone(), rows].map(Indices::Each));
        sides(vec![Some(pair.clone())], vec![Some(pair)])
    };
    let lists = || sides(vec![units(&[&[0], &[0]])], vec![units(&[&[0], &[0]])]);
    let both = "heads and positions, [[batch][unit], [batch][unit]]";
    for (unit, locations, expected) in [
        (Unit::Pos, pairs(), "[batch][unit]"),
        (Unit::Head, pairs(), "[batch][unit]"),
        (Unit::HeadPos, lists(), both),
        (Unit::HeadPos, UnitLocations::from(0), both),
    ] {
        let error = parallel([query(unit)], &inputs(1).with_locations(locations));
        let wanted = AlignError::LocationShape {
            representation: 0,
            unit,
            expected,
        };
        assert_eq!(error, wanted);
        assert_says(
            &error,
            &format!("unit locations of representation 0: unit `{unit}` needs {expected}"),
        );
    }
}

#[test]
fn time_steps() {
    let steps = || output().with_unit(Unit::Step);
    let error = config_refused([steps()], Mode::Parallel);
    assert_eq!(error, AlignError::NoTimeSteps { representation: 0 });
    assert_says(
        &error,
        "representation 0: unit `t` needs a recurrent model (its layers must be time steps); \
         expected unit `pos`, `h` or `h.pos`, found `t`",
    );
    // In a recurrent model, each location is one step, the same in every example.
    let config = AlignableConfig::new([steps()]);
    let model = AlignableModel::new(config, model("gpt2_plain").recurrent()).expect("right");
    let refused = |locations| {
        let error = model.forward_inputs(&inputs(1).with_locations(locations));
        error.expect_err("refused")
    };
    let of = |rows: &[&[usize]]| sides(vec![units(rows)], vec![units(rows)]);
    for locations in [
        UnitLocations::Whole,
        of(&[&[0, 1], &[0, 1]]),
        of(&[&[0], &[1]]),
    ] {
        let error = refused(locations);
        assert_says(
            &error,
            "unit locations of representation 0: unit `t` needs one time step, the same in every \
             example",
        );
    }
    let error = refused(UnitLocations::from(2));
    assert!(matches!(
        error,
        AlignError::Plan(PlanError::NoSuchSite { layers: 2, .. })
    ));
    assert_eq!(model.model().stages(), 0);
}

#[test]
fn locations_on_one_side_only() {
    let here = || vec![units(&[&[1], &[1]])];
    for (locations, given) in [
        (sides(here(), vec![None]), "source"),
        (sides(vec![None], here()), "base"),
        (UnitLocations::base(1), "base"),
    ] {
        let error = parallel([output()], &inputs(1).with_locations(locations));
        let expected = AlignError::OneSided {
            representation: 0,
            given,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            &format!(
                "unit locations of representation 0: given for the {given} only; \
                 give both, or neither to leave the representation as it is"
            ),
        );
    }
}

#[test]
fn chains_where_there_are_none_and_of_another_length() {
    let link = || (Some(Locations::from(0)), Locations::from(0));
    let one = UnitLocations::Chain(vec![link()]);
    let error = parallel([output()], &inputs(1).with_locations(one.clone()));
    let expected = AlignError::WrongChain {
        expected: "\"sources->base\" in parallel mode".to_owned(),
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "unit locations: expected \"sources->base\" in parallel mode, found a chain of 1 links",
    );
    let error = refused(
        [output(), output()],
        Mode::Serial,
        &inputs(2).with_locations(one),
    );
    let expected = AlignError::WrongChain {
        expected: "a link for each of 2 representations".to_owned(),
        found: 1,
    };
    assert_eq!(error, expected);
}

#[test]
fn malformed_locations() {
    for (json, key) in [
        (json!(4), "unit_locations"),
        (json!([]), "unit_locations"),
        (json!({}), "unit_locations"),
        (json!({"sources->base": null}), "sources->base"),
        (json!({"sources->base": [1]}), "sources->base"),
        (json!({"sources->base": [1, null]}), "sources->base"),
        (json!({"sources->base": [1, 2, 3]}), "sources->base"),
        (json!({"sources->base": ["1", 2]}), "sources->base"),
        (json!({"sources->base": [-1, 2]}), "sources->base"),
        (json!({"sources->base": [[[1]], [[1]]]}), "sources->base"),
        (json!({"sources->base": 1, "base": 2}), "base"),
        (json!({"base": null}), "base"),
    ] {
        let error = UnitLocations::try_from(&json).expect_err("refused");
        let found = json.get(key).unwrap_or(&json).to_string();
        assert_eq!(
            message(&error),
            format!(
                "{key}: expected null or {{\"sources->base\": [source, base]}} with sides \
                 [representation][batch][unit] (serial: \"source_0->source_1\", …, \
                 \"source_n->base\"), found {found}"
            )
        );
        let key = key.to_owned();
        assert_eq!(error, AlignError::MalformedLocations { key, found });
    }
}
