//! Edge pruning: a gate for each edge, learned with a target for how many are closed.

use burn::tensor::backend::AutodiffBackend;
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::ReusedMemory;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::super::{CircuitAblation, CircuitError};
use super::LearnedEdges;
use super::objective::{Descent, Gate, Gates, Objective, check_positive, sigmoid};
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

    /// What is learned by, if all settings are in range.
    fn checked(&self) -> Result<Descent, CircuitError> {
        let descent = Descent {
            // Open, but not so far that the gradient vanishes.
            start: 2.0,
            steps: self.steps,
            samples: self.samples,
            learning_rate: self.learning_rate,
            seed: self.seed,
        };
        descent.check()?;
        check_positive("penalty", self.penalty)?;
        check_positive("multiplier_rate", self.multiplier_rate)?;
        if !(self.sparsity >= 0.0 && self.sparsity < 1.0) {
            return Err(CircuitError::Setting {
                what: "sparsity",
                expected: "a share from 0 to below 1",
                found: self.sparsity.to_string(),
            });
        }
        Ok(descent)
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
    let _memory = ReusedMemory::in_steps();
    let descent = options.checked()?;
    let objective = Objective::<A, M>::new(model, batches, options.ablation, &options.run)?;
    let mut gates = HardConcrete {
        options,
        edges: objective.graph().edge_count(),
        multiplier: 0.0,
    };
    objective.learn(&descent, &mut gates)
}

/// Hard concrete gates, and what holds them to the target.
struct HardConcrete<'a> {
    options: &'a EdgePruningOptions,
    /// Number of edges.
    edges: usize,
    /// Of what misses the target.
    multiplier: f64,
}

impl Gates for HardConcrete<'_> {
    fn sample(&self, parameter: f64, rng: &mut ChaCha8Rng) -> Gate {
        gate(logistic(rng), parameter)
    }

    fn probability_open(&self, parameter: f64) -> f64 {
        probability_open(parameter)
    }

    fn cost(&mut self, step: usize, share: f64) -> f64 {
        let options = self.options;
        let rise = ((step + 1) as f64 / options.warmup.max(1) as f64).min(1.0);
        let missed = options.sparsity * rise - (1.0 - share);
        let by_share = self.multiplier + 2.0 * options.penalty * missed;
        self.multiplier += options.multiplier_rate * missed;
        by_share / self.edges as f64
    }

    fn weight(&self, parameter: f64) -> f64 {
        gate(0.0, parameter).value
    }
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
    use rand::SeedableRng;

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
