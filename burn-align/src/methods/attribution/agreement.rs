//! An estimate beside the exact answer.

use super::statistics::{pearson, spearman};
use super::{AttributionError, NodeEffects};

/// How well an estimate agrees with the exact effects of the same nodes, as means over examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Spearman's rank correlation of the effects; `None` if all effects are equal.
    pub spearman: Option<f64>,
    /// Spearman's rank correlation of their magnitudes: whether the same nodes are found, whatever
    /// the sign.
    pub spearman_of_magnitudes: Option<f64>,
    /// Pearson's correlation of the effects.
    pub pearson: Option<f64>,
    /// All nodes, those first whose estimate is furthest from the exact effect.
    pub misses: Vec<Miss>,
}

/// A node whose estimate is off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Miss {
    /// Index of the node.
    pub node: usize,
    /// Its estimated effect.
    pub approximate: f64,
    /// Its exact effect.
    pub exact: f64,
    /// Its place by the magnitude of the estimate, from 0 for the largest.
    pub approximate_rank: usize,
    /// Its place by the magnitude of the exact effect.
    pub exact_rank: usize,
}

impl Miss {
    /// By how much the estimate is off.
    pub fn error(&self) -> f64 {
        self.approximate - self.exact
    }
}

/// Compares an estimate with exact effects: rank correlations, and the largest misses.
///
/// # When it misleads
/// A rank correlation weighs all nodes alike, and most have hardly any effect: look at the misses
/// too. Estimates by GradDrop are magnitudes, so only the correlation of magnitudes means something
/// for them.
///
/// # Errors
/// If they are not effects of equally many nodes.
pub fn compare(
    approximate: &NodeEffects,
    exact: &NodeEffects,
) -> Result<Agreement, AttributionError> {
    let count = exact.effects.len();
    if approximate.effects.len() != count {
        return Err(AttributionError::Nodes {
            approximate: approximate.effects.len(),
            exact: count,
        });
    }
    let places = |effects: &NodeEffects| {
        let mut places = vec![0; count];
        for (place, (node, _)) in effects.ranked().into_iter().enumerate() {
            places[node] = place;
        }
        places
    };
    let (approximate_places, exact_places) = (places(approximate), places(exact));
    let (estimates, effects) = (approximate.means(), exact.means());
    let mut misses: Vec<Miss> = (0..count)
        .map(|node| Miss {
            node,
            approximate: estimates[node],
            exact: effects[node],
            approximate_rank: approximate_places[node],
            exact_rank: exact_places[node],
        })
        .collect();
    misses.sort_by(|a, b| b.error().abs().total_cmp(&a.error().abs()));
    let magnitudes = |values: &[f64]| -> Vec<f64> { values.iter().map(|it| it.abs()).collect() };
    Ok(Agreement {
        spearman: spearman(&estimates, &effects),
        spearman_of_magnitudes: spearman(&magnitudes(&estimates), &magnitudes(&effects)),
        pearson: pearson(&estimates, &effects),
        misses,
    })
}
