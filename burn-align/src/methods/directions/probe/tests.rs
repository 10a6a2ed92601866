//! The optimum of small problems.

use super::*;

const ROWS: [[f64; 3]; 8] = [
    [1.0, 2.0, 0.0],
    [2.0, 1.0, 1.0],
    [3.0, 3.0, 0.0],
    [0.0, 1.0, 2.0],
    [1.5, 0.0, 1.0],
    [2.0, 2.0, 2.0],
    [-1.0, 0.0, 1.0],
    [0.0, -1.0, 0.5],
];
const LABELS: [bool; 8] = [true, true, true, true, false, false, false, false];

fn fitted(rows: &[Vec<f64>], labels: &[bool], l2: f64) -> Result<Vec<f64>, DirectionError> {
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    probe(&rows, labels, l2)
}

fn rows() -> Vec<Vec<f64>> {
    ROWS.map(|row| row.to_vec()).to_vec()
}

/// Minimised with scipy 1.17.1 (`L-BFGS-B`) over the three weights and the bias.
#[test]
fn the_optimum_is_that_of_another_method() {
    for (l2, expected) in [
        (1.0, [0.06737548, 0.80108619, -0.31358833]),
        (0.1, [-0.29705882, 1.57443542, -0.87546747]),
    ] {
        let found = fitted(&rows(), &LABELS, l2).expect("it converges");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{l2}: {found} {expected}");
        }
    }
}

/// Weights do not depend on where the origin is, and turn with the rows.
#[test]
fn the_bias_is_free() {
    let expected = fitted(&rows(), &LABELS, 1.0).expect("it converges");
    let mut moved = rows();
    for row in &mut moved {
        row[0] += 1e4;
        row.swap(1, 2);
    }
    let found = fitted(&moved, &LABELS, 1.0).expect("it converges");
    for (found, expected) in [(0, 0), (1, 2), (2, 1)].map(|(a, b)| (found[a], expected[b])) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

/// Classes that can be told apart: without a penalty there would be no optimum.
#[test]
fn separable_classes_at_any_scale() {
    for scale in [1e-3, 1.0, 1e3] {
        for l2 in [1e-6, 1.0, 1e6] {
            let rows: Vec<Vec<f64>> = (0..40)
                .map(|row| {
                    let sign = if row < 15 { 1.0 } else { -1.0 };
                    let noise = |feature: usize| ((row * 37 + feature * 11) % 17) as f64 / 17.0;
                    (0..64)
                        .map(|feature| match feature {
                            0 => scale * (2.0 * sign + noise(0)),
                            feature => scale * noise(feature),
                        })
                        .collect()
                })
                .collect();
            let labels: Vec<bool> = (0..40).map(|row| row < 15).collect();
            let found = fitted(&rows, &labels, l2).expect("it converges");
            let scores: Vec<f64> = rows.iter().map(|row| dot(row, &found)).collect();
            let lowest = scores[..15].iter().copied().fold(f64::INFINITY, f64::min);
            let highest = scores[15..]
                .iter()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            assert!(lowest > highest, "{scale} {l2}: {lowest} {highest}");
        }
    }
}

#[test]
fn equal_means_give_no_direction() {
    let rows = [1.0, -1.0, 1.0, -1.0].map(|x| vec![x, 2.0]).to_vec();
    let error = fitted(&rows, &[true, true, false, false], 1.0).expect_err("refused");
    assert!(
        matches!(error, DirectionError::NoDifference { .. }),
        "{error:?}"
    );
}
