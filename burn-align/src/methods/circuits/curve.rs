//! Faithfulness of circuits by their size, and the areas that MIB measures.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::{
    Circuit, CircuitAblation, CircuitError, CircuitValues, EdgeChoice, EdgeRanking, EdgeScores,
    bootstrap_resamples, evaluate_circuits,
};
use crate::engine::RunOptions;
use crate::methods::attribution::{Metric, Patching};

/// The sizes at which MIB evaluates circuits, as shares of all edges (arXiv 2504.13151, §3).
pub const MIB_SIZES: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// How circuits of different sizes are chosen and evaluated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CurveOptions {
    /// Shares of all edges, increasing. Default: [`MIB_SIZES`].
    pub sizes: Vec<f64>,
    /// Whether circuits grow [from the logits up](EdgeChoice::Greedy), as MIB does for information
    /// flow routes. Default: no.
    pub greedy: bool,
    /// What edges outside of a circuit carry. Default: the writers' outputs on the source.
    pub ablation: CircuitAblation,
    /// Budgets.
    pub run: RunOptions,
}

impl Default for CurveOptions {
    fn default() -> Self {
        Self {
            sizes: MIB_SIZES.to_vec(),
            greedy: false,
            ablation: CircuitAblation::default(),
            run: RunOptions::default(),
        }
    }
}

impl CurveOptions {
    /// Sets the shares of all edges.
    pub fn with_sizes(mut self, sizes: impl Into<Vec<f64>>) -> Self {
        self.sizes = sizes.into();
        self
    }

    /// Sets whether circuits grow from the logits up.
    pub fn with_greedy(mut self, greedy: bool) -> Self {
        self.greedy = greedy;
        self
    }

    /// Sets what edges outside of a circuit carry.
    pub fn with_ablation(mut self, ablation: CircuitAblation) -> Self {
        self.ablation = ablation;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}

/// The metric of circuits by their size.
#[derive(Clone, Debug, PartialEq)]
pub struct FaithfulnessCurve {
    /// What edges were ranked by.
    pub by: EdgeRanking,
    /// Shares of all edges.
    pub sizes: Vec<f64>,
    /// Number of edges of each circuit, after it was pruned.
    pub edges: Vec<usize>,
    /// The metric of each, for each example.
    pub values: CircuitValues,
}

/// An interval of a bootstrap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// An area under or beside a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurveArea {
    /// The circuit performance ratio: `∫ f dk`, higher is better. It has no upper bound, since a
    /// circuit can do better than the model.
    Cpr,
    /// The circuit-model distance: `∫ |1 − f| dk`, lower is better.
    Cmd,
}

/// Chooses circuits of each size by some scores, prunes them, and evaluates all of them: one curve
/// for each ranking.
///
/// MIB takes CPR from the curve of the [signed](EdgeRanking::Signed) ranking, and CMD from that of
/// the [absolute](EdgeRanking::Absolute) one where both were evaluated. A figure without its
/// ranking cannot be compared with another.
///
/// # When it misleads
/// Half of the area is at sizes between .5 and 1, and a tenth of it below .1: a circuit of a
/// hundred edges that explains everything adds next to nothing to either area by itself. Look at
/// the curve.
///
/// # Errors
/// As [`evaluate_circuits`], if a size is not between 0 and 1 or they do not increase, or if the
/// metric is the same with all edges and with none.
pub fn faithfulness_curves<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    scores: &EdgeScores,
    rankings: &[EdgeRanking],
    metric: &T,
    options: &CurveOptions,
) -> Result<Vec<FaithfulnessCurve>, CircuitError> {
    check_sizes(&options.sizes)?;
    let all = scores.graph().edge_count() as f64;
    let cells = rankings.iter().flat_map(|by| {
        let sizes = options.sizes.iter();
        sizes.map(move |size| (*by, (size * all) as usize))
    });
    let circuits = cells.map(|(by, edges)| {
        let choice = match options.greedy {
            true => EdgeChoice::Greedy { edges, by },
            false => EdgeChoice::TopN { edges, by },
        };
        Ok(Circuit::choose(scores, choice)?.pruned())
    });
    let circuits: Vec<Circuit> = circuits.collect::<Result<_, CircuitError>>()?;
    let found = evaluate_circuits(
        model,
        patching,
        &circuits,
        options.ablation,
        metric,
        &options.run,
    )?;
    found.check_difference()?;
    let count = options.sizes.len();
    let curves = rankings.iter().enumerate().map(|(index, by)| {
        let own = index * count..(index + 1) * count;
        FaithfulnessCurve {
            by: *by,
            sizes: options.sizes.clone(),
            edges: circuits[own.clone()]
                .iter()
                .map(Circuit::edge_count)
                .collect(),
            values: CircuitValues {
                base: found.base.clone(),
                ablated: found.ablated.clone(),
                circuits: found.circuits[own].to_vec(),
            },
        }
    });
    Ok(curves.collect())
}

fn check_sizes(sizes: &[f64]) -> Result<(), CircuitError> {
    if sizes.is_empty() {
        return Err(CircuitError::Nothing { what: "size" });
    }
    let fits = |size: &f64| (0.0..=1.0).contains(size);
    let increase = sizes.windows(2).all(|pair| pair[0] < pair[1]);
    if increase && sizes.iter().all(fits) {
        return Ok(());
    }
    Err(CircuitError::Setting {
        what: "sizes",
        expected: "increasing shares between 0 and 1",
        found: format!("{sizes:?}"),
    })
}

