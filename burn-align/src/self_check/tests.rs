//! The host's side of the check, by hand.

use burn::tensor::DType;

use super::array::Array;
use super::reference;
use super::{Check, Finding, Operation, Report};

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    assert!(
        pairs.clone().all(|(a, b)| (a - b).abs() < 1e-9),
        "{found:?}, expected {expected:?}"
    );
}

#[test]
fn products_and_swaps_are_those_on_paper() {
    let x = [1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, -1.0]; // [2, 2, 2]
    let y = [5.0, 6.0, 7.0, 8.0]; // [2, 2, 1]
    assert_eq!(
        reference::product(&x, &y, [2, 2, 1]),
        [17.0, 39.0, 7.0, -8.0]
    );
    let matrix = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
    let transposed = reference::transposed(&matrix, [2, 3]);
    assert_eq!(transposed, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(
        reference::swapped(&x, [2, 2, 1]),
        [1.0, 3.0, 2.0, 4.0, 1.0, 0.0, 0.0, -1.0]
    );
    assert_eq!(reference::sums(&matrix, [2, 3]), [5.0, 7.0, 9.0]);
    assert_eq!(reference::sums(&matrix, [3, 1]), [6.0, 15.0]);
}

#[test]
fn queries_see_what_is_before_them_in_their_window() {
    let hidden = |sizes, window| -> Vec<bool> {
        let [q_pos, k_pos]: [usize; 2] = sizes;
        let masked = reference::masked(&vec![0.0; q_pos * k_pos], sizes, window);
        masked.iter().map(|score| score.is_infinite()).collect()
    };
    let (seen, gone) = (false, true);
    assert_eq!(hidden([2, 2], None), [seen, gone, seen, seen]);
    assert_eq!(hidden([1, 3], None), [seen, seen, seen]);
    assert_eq!(
        hidden([2, 3], Some(2)),
        [seen, seen, gone, gone, seen, seen]
    );
    let half = (0.5_f64).ln();
    let weights = reference::softmax(&[0.0, half, f64::NEG_INFINITY], 3);
    assert_close(&weights, &[2.0 / 3.0, 1.0 / 3.0, 0.0]);
}

#[test]
fn attention_mixes_values_by_softmax() {
    // Keys of 0 weigh all values alike.
    let q = [1.0, -1.0];
    let mixed = reference::attention([&q, &[0.0, 0.0], &[2.0, 4.0]], [2, 2, 1]);
    assert_close(&mixed, &[2.0, 3.0]);
    // A score of ln 3 at d_head = 4, where the scale is 1/2.
    let (q, k) = (
        [2.0 * 3_f64.ln(), 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
    );
    let v = [4.0, 0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0];
    assert_close(
        &reference::attention([&q, &k, &v], [1, 2, 4]),
        &[7.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn norms_and_rotations_are_those_on_paper() {
    let root = 2.5_f64.sqrt();
    assert_close(
        &reference::rms_norm(&[1.0, 2.0], &[1.0, 3.0], 0.0),
        &[1.0 / root, 6.0 / root],
    );
    let normed = reference::layer_norm(&[1.0, 3.0], &[2.0, 1.0], &[0.5, 0.0], 0.0);
    assert_close(&normed, &[-1.5, 1.0]);
    // The first position is not rotated, the second by one radian.
    let rotated = reference::rotated(&[1.0, 0.0, 1.0, 0.0], [2, 2], 10_000.0);
    let (sin, cos) = 1_f64.sin_cos();
    assert_close(&rotated, &[1.0, 0.0, cos, sin]);
}

#[test]
fn drawn_values_fill_their_range_and_fit_their_dtype() {
    let x = Array::drawn(&[10_000], 1, 2.0, DType::F32);
    let mean = x.values.iter().sum::<f64>() / 10_000.0;
    let square = x.values.iter().map(|value| value * value).sum::<f64>() / 10_000.0;
    assert!(mean.abs() < 0.05, "{mean}");
    assert!((square - 4.0 / 3.0).abs() < 0.05, "{square}");
    assert!(x.values.iter().all(|value| value.abs() <= 2.0));
    let other = Array::drawn(&[10_000], 2, 2.0, DType::F32);
    assert_ne!(x.values, other.values);
    let rounded = Array::new(&[2], &[1.0 + 1.0 / 512.0, -3.0], DType::BF16);
    assert_eq!(rounded.values, [1.0, -3.0]);
}

#[test]
fn findings_are_judged_by_the_largest_value() {
    let judge = |found: Vec<f64>| Finding::of(Ok(found), &[4.0, -2.0], 0.1);
    assert_eq!(
        judge(vec![4.2, -2.0]),
        Finding::Right {
            error: (4.2 - 4.0) / 4.0
        }
    );
    assert_eq!(
        judge(vec![4.0, 2.0]),
        Finding::Wrong {
            error: 1.0,
            allowed: 0.1
        }
    );
    assert_eq!(
        judge(vec![f64::NAN, f64::INFINITY]),
        Finding::NotFinite { count: 2, of: 2 }
    );
    assert!(matches!(judge(vec![4.0]), Finding::Stopped { .. }));
    let stopped = Finding::of(Err("no memory".to_owned()), &[1.0], 0.1);
    assert_eq!(stopped.to_string(), "the backend stopped: no memory");
}

#[test]
fn reports_name_operation_sizes_and_known_faults() {
    let check = |operation, sizes: [[usize; 2]; 2], finding| Check {
        operation,
        sizes: sizes.map(|size| size.to_vec()).to_vec(),
        dtype: DType::F32,
        finding,
    };
    let right = Finding::Right { error: 1e-6 };
    let wrong = Finding::Wrong {
        error: 0.88,
        allowed: 4e-3,
    };
    let report = Report {
        checks: vec![
            check(Operation::Product, [[5, 64], [64, 40]], right),
            check(Operation::ColumnProduct, [[4, 3], [3, 1]], wrong),
        ],
    };
    assert!(!report.passed());
    let text = report.to_string();
    for part in [
        "1 of 2 checks failed",
        "matrix product with one column, [4, 3] × [3, 1] in f32: off by 8.8e-1",
        "tracel-ai/burn#5122",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("TF32"), "{text}");
    let imprecise = Report {
        checks: vec![check(
            Operation::Product,
            [[5, 64], [64, 40]],
            Finding::Right { error: 4e-4 },
        )],
    };
    let text = imprecise.to_string();
    assert!(
        text.starts_with("all 1 checks passed") && text.contains("TF32"),
        "{text}"
    );
    let json = serde_json::to_string(&report).expect("plain data");
    assert_eq!(
        serde_json::from_str::<Report>(&json).expect("the same"),
        report
    );
}
