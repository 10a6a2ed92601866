//! A bound on what was not patched.

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Site};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::check::check_patching;
use super::exact::{measure, patched};
use super::statistics::{mean_and_variance, student_t_upper};
use super::{AttributionError, Metric, Patching};
use crate::engine::{Edit, Plan, RunOptions, Units, WorldId};

/// How subsets of nodes are drawn.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubsetOptions {
    /// Number of subsets that are patched. Default: 200.
    pub samples: usize,
    /// The probability of a node to be in a subset. Default: 0.1.
    pub probability: f64,
    /// The probability that all bounds hold. Default: 0.95.
    pub confidence: f64,
    /// Seed of the draw. Default: 0.
    pub seed: u64,
    /// Budgets.
    pub run: RunOptions,
}

impl Default for SubsetOptions {
    fn default() -> Self {
        Self {
            samples: 200,
            probability: 0.1,
            confidence: 0.95,
            seed: 0,
            run: RunOptions::default(),
        }
    }
}

impl SubsetOptions {
    /// Sets the number of subsets.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets the probability of a node to be in a subset.
    pub fn with_probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// Sets the probability that all bounds hold.
    pub fn with_confidence(mut self, confidence: f64) -> Self {
        self.confidence = confidence;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    fn check(&self) -> Result<(), AttributionError> {
        let share = |what, value: f64| match value > 0.0 && value < 1.0 {
            true => Ok(()),
            false => Err(AttributionError::Option {
                what,
                expected: "a number between 0 and 1, both excluded",
                found: value.to_string(),
            }),
        };
        share("probability", self.probability)?;
        share("confidence", self.confidence)?;
        match self.samples {
            0..4 => Err(AttributionError::Option {
                what: "samples",
                expected: "at least 4 subsets",
                found: self.samples.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// What patching random subsets says about nodes that were not patched one by one.
#[derive(Clone, Debug, PartialEq)]
pub struct MissedBound {
    /// The nodes that had not been verified.
    pub nodes: Vec<usize>,
    /// For each of them: the mean effect of subsets with the node, less that of subsets without it.
    pub estimates: Vec<f64>,
    /// For each of them: an upper bound on the magnitude of its effect. Infinite if fewer than two
    /// subsets had the node, or had it not.
    pub bounds: Vec<f64>,
}

impl MissedBound {
    /// The largest bound; 0 if all nodes had been verified.
    pub fn largest(&self) -> f64 {
        self.bounds.iter().copied().fold(0.0, f64::max)
    }
}

/// Bounds the effects of nodes that an estimate has ranked low and that were therefore not patched:
/// the check by subset sampling of Kramár et al. 2024, arXiv 2403.00745.
///
/// Patches random subsets of all nodes that are not among the verified ones. A node's effect is the
/// difference of the mean effects of subsets with and without it; its bound follows from Welch's t
/// test, divided among all nodes (Bonferroni), so that with probability
/// [`SubsetOptions::confidence`] none of them is exceeded. Effects are means over examples.
///
/// - verified: indices of nodes whose exact effect is known
///
/// # When it misleads
/// The bounds assume that nodes do not interact: the effect of a subset is the sum of the effects
/// of its nodes, up to noise with a normal distribution. A node whose effect another one prevents
/// has none here either.
///
/// # Errors
/// As [`patch_nodes`](super::patch_nodes), or if an option or the index of a verified node is out
/// of range.
pub fn bound_missed<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    nodes: &[(Site, Units)],
    verified: &[usize],
    metric: &T,
    options: &SubsetOptions,
) -> Result<MissedBound, AttributionError> {
    options.check()?;
    check_patching(model, patching, nodes, metric)?;
    if let Some(found) = verified.iter().find(|node| **node >= nodes.len()) {
        return Err(AttributionError::Option {
            what: "verified",
            expected: "indices of the nodes",
            found: format!("{found}, of {} nodes", nodes.len()),
        });
    }
    let rest = (0..nodes.len()).filter(|node| !verified.contains(node));
    let mut found = MissedBound {
        nodes: rest.collect(),
        estimates: Vec::new(),
        bounds: Vec::new(),
    };
    let rest = &found.nodes;
    if rest.is_empty() {
        return Ok(found);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    // [sample][node of the rest]
    let subsets = (0..options.samples).map(|_| {
        let drawn = rest.iter().map(|_| rng.random_bool(options.probability));
        drawn.collect::<Vec<bool>>()
    });
    let subsets: Vec<Vec<bool>> = subsets.collect();
    let worlds = subsets.iter().map(|subset| {
        move |_plan: &mut Plan<B>, source: WorldId| {
            let chosen = rest.iter().zip(subset).filter(|(_, is_in)| **is_in);
            let edits = chosen.map(|(node, _)| patched(&nodes[*node], source));
            edits.collect::<Vec<Edit>>()
        }
    });
    let measured = measure(model, patching, worlds.collect(), metric, &options.run)?;
    let effects = measured.means();
    let tail = (1.0 - options.confidence) / (2.0 * rest.len() as f64);
    for index in 0..found.nodes.len() {
        let side = |wanted: bool| -> Vec<f64> {
            let samples = subsets.iter().zip(&effects);
            let samples = samples.filter(|(subset, _)| subset[index] == wanted);
            samples.map(|(_, effect)| *effect).collect()
        };
        let (estimate, bound) = bound(&side(true), &side(false), tail);
        found.estimates.push(estimate);
        found.bounds.push(bound);
    }
    Ok(found)
}

/// The difference of two means, and an upper bound on its magnitude (Welch 1947).
fn bound(with: &[f64], without: &[f64], tail: f64) -> (f64, f64) {
    if with.len() < 2 || without.len() < 2 {
        return (0.0, f64::INFINITY);
    }
    let sides = [with, without].map(|values| {
        let (mean, variance) = mean_and_variance(values);
        (mean, variance / values.len() as f64, values.len() as f64)
    });
    let [(mean, square, count), (other, other_square, other_count)] = sides;
    let estimate = mean - other;
    let squares = square + other_square;
    if squares == 0.0 {
        return (estimate, estimate.abs());
    }
    let degrees = squares.powi(2)
        / (square.powi(2) / (count - 1.0) + other_square.powi(2) / (other_count - 1.0));
    let margin = student_t_upper(tail, degrees) * squares.sqrt();
    (estimate, estimate.abs() + margin)
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn a_bound_is_the_estimate_and_a_quantile_of_errors() {
        // Means 2 and 0, variances 1 and 1 of 3 samples each: the error is √(2/3), with 4 degrees
        // of freedom, of which the quantile at 0.025 is 2.776445.
        let (estimate, found) = bound(&[1.0, 2.0, 3.0], &[-1.0, 0.0, 1.0], 0.025);
        assert!((estimate - 2.0).abs() < 1e-12);
        let expected = 2.0 + 2.776445 * (2.0_f64 / 3.0).sqrt();
        assert!((found - expected).abs() < 1e-5, "{found}, {expected}");
        assert_eq!(bound(&[1.0], &[0.0, 1.0], 0.025).1, f64::INFINITY);
        assert_eq!(bound(&[2.0, 2.0], &[1.0, 1.0], 0.025), (1.0, 1.0));
    }
}