impl CircuitValues {
    /// The faithfulness of each circuit, `(m(C) − m(∅)) / (m(all) − m(∅))`, of means over
    /// examples: 1 if it does what the model does, 0 if it does what is left without any edge.
    pub fn faithfulness(&self) -> Vec<f64> {
        let all: Vec<usize> = (0..self.base.len()).collect();
        self.faithfulness_of(&all)
    }

    /// The same over some of the examples, each of which may be named several times.
    ///
    /// # Panics
    /// If there is no such example.
    pub fn faithfulness_of(&self, examples: &[usize]) -> Vec<f64> {
        let mean = |values: &[f64]| {
            let sum: f64 = examples.iter().map(|example| values[*example]).sum();
            sum / examples.len() as f64
        };
        let (base, ablated) = (mean(&self.base), mean(&self.ablated));
        let circuits = self.circuits.iter();
        circuits
            .map(|values| (mean(values) - ablated) / (base - ablated))
            .collect()
    }

    /// Fails if faithfulness is a division by zero.
    pub(super) fn check_difference(&self) -> Result<(), CircuitError> {
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        let (base, ablated) = (sum(&self.base), sum(&self.ablated));
        match base == ablated {
            true => Err(CircuitError::NoDifference {
                value: base / self.base.len().max(1) as f64,
            }),
            false => Ok(()),
        }
    }
}

impl FaithfulnessCurve {
    /// The faithfulness at each size.
    pub fn faithfulness(&self) -> Vec<f64> {
        self.values.faithfulness()
    }

    /// An area, by trapezoids over the sizes; linear in the size, from the smallest on.
    pub fn area(&self, area: CurveArea) -> f64 {
        trapezoids(&self.sizes, &self.faithfulness(), area)
    }

    /// The interval that holds this share of the areas of resampled examples, by their quantiles
    /// (Efron 1979). The circuits stay the same.
    ///
    /// # Errors
    /// If the share is not between 0 and 1, or there are no resamples.
    pub fn interval(
        &self,
        area: CurveArea,
        share: f64,
        resamples: usize,
        seed: u64,
    ) -> Result<Interval, CircuitError> {
        interval(self.values.base.len(), share, resamples, seed, |examples| {
            trapezoids(&self.sizes, &self.values.faithfulness_of(examples), area)
        })
    }
}

/// The interval of a statistic of resampled examples.
fn interval(
    examples: usize,
    share: f64,
    resamples: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> f64,
) -> Result<Interval, CircuitError> {
    if !(share > 0.0 && share < 1.0) {
        return Err(CircuitError::Setting {
            what: "share",
            expected: "a number between 0 and 1",
            found: share.to_string(),
        });
    }
    if resamples == 0 {
        return Err(CircuitError::Nothing { what: "resample" });
    }
    let drawn = bootstrap_resamples(examples, resamples, seed);
    let mut values: Vec<f64> = drawn.iter().map(|examples| statistic(examples)).collect();
    values.sort_by(f64::total_cmp);
    let quantile = |tail: f64| {
        // Linear between neighbours.
        let place = tail * (resamples - 1) as f64;
        let (low, part) = (place.floor() as usize, place.fract());
        let high = (low + 1).min(resamples - 1);
        values[low] + part * (values[high] - values[low])
    };
    let tail = 0.5 * (1.0 - share);
    Ok(Interval {
        low: quantile(tail),
        high: quantile(1.0 - tail),
    })
}

/// An area by trapezoids.
fn trapezoids(sizes: &[f64], faithfulness: &[f64], area: CurveArea) -> f64 {
    let height = |f: f64| match area {
        CurveArea::Cpr => f,
        CurveArea::Cmd => (1.0 - f).abs(),
    };
    let widths = sizes.windows(2).map(|pair| pair[1] - pair[0]);
    let heights = faithfulness.windows(2);
    let means = heights.map(|pair| 0.5 * (height(pair[0]) + height(pair[1])));
    widths.zip(means).map(|(width, mean)| width * mean).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_trapezoids_from_the_smallest_size_on() {
        let sizes = [0.1, 0.5, 1.0];
        let cpr = trapezoids(&sizes, &[0.0, 2.0, 1.0], CurveArea::Cpr);
        assert!((cpr - (0.4 * 1.0 + 0.5 * 1.5)).abs() < 1e-12);
        let cmd = trapezoids(&sizes, &[0.0, 2.0, 1.0], CurveArea::Cmd);
        assert!((cmd - (0.4 * 1.0 + 0.5 * 0.5)).abs() < 1e-12);
    }

    #[test]
    fn intervals_hold_the_share_that_is_asked_for() {
        // The mean of 0 and 1, drawn twice: 0, 1/2, 1/2 or 1.
        let mean = |examples: &[usize]| examples.iter().sum::<usize>() as f64 / 2.0;
        let found = interval(2, 0.9, 1000, 0, mean).expect("valid");
        assert_eq!((found.low, found.high), (0.0, 1.0));
        let found = interval(2, 0.4, 1000, 0, mean).expect("valid");
        assert_eq!((found.low, found.high), (0.5, 0.5));
        assert!(interval(2, 1.0, 1000, 0, mean).is_err());
    }
}
