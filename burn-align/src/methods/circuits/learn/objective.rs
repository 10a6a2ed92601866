//! What weights of edges are learned by.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::kl_divergences;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::{
    CircuitAblation, CircuitError, EdgeGraph, EdgeMasking, EdgeMethod, EdgeProvenance, EdgeScores,
};
use crate::engine::{LogitPositions, RunOptions, WorldInput, read_numbers};
use crate::methods::attribution::Patching;

/// Weights of edges that were learned.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedEdges {
    /// The weight of each edge, from 0 to 1, as its score.
    pub scores: EdgeScores,
    /// What was measured at each step, before it.
    pub history: Vec<LearningStep>,
}

/// What was measured at one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningStep {
    /// The divergence of the sampled circuits' predictions from the model's, in nats.
    pub divergence: f64,
    /// The expected share of edges in the circuit.
    pub edges: f64,
}

/// `KL(p ‖ q)` of each row, where `p` is what the model predicts.
///
/// # Shapes
/// - base, logits: `[row, unit, vocab]`
/// - output: `[row]`, means over units
pub(super) fn divergences<B: Backend>(base: Tensor<B, 3>, logits: Tensor<B, 3>) -> Tensor<B, 1> {
    let [rows, units, vocab] = logits.dims();
    let [base, logits] = [base, logits].map(|x| x.reshape([rows * units, vocab]));
    let of_units = kl_divergences(base, logits).reshape([rows, units]);
    of_units.mean_dim(1).reshape([rows])
}

/// Prompts in batches, each with what all of its runs have in common.
pub(super) struct Objective<A: AutodiffBackend, M> {
    batches: Vec<(EdgeMasking<A, M>, Tensor<A, 3>)>,
    provenance: EdgeProvenance,
}

impl<A: AutodiffBackend, M: AlignableTransformer<A>> Objective<A, M> {
    pub(super) fn new(
        model: &M,
        batches: &[Patching<A::InnerBackend>],
        ablation: CircuitAblation,
        run: &RunOptions,
    ) -> Result<Self, CircuitError> {
        let Some(first) = batches.first() else {
            return Err(CircuitError::Nothing { what: "batch" });
        };
        let provenance = EdgeProvenance {
            method: EdgeMethod::Given,
            direction: Some(first.direction()),
            ablation: None,
            examples: batches.iter().map(Patching::batch).sum(),
        };
        let batches = batches.iter().map(|patching| {
            let tracked = Patching::noising(
                tracked::<A>(patching.base())?,
                tracked::<A>(patching.source())?,
            );
            let positions = LogitPositions::Last;
            let masking = EdgeMasking::new(model, &tracked, ablation, &positions, run)?;
            let base = masking.base_logits().detach();
            Ok((masking, base))
        });
        Ok(Self {
            batches: batches.collect::<Result<_, CircuitError>>()?,
            provenance,
        })
    }

    pub(super) fn graph(&self) -> &EdgeGraph {
        self.batches[0].0.graph()
    }

    /// The mean divergence of some weights on the batch of a step, and its gradient by each weight
    /// of the sum over samples.
    ///
    /// - weights: `[sample][edge]`
    fn gradient(
        &self,
        step: usize,
        weights: &[Vec<f32>],
    ) -> Result<(f64, Vec<Vec<f64>>), CircuitError> {
        let (masking, base) = &self.batches[step % self.batches.len()];
        let (samples, edges) = (weights.len(), self.graph().edge_count());
        let data = TensorData::new(weights.concat(), [samples, edges]);
        let weights = Tensor::<A, 2>::from_data(data, (&base.device(), base.dtype()));
        let weights = weights.require_grad();
        let logits = masking.logits(weights.clone())?; // [sample * batch, unit, vocab]
        let [batch, _unit, _vocab] = base.dims();
        let each = divergences(base.clone().repeat_dim(0, samples), logits);
        let total = each.sum() / batch as f64; // over samples, of means over examples
        let divergence = read_numbers(total.clone().inner())?[0] / samples as f64;
        let gradients = total.backward();
        let gradient = weights.grad(&gradients);
        let gradient = gradient.ok_or(CircuitError::Nothing { what: "edge" })?;
        let numbers = read_numbers(gradient)?;
        if !divergence.is_finite() || numbers.iter().any(|number| !number.is_finite()) {
            return Err(CircuitError::Diverged { step });
        }
        let gradient = numbers.chunks(edges).map(<[f64]>::to_vec).collect();
        Ok((divergence, gradient))
    }

