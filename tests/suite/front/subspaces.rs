//! Subspaces, and the parts of features that they name.

use burn_align::engine::PlanError;
use burn_align::front::{AlignError, Mode, Subspaces, Unit};
use burn_align_models::{Component, Site};
use serde_json::json;

use super::{assert_says, at, config_refused, inputs, output, parallel};

#[test]
fn subspaces_for_another_number_of_representations_or_examples() {
    let whole: Option<Vec<Vec<usize>>> = None;
    let wrong = inputs(1).with_subspaces(Subspaces::Each(vec![whole.clone()]));
    let error = parallel([output(), output()], &wrong);
    let expected = AlignError::SubspaceCount {
        what: "representations",
        expected: 2,
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "subspaces: expected entries for 2 representations, found 1",
    );
    let wrong = inputs(1).with_subspaces(Subspaces::Each(vec![whole, Some(vec![vec![0]])]));
    let error = parallel([output(), output()], &wrong);
    let expected = AlignError::SubspaceCount {
        what: "examples",
        expected: 2,
        found: 1,
    };
    assert_eq!(error, expected);
    assert_says(
        &error,
        "subspaces: expected entries for 2 examples, found 1",
    );
}

#[test]
fn subspace_that_the_partition_does_not_have() {
    let halves = output().with_subspace_partition(vec![vec![0, 8], vec![8, 16]]);
    for subspaces in [
        Subspaces::Everywhere(vec![0, 2]),
        Subspaces::Each(vec![Some(vec![vec![1], vec![2]])]),
    ] {
        let error = parallel([halves.clone()], &inputs(1).with_subspaces(subspaces));
        let expected = AlignError::NoSuchPart {
            representation: 0,
            parts: 2,
            found: 2,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "subspaces of representation 0: expected an index below 2, the number of parts of its \
             subspace_partition; found 2",
        );
    }
}

#[test]
fn subspace_of_features_that_the_site_does_not_have() {
    let site = Site::Block(0, Component::BlockOutput);
    let error = parallel(
        [output()],
        &inputs(1).with_subspaces(Subspaces::Everywhere(vec![16])),
    );
    let expected = PlanError::FeatureOutOfRange {
        site,
        example: 0,
        features: 16,
        found: 16,
    };
    assert_eq!(error, AlignError::Plan(expected));
}

#[test]
fn part_of_features_that_the_site_does_not_have() {
    for part in [
        vec![8, 17],
        vec![0, usize::MAX],
        vec![usize::MAX - 1, usize::MAX],
        vec![0, 1, 16],
        vec![16],
        // Two numbers are a range, and this one is empty.
        vec![8, 0],
    ] {
        let parts = vec![vec![0, 16], vec![16, 16], vec![], part.clone()];
        let error = config_refused([output().with_subspace_partition(parts)], Mode::Parallel);
        assert_says(
            &error,
            &format!(
                "representation 0: part 3 of subspace_partition: expected features below 16, or a \
                 range [from, to] within them, found {part:?}"
            ),
        );
        let expected = AlignError::NoSuchFeatures {
            representation: 0,
            part: 3,
            features: 16,
            found: part,
        };
        assert_eq!(error, expected);
    }
    // A part may be too wide for one head, yet not for all of them.
    let heads = at(0, Component::QueryOutput)
        .with_unit(Unit::Head)
        .with_subspace_partition(vec![vec![4, 8]]);
    let error = parallel(
        [heads],
        &inputs(1).with_subspaces(Subspaces::Everywhere(vec![0])),
    );
    assert!(matches!(
        error,
        AlignError::Plan(PlanError::FeatureOutOfRange {
            features: 4,
            found: 4,
            ..
        })
    ));
}

#[test]
fn malformed_subspaces() {
    for json in [json!("0"), json!({}), json!([[0]]), json!(-1), json!(true)] {
        let error = Subspaces::try_from(&json).expect_err("refused");
        let found = json.to_string();
        assert_says(
            &error,
            &format!(
                "subspaces: expected null, one id, or [representation][batch][id]; found {found}"
            ),
        );
        assert_eq!(error, AlignError::MalformedSubspaces { found });
    }
}
