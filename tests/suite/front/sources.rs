//! Sources that do not fit the base or the configuration.

use burn::tensor::Tensor;
use burn_align::engine::PlanError;
use burn_align::front::{AlignError, InterventionType, Mode, Source};
use burn_align_models::{Component, Site};

use super::{assert_says, inputs, output, parallel, refused, source};
use crate::support::tokens;

#[test]
fn another_number_of_sources() {
    for found in [0, 2, 4] {
        let error = parallel([output(), output(), output()], &inputs(found));
        let expected = AlignError::WrongSourceCount {
            expected: 3,
            one_allowed: true,
            found,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            &format!("expected 3 sources (or one for all), found {found}"),
        );
    }
    // Groups share a source.
    let grouped = [0, 1, 0].map(|key| output().with_group(key));
    let error = parallel(grouped, &inputs(3));
    assert_says(&error, "expected 2 sources (or one for all), found 3");
    // In serial mode one is not enough.
    for found in [0, 1, 3] {
        let error = refused([output(), output()], Mode::Serial, &inputs(found));
        let expected = AlignError::WrongSourceCount {
            expected: 2,
            one_allowed: false,
            found,
        };
        assert_eq!(error, expected);
        assert_says(&error, &format!("expected 2 sources, found {found}"));
    }
    // Unused sources are also counted.
    let zero = || output().with_intervention(InterventionType::Zero);
    let error = parallel([zero(), zero(), zero()], &inputs(2));
    assert_says(&error, "expected 3 sources (or one for all), found 2");
}

#[test]
fn absent_source() {
    let zero = output().with_intervention(InterventionType::Zero);
    let wrong = inputs(0).with_sources([Source::Absent, Source::Absent]);
    let error = parallel([zero, output()], &wrong);
    let expected = AlignError::AbsentSource {
        group: 1,
        representation: 1,
    };
    assert_eq!(error, expected);
    assert_says(&error, "source 1 is absent, but representation 1 takes one");
    let wrong = inputs(0).with_sources([Source::from(source()), Source::Absent]);
    let error = refused([output(), output()], Mode::Serial, &wrong);
    assert_eq!(error, expected);
}

#[test]
fn batch_mismatch() {
    let wrong = inputs(0).with_sources([source(), tokens(&[&[1, 2, 3]])]);
    for mode in [Mode::Parallel, Mode::Serial] {
        let error = refused([output(), output()], mode, &wrong);
        let expected = AlignError::BatchMismatch {
            source_index: 1,
            expected: 2,
            found: 1,
        };
        assert_eq!(error, expected);
        assert_says(
            &error,
            "source 1 has 1 example; expected 2, as many as the base",
        );
    }
}

#[test]
fn values_of_another_shape() {
    let values = Tensor::zeros([1, 2, 16], &Default::default());
    let error = parallel(
        [output()],
        &inputs(0).with_sources([Source::Values(values)]),
    );
    let expected = PlanError::OperandShape {
        site: Site::Block(0, Component::BlockOutput),
        expected: [2, 1, 16],
        found: [2, 2, 16],
    };
    assert_eq!(error, AlignError::Plan(expected));
}