    /// Learns the parameters of random weights by Adam, from the gradient of the mean divergence
    /// over samples and of what edges in the circuit cost.
    pub(super) fn learn(
        &self,
        descent: &Descent,
        gates: &mut impl Gates,
    ) -> Result<LearnedEdges, CircuitError> {
        let edges = self.graph().edge_count();
        let mut rng = ChaCha8Rng::seed_from_u64(descent.seed);
        let mut adam = Adam::new(descent.learning_rate, edges);
        let mut parameters = vec![descent.start; edges];
        let mut history = Vec::with_capacity(descent.steps);
        for step in 0..descent.steps {
            let samples: Vec<Vec<Gate>> = (0..descent.samples)
                .map(|_| {
                    let drawn = parameters.iter();
                    drawn.map(|it| gates.sample(*it, &mut rng)).collect()
                })
                .collect();
            let weights: Vec<Vec<f32>> = samples
                .iter()
                .map(|sample| sample.iter().map(|gate| gate.value as f32).collect())
                .collect();
            let (divergence, by_weight) = self.gradient(step, &weights)?;
            let open = parameters.iter().map(|it| gates.probability_open(*it));
            let open: Vec<f64> = open.collect();
            let share = open.iter().sum::<f64>() / edges as f64;
            history.push(LearningStep {
                divergence,
                edges: share,
            });
            let cost = gates.cost(step, share);
            let gradient = open.iter().enumerate().map(|(edge, open)| {
                let samples = by_weight.iter().zip(&samples);
                let fit: f64 = samples
                    .map(|(by, gates)| by[edge] * gates[edge].slope)
                    .sum();
                fit / descent.samples as f64 + cost * open * (1.0 - open)
            });
            let gradient: Vec<f64> = gradient.collect();
            adam.step(&mut parameters, &gradient);
        }
        let weights = parameters.iter().map(|it| gates.weight(*it)).collect();
        let scores = EdgeScores::new(self.graph().clone(), weights, self.provenance)?;
        Ok(LearnedEdges { scores, history })
    }
}

/// A sampled weight of an edge, and the factor that turns the derivative by it into one by the
/// edge's parameter.
pub(super) struct Gate {
    pub(super) value: f64,
    pub(super) slope: f64,
}

/// Random weights of edges, each with a parameter. The probability that an edge is in the circuit
/// is a sigmoid of it, shifted or not.
pub(super) trait Gates {
    /// Draws a weight.
    fn sample(&self, parameter: f64, rng: &mut ChaCha8Rng) -> Gate;

    /// The probability that an edge is in the circuit.
    fn probability_open(&self, parameter: f64) -> f64;

    /// What the loss grows by at a step with the expected number of edges in the circuit.
    ///
    /// - share: the expected share of edges in the circuit
    fn cost(&mut self, step: usize, share: f64) -> f64;

    /// The weight without noise.
    fn weight(&self, parameter: f64) -> f64;
}

/// How parameters are learned.
pub(super) struct Descent {
    /// Where all of them begin.
    pub(super) start: f64,
    pub(super) steps: usize,
    /// Samples of all edges in each step.
    pub(super) samples: usize,
    pub(super) learning_rate: f64,
    /// Of the samples.
    pub(super) seed: u64,
}

impl Descent {
    pub(super) fn check(&self) -> Result<(), CircuitError> {
        check_count("steps", self.steps)?;
        check_count("samples", self.samples)?;
        check_positive("learning_rate", self.learning_rate)
    }
}

/// The same input on the backend with gradients.
fn tracked<A: AutodiffBackend>(
    input: &WorldInput<A::InnerBackend>,
) -> Result<WorldInput<A>, CircuitError> {
    match input {
        WorldInput::Tokens(tokens) => Ok(WorldInput::Tokens(tokens.clone())),
        WorldInput::Features(x) => Ok(WorldInput::Features(Tensor::from_inner(x.clone()))),
        WorldInput::Resumed(_) | WorldInput::Continued(_) => Err(CircuitError::NotWhole),
    }
}

/// Adam (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1) with its usual decay rates.
struct Adam {
    rate: f64,
    step: i32,
    /// Decaying means of the gradient and of its square.
    means: Vec<[f64; 2]>,
}

impl Adam {
    const DECAY: [f64; 2] = [0.9, 0.999];
    const EPSILON: f64 = 1e-8;

    fn new(rate: f64, parameters: usize) -> Self {
        Self {
            rate,
            step: 0,
            means: vec![[0.0; 2]; parameters],
        }
    }

    fn step(&mut self, parameters: &mut [f64], gradient: &[f64]) {
        self.step += 1;
        let [first, second] = Self::DECAY;
        let unbiased = Self::DECAY.map(|decay| 1.0 - decay.powi(self.step));
        let all = parameters.iter_mut().zip(gradient).zip(&mut self.means);
        for ((parameter, gradient), [mean, square]) in all {
            *mean = first * *mean + (1.0 - first) * gradient;
            *square = second * *square + (1.0 - second) * gradient * gradient;
            let size = (*square / unbiased[1]).sqrt() + Self::EPSILON;
            *parameter -= self.rate * (*mean / unbiased[0]) / size;
        }
    }
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Fails if a number is not positive.
pub(super) fn check_positive(what: &'static str, value: f64) -> Result<(), CircuitError> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(CircuitError::Setting {
            what,
            expected: "a positive number",
            found: value.to_string(),
        }),
    }
}

/// Fails if a count is zero.
pub(super) fn check_count(what: &'static str, count: usize) -> Result<(), CircuitError> {
    match count {
        0 => Err(CircuitError::Setting {
            what,
            expected: "at least 1",
            found: "0".to_owned(),
        }),
        _ => Ok(()),
    }
}
