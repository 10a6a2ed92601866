//! Activations and data from which no direction can be found.

use burn_align::methods::{
    Activations, DirectionData, DirectionError, DirectionMethod, DirectionOptions, find_direction,
};

use super::{SITE, planted, planted_pairs, rows};
use crate::support::message;

#[test]
fn activations_that_are_refused() {
    let rows = |rows: &[&[f64]]| {
        Activations::from_rows(&rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>())
    };
    for (refused, expected) in [
        (
            rows(&[]),
            "expected at least one activation with at least one feature, found none",
        ),
        (
            rows(&[&[], &[]]),
            "expected at least one activation with at least one feature, found none",
        ),
        (
            rows(&[&[1.0, 2.0], &[3.0]]),
            "activation 1: expected 2 features, found 1",
        ),
        (
            rows(&[&[1.0, 2.0], &[3.0, f64::NAN]]),
            "activation 1, feature 1: expected a finite number within the range of f32, found NaN",
        ),
        (
            rows(&[&[1e39]]),
            "activation 0, feature 0: expected a finite number within the range of f32, found \
             1000000000000000000000000000000000000000",
        ),
        (
            rows(&[&[1.0]]).and_then(|one| one.with_prompts(vec![0, 1])),
            "prompts: expected one for each of 1 activations, found 2",
        ),
    ] {
        assert_eq!(message(&refused.expect_err("refused")), expected);
    }

    let three = rows(&[&[1.0, 0.0], &[2.0, 1.0], &[0.0, 3.0]]).expect("finite");
    let two = rows(&[&[1.0, 1.0], &[2.0, 0.0]]).expect("finite");
    let wide = rows(&[&[1.0; 3], &[2.0; 3], &[3.0; 3]]).expect("finite");
    let other = three.clone().with_prompts(vec![0, 5, 2]).expect("three");
    for (refused, expected) in [
        (
            DirectionData::labelled(&three, &[true, false]),
            "labels: expected one for each of 3 activations, found 2",
        ),
        (
            DirectionData::labelled(&three, &[true; 3]),
            "expected positive and negative activations, found no negative ones",
        ),
        (
            DirectionData::labelled(&three, &[false; 3]),
            "expected positive and negative activations, found no positive ones",
        ),
        (
            DirectionData::sets(&three, &wide),
            "negative activations: expected 2 features, found 3",
        ),
        (
            DirectionData::pairs(&three, &two),
            "negative activations: expected one for each of 3 activations, found 2",
        ),
        (
            DirectionData::pairs(&three, &other),
            "pair 1: expected activations of prompts with the same index, found 1 and 5; pass the \
             prompts of both sides in the same order, or use sets instead of pairs",
        ),
    ] {
        assert_eq!(message(&refused.expect_err("refused")), expected);
    }
}

#[test]
fn directions_that_are_refused() {
    let planted = planted(4, 12, 3.0, 2);
    let good = planted_pairs(&planted);
    let method = DirectionMethod::MeanDifference;
    let refused = |data: &DirectionData, method, options: DirectionOptions| {
        let error = find_direction(data, SITE, method, &options).expect_err("refused");
        message(&error)
    };
    for held_out in [0.0, 1.0, -0.1, f64::NAN] {
        let options = DirectionOptions::default().with_held_out(held_out);
        let found = refused(&good, method, options);
        let expected = format!("held_out: expected a fraction between 0 and 1, found {held_out}");
        assert_eq!(found, expected);
    }
    for l2 in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let probe = DirectionMethod::Probe { l2 };
        let found = refused(&good, probe, DirectionOptions::default());
        assert_eq!(
            found,
            format!("l2: expected a finite number above 0, found {l2}")
        );
    }

    let one = rows(&planted.positive[..1]);
    let many = rows(&planted.negative);
    let lonely = DirectionData::sets(&one, &many).expect("sets");
    let found = refused(&lonely, method, DirectionOptions::default());
    assert_eq!(
        found,
        "expected positive activations of more prompts, so that some can be held out; found those \
         of 1 prompt; add prompts"
    );

    let same = DirectionData::pairs(&many, &many).expect("pairs");
    for method in [
        DirectionMethod::MeanDifference,
        DirectionMethod::PrincipalComponent,
        DirectionMethod::PROBE,
    ] {
        let found = refused(&same, method, DirectionOptions::default());
        assert!(found.contains("found no difference"), "{found}");
    }
    let zeros = rows(&vec![vec![0.0; 3]; 8]);
    let zeros = DirectionData::sets(&zeros, &zeros).expect("sets");
    let found = refused(&zeros, DirectionMethod::Random, DirectionOptions::default());
    assert!(found.starts_with("the median norm of the"), "{found}");

    // Differences along two axes, equally long and equally often.
    let corners: Vec<Vec<f64>> = (0..16)
        .map(|index| match index % 2 {
            0 => vec![1.0, 0.0],
            _ => vec![0.0, 1.0],
        })
        .collect();
    let origin = rows(&vec![vec![0.0, 0.0]; 16]);
    // Equal numbers must be left in training: 8 of 16 are drawn, and each seed is another draw.
    let data = DirectionData::pairs(&rows(&corners), &origin).expect("pairs");
    let undetermined = (0..50).filter(|seed| {
        let options = DirectionOptions::default()
            .with_held_out(0.5)
            .with_seed(*seed);
        let found = find_direction(&data, SITE, DirectionMethod::PrincipalComponent, &options);
        found == Err(DirectionError::Undetermined)
    });
    // A draw leaves 4 of each kind with a probability of 0.38.
    assert!((5..35).contains(&undetermined.count()));
}
