//! Edge pruning: a gate for each edge, learned with a target for how many are closed.

use burn::tensor::backend::AutodiffBackend;
use burn_align_models::AlignableTransformer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::{CircuitAblation, CircuitError};
use super::objective::{Adam, Objective, check_count, check_positive, sigmoid};
use super::{LearnedEdges, LearningStep};
use crate::engine::RunOptions;
use crate::methods::attribution::Patching;

/// Temperature, and the ends of the stretched interval (Louizos et al. 2018, arXiv 1712.01312).
const TEMPERATURE: f64 = 2.0 / 3.0;
const STRETCH: [f64; 2] = [-0.1, 1.1];

/// How gates are learned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EdgePruningOptions {
    /// The share of edges that should be out of the circuit in the end. Default: 0.95.
    pub sparsity: f64,
    /// Number of steps. Default: 500.
    pub steps: usize,
    /// Steps during which the target rises from 0. Default: 400.
    pub warmup: usize,
    /// Step size of the gates, by Adam. Default: 0.1.
    pub learning_rate: f64,
    /// Weight of the square of what misses the target. Default: 100.
    pub penalty: f64,
    /// Step size of the multiplier of what misses the target, by gradient ascent. Default: 1.
    pub multiplier_rate: f64,
    /// Samples of all gates in each step. Default: 1.
    pub samples: usize,
    /// What edges carry as far as they are closed. Default: the writers' outputs on the source.
    pub ablation: CircuitAblation,
    /// Seed of the samples.
    pub seed: u64,
    /// Budgets for the runs that are made once.
    pub run: RunOptions,
}

impl Default for EdgePruningOptions {
    fn default() -> Self {
        Self {
            sparsity: 0.95,
            steps: 500,
            warmup: 400,
            learning_rate: 0.1,
            penalty: 100.0,
            multiplier_rate: 1.0,
            samples: 1,
            ablation: CircuitAblation::default(),
            seed: 0,
            run: RunOptions::default(),
        }
    }
}

impl EdgePruningOptions {
    /// Sets the share of edges that should be out of the circuit.
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets the number of steps, and of those during which the target rises.
    pub fn with_steps(mut self, steps: usize, warmup: usize) -> Self {
        self.steps = steps;
        self.warmup = warmup;
        self
    }

    /// Sets the step size of the gates.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the weight of the square of what misses the target.
    pub fn with_penalty(mut self, penalty: f64) -> Self {
        self.penalty = penalty;
        self
    }

    /// Sets the step size of the multiplier.
    pub fn with_multiplier_rate(mut self, multiplier_rate: f64) -> Self {
        self.multiplier_rate = multiplier_rate;
        self
    }

