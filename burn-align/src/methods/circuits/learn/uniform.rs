//! Uniform gradient sampling.

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

/// How probabilities are learned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UniformSamplingOptions {
    /// What an edge costs, in nats. Default: 0.001, as in MIB.
    pub cost: f64,
    /// Number of steps. Default: 500.
    pub steps: usize,
    /// Step size, by Adam. Default: 0.1.
    pub learning_rate: f64,
    /// Samples of all edges in each step. Default: 4.
    pub samples: usize,
    /// What edges carry as far as they are out. Default: the writers' outputs on the source.
    pub ablation: CircuitAblation,
    /// Seed of the samples.
    pub seed: u64,
    /// Budgets for the runs that are made once.
    pub run: RunOptions,
}

impl Default for UniformSamplingOptions {
    fn default() -> Self {
        Self {
            cost: 0.001,
            steps: 500,
            learning_rate: 0.1,
            samples: 4,
            ablation: CircuitAblation::default(),
            seed: 0,
            run: RunOptions::default(),
        }
    }
}

impl UniformSamplingOptions {
    /// Sets what an edge costs.
    pub fn with_cost(mut self, cost: f64) -> Self {
        self.cost = cost;
        self
    }

    /// Sets the number of steps.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the step size.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the number of samples in each step.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets what edges carry as far as they are out.
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
            // Edges begin more in than out.
            start: 1.0,
            steps: self.steps,
            samples: self.samples,
            learning_rate: self.learning_rate,
            seed: self.seed,
        };
        descent.check()?;
        check_positive("cost", self.cost)?;
        Ok(descent)
    }
}

/// Learns the probability `θ = σ(φ)` that each edge is in the circuit (uniform gradient sampling;
/// Li and Janson 2024, arXiv 2409.09951). The loss is the divergence `KL(model ‖ circuit)` after
/// the last token, plus the cost of the expected number of edges.
///
/// In a sample, an edge has weight 1 with probability `θ` and else 0, but with probability `θ(1 −
/// θ)` its weight is uniform between them instead. The mean derivative by a uniform weight is the
/// difference that the edge makes, which is the derivative by `θ`; and as `dθ/dφ = θ(1 − θ)`, the
/// derivatives by uniform weights, summed as they come, are those by `φ`.
///
/// The score of an edge is its probability. One batch is used at each step, in turn.
///
/// # When it misleads
/// As [`edge_pruning`](super::edge_pruning). The estimate of a gradient has noise, since few edges
/// have a uniform weight in a sample, and fewer the surer they are: more samples help.
///
/// # Errors
/// If a setting is out of range, the prompts do not fit the model, or training diverges.
#[doc(alias = "UGS")]
pub fn uniform_gradient_sampling<A, M>(
    model: &M,
    batches: &[Patching<A::InnerBackend>],
    options: &UniformSamplingOptions,
) -> Result<LearnedEdges, CircuitError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
{
    let _memory = ReusedMemory::in_steps();
    let descent = options.checked()?;
    let objective = Objective::<A, M>::new(model, batches, options.ablation, &options.run)?;
    let mut gates = Uniform { cost: options.cost };
    objective.learn(&descent, &mut gates)
}

/// Edges that are in, out, or of a uniform weight.
struct Uniform {
    /// What an edge costs.
    cost: f64,
}

impl Gates for Uniform {
    fn sample(&self, parameter: f64, rng: &mut ChaCha8Rng) -> Gate {
        let theta = sigmoid(parameter);
        if rng.random::<f64>() < theta * (1.0 - theta) {
            // How often it is drawn is the derivative of the probability.
            return Gate {
                value: rng.random::<f64>(),
                slope: 1.0,
            };
        }
        let is_in = rng.random::<f64>() < theta;
        Gate {
            value: f64::from(u8::from(is_in)),
            slope: 0.0,
        }
    }

    fn probability_open(&self, parameter: f64) -> f64 {
        sigmoid(parameter)
    }

    fn cost(&mut self, _step: usize, _share: f64) -> f64 {
        self.cost
    }

    fn weight(&self, parameter: f64) -> f64 {
        sigmoid(parameter)
    }
}
