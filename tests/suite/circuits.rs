//! Circuits: the residual graph, scores of its edges, and what is made of them.

mod acdc;
mod choosing;
mod evaluate;
mod files;
mod graph;
mod grids;
mod identities;
mod learning;
mod linear;
mod narrowed;
mod parts;
mod planted;
mod recursion;
mod reference;
mod refused;
mod requests;
mod tracer;

use burn::tensor::backend::Backend;
use burn_align::methods::attribution::{LogitDifference, Patching};
use burn_align_models::TokenBatch;

use crate::support::tokens;

fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6, 5, 3]])
}

fn source() -> TokenBatch {
    tokens(&[&[2, 7, 1, 8, 2], &[8, 1, 8, 2, 8]])
}

fn metric() -> LogitDifference {
    LogitDifference::new([5, 30], [17, 2])
}

fn noising<B: Backend>() -> Patching<B> {
    Patching::noising(base(), source())
}

/// Prompts of different lengths, the longest in the middle.
fn ragged<B: Backend>() -> Patching<B> {
    let base: [&[u32]; 3] = [&[3, 1, 4], &[9, 2, 6, 5, 3, 5], &[1, 2, 3, 4]];
    let source: [&[u32]; 3] = [&[3, 7, 1], &[8, 1, 6, 2, 8, 4], &[1, 4, 3, 2]];
    Patching::noising(tokens(&base), tokens(&source))
}

fn ragged_metric() -> LogitDifference {
    LogitDifference::new([5, 30, 7], [17, 2, 11])
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

/// Asserts that scores agree, relative to the largest one.
#[track_caller]
fn assert_scores(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = largest(expected);
    assert!(scale > 1e-3, "{what}: all scores are about 0");
    for (edge, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found - expected).abs();
        assert!(
            off <= tolerance * scale,
            "{what}, edge {edge}: expected {expected}, found {found}; the largest is {scale}"
        );
    }
}
