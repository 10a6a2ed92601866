//! An estimate beside the exact answer.

use super::effects::ranked;
use super::statistics::{pearson, spearman};
use super::{AttributionError, NodeEffects};

/// How well an estimate agrees with the exact effects of the same nodes or edges, as means over
/// examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Spearman's rank correlation of the effects; `None` if all effects are equal.
    pub spearman: Option<f64>,
    /// Spearman's rank correlation of their magnitudes: whether the same ones are found, whatever
    /// the sign.
    pub spearman_of_magnitudes: Option<f64>,
    /// Pearson's correlation of the effects.
    pub pearson: Option<f64>,
    /// All of them, those first whose estimate is furthest from the exact effect.
    pub misses: Vec<Miss>,
}

/// A node or an edge whose estimate is off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Miss {
    /// Index of the node or edge.
    pub index: usize,
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
    Ok(Agreement::of(&approximate.means(), &exact.means()))
}

impl Agreement {
    /// Compares estimates with exact effects, for example scores of edges of which only some were
    /// [patched](crate::methods::circuits::patch_edges). See [`compare`].
    ///
    /// # When it misleads
    /// Edges that were chosen by the estimate are those that it finds large: among them alone, the
    /// correlation says nothing about what it has missed.
    ///
    /// # Panics
    /// If there are more estimates than effects, or fewer.
    pub fn of(estimates: &[f64], effects: &[f64]) -> Self {
        let count = effects.len();
        assert_eq!(estimates.len(), count, "an estimate for each effect");
        let places = |values: &[f64]| {
            let mut places = vec![0; count];
            for (place, (index, _)) in ranked(values.to_vec()).into_iter().enumerate() {
                places[index] = place;
            }
            places
        };
        let (approximate_places, exact_places) = (places(estimates), places(effects));
        let mut misses: Vec<Miss> = (0..count)
            .map(|index| Miss {
                index,
                approximate: estimates[index],
                exact: effects[index],
                approximate_rank: approximate_places[index],
                exact_rank: exact_places[index],
            })
            .collect();
        misses.sort_by(|a, b| b.error().abs().total_cmp(&a.error().abs()));
        let magnitudes =
            |values: &[f64]| -> Vec<f64> { values.iter().map(|it| it.abs()).collect() };
        Self {
            spearman: spearman(estimates, effects),
            spearman_of_magnitudes: spearman(&magnitudes(estimates), &magnitudes(effects)),
            pearson: pearson(estimates, effects),
            misses,
        }
    }
}
