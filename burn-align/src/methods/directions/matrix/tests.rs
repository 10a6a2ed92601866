//! Small matrices by hand.

use super::*;

fn symmetric<const N: usize>(rows: [[f64; N]; N]) -> Symmetric {
    Symmetric {
        size: N,
        values: rows.concat(),
    }
}

#[test]
fn products_of_any_length() {
    for length in 0..40_u32 {
        let a: Vec<f64> = (0..length).map(f64::from).collect();
        let n = f64::from(length);
        let expected = (n - 1.0) * n * (2.0 * n - 1.0) / 6.0;
        assert_eq!(dot(&a, &a), expected);
    }
    let rows: [&[f64]; 2] = [&[1.0, 2.0], &[3.0, -1.0]];
    let gram = Symmetric::gram(&rows);
    assert_eq!(gram.values, [5.0, 1.0, 1.0, 10.0]);
    assert_eq!(gram.trace(), 15.0);
    assert_eq!(gram.times(&[1.0, 2.0]), [7.0, 21.0]);
    assert_eq!(weighted_sum(&rows, &[2.0, 1.0]), [5.0, 3.0]);
}

#[test]
fn systems_are_solved() {
    let matrix = symmetric([[4.0, 2.0, 1.0], [2.0, 5.0, 3.0], [1.0, 3.0, 6.0]]);
    let product = matrix.times(&[1.0, -2.0, 0.5]);
    let solved = matrix.clone().cholesky().expect("positive").solve(product);
    for (found, expected) in solved.iter().zip([1.0, -2.0, 0.5]) {
        assert!((found - expected).abs() < 1e-14, "{solved:?}");
    }
    let shifted = matrix.scaled_and_shifted(&[1.0, 2.0, 0.0], 10.0);
    let expected = [[14.0, 4.0, 0.0], [4.0, 30.0, 0.0], [0.0, 0.0, 10.0]];
    assert_eq!(shifted.values, expected.concat());
    assert!(symmetric([[1.0, 2.0], [2.0, 1.0]]).cholesky().is_none());
}

#[test]
fn first_eigenvectors() {
    // Eigenvalues 3 and 1.
    let found = symmetric([[2.0, 1.0], [1.0, 2.0]]).first_eigenvector();
    let found = found.expect("one is larger");
    assert!((norm(&found) - 1.0).abs() < 1e-14);
    assert!((found[0] - found[1]).abs() < 1e-12, "{found:?}");
    // Nearly equal ones.
    let close = symmetric([[1.0, 0.0], [0.0, 1.0 + 1e-6]]).first_eigenvector();
    let close = close.expect("one is larger");
    assert!(close[0].abs() < 1e-9 && close[1].abs() > 1.0 - 1e-9);
    let zero = [[0.0, 0.0, 0.0], [0.0, 1e-30, 0.0], [0.0, 0.0, 1e-20]];
    let tiny = symmetric(zero).first_eigenvector().expect("one is larger");
    assert!(tiny[2].abs() > 1.0 - 1e-12, "{tiny:?}");
    let single = symmetric([[7.0]]).first_eigenvector();
    assert_eq!(single, Some(vec![1.0]));
    let equal = symmetric([[2.0, 0.0], [0.0, 2.0]]).first_eigenvector();
    assert_eq!(equal, None);
}