    /// Sets the number of samples in each step.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets what edges carry as far as they are closed.
    pub fn with_ablation(mut self, ablation: CircuitAblation) -> Self {
        self.ablation = ablation;
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

    fn check(&self) -> Result<(), CircuitError> {
        check_count("steps", self.steps)?;
        check_count("samples", self.samples)?;
        check_positive("learning_rate", self.learning_rate)?;
        check_positive("penalty", self.penalty)?;
        check_positive("multiplier_rate", self.multiplier_rate)?;
        if !(self.sparsity >= 0.0 && self.sparsity < 1.0) {
            return Err(CircuitError::Setting {
                what: "sparsity",
                expected: "a share from 0 to below 1",
                found: self.sparsity.to_string(),
            });
        }
        Ok(())
    }
}

/// Learns a gate `z` for each edge, so that a reader reads `Σ z a_u + (1 − z) a'_u` (edge pruning;
/// Bhaskar et al. 2024, arXiv 2406.16778). Gates are hard concrete:
/// `z = clip(σ((log u − log(1 − u) + log α) / β) (ζ − γ) + γ)` for uniform `u`. The loss is the
/// divergence `KL(model ‖ circuit)` after the last token, plus `λ (t − s) + p (t − s)²`, where `s`
/// is the expected share of closed gates, `t` the target, and `λ` grows while the target is
/// missed. In the paper `p` grows, too; a fixed penalty keeps the share from swinging about the
/// target.
///
/// The score of an edge is its gate without noise: 0 for closed, 1 for open. One batch is used at
/// each step, in turn.
///
/// # When it misleads
/// A circuit that is trained for fidelity finds any subnetwork that does the task, also one that
/// the model does not use: evaluate it on other prompts, and compare seeds by
/// [`circuit_stability`](crate::methods::circuits::circuit_stability).
///
/// # Errors
/// If a setting is out of range, the prompts do not fit the model, or training diverges.
pub fn edge_pruning<A, M>(
    model: &M,
    batches: &[Patching<A::InnerBackend>],
    options: &EdgePruningOptions,
) -> Result<LearnedEdges, CircuitError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
{
    options.check()?;
    let objective = Objective::<A, M>::new(model, batches, options.ablation, &options.run)?;
    let edges = objective.graph().edge_count();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut adam = Adam::new(options.learning_rate, edges);
    // Open, but not so far that the gradient vanishes.
    let mut logits = vec![2.0; edges];
    let mut multiplier = 0.0;
    let mut history = Vec::with_capacity(options.steps);
    for step in 0..options.steps {
        let noise: Vec<Vec<f64>> = (0..options.samples)
            .map(|_| (0..edges).map(|_| logistic(&mut rng)).collect())
            .collect();
        let gates: Vec<Vec<Gate>> = noise
            .iter()
            .map(|noise| {
                noise
                    .iter()
                    .zip(&logits)
                    .map(|(u, a)| gate(*u, *a))
                    .collect()
            })
            .collect();
        let weights: Vec<Vec<f32>> = gates
            .iter()
            .map(|gates| gates.iter().map(|gate| gate.value as f32).collect())
            .collect();
        let (divergence, by_weight) = objective.gradient(step, &weights)?;

        let open: Vec<f64> = logits
            .iter()
            .map(|logit| probability_open(*logit))
            .collect();
        let share = open.iter().sum::<f64>() / edges as f64;
        history.push(LearningStep {
            divergence,
            edges: share,
        });
        let rise = ((step + 1) as f64 / options.warmup.max(1) as f64).min(1.0);
        let missed = options.sparsity * rise - (1.0 - share);
        let by_share = multiplier + 2.0 * options.penalty * missed;
        let gradient = (0..edges).map(|edge| {
            let samples = by_weight.iter().zip(&gates);
            let fit: f64 = samples
                .map(|(by, gates)| by[edge] * gates[edge].slope)
                .sum();
            // The share of open gates grows by this much.
            let opens = open[edge] * (1.0 - open[edge]) / edges as f64;
            fit / options.samples as f64 + by_share * opens
        });
        let gradient: Vec<f64> = gradient.collect();
        adam.step(&mut logits, &gradient);
        multiplier += options.multiplier_rate * missed;
    }
    let weights = logits.iter().map(|logit| gate(0.0, *logit).value);
    objective.learned(weights.collect(), history)
}

/// A sampled gate, and its derivative by its parameter.
struct Gate {
    value: f64,
    slope: f64,
}

/// A gate for this noise: a number of the logistic distribution.
fn gate(noise: f64, logit: f64) -> Gate {
    let [low, high] = STRETCH;
    let inner = sigmoid((noise + logit) / TEMPERATURE);
    let stretched = inner * (high - low) + low;
    let value = stretched.clamp(0.0, 1.0);
    let slope = match stretched == value {
        true => inner * (1.0 - inner) / TEMPERATURE * (high - low),
        false => 0.0,
    };
    Gate { value, slope }
}

/// The probability that a gate is not closed.
fn probability_open(logit: f64) -> f64 {
    let [low, high] = STRETCH;
    sigmoid(logit - TEMPERATURE * (-low / high).ln())
}

fn logistic(rng: &mut ChaCha8Rng) -> f64 {
    let uniform: f64 = rng.random_range(1e-6..1.0 - 1e-6);
    (uniform / (1.0 - uniform)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_gates_are_differences() {
        for (noise, logit) in [(0.3, -0.2), (-1.0, 0.5), (4.0, 2.0), (-4.0, -2.0)] {
            let (up, down) = (gate(noise, logit + 1e-6), gate(noise, logit - 1e-6));
            let difference = (up.value - down.value) / 2e-6;
            assert!((gate(noise, logit).slope - difference).abs() < 1e-6);
        }
    }

    #[test]
    fn gates_are_open_as_often_as_said() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for logit in [-1.0, 0.0, 2.0] {
            let drawn = (0..20_000).filter(|_| gate(logistic(&mut rng), logit).value > 0.0);
            let share = drawn.count() as f64 / 20_000.0;
            assert!(
                (share - probability_open(logit)).abs() < 0.01,
                "{logit}: {share}"
            );
        }
    }
}
