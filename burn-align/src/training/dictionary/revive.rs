//! Bringing dead features back: an additional loss that only they get, or new directions.

use burn::tensor::{Bool, DType, IndexingUpdateOp, Int, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;

use super::optimizer::Moments;
use super::parameters::{Parameters, norms, unit_rows};
use super::pass::Encoded;
use super::{DictionaryTrainingConfig, Sparsity};
use crate::dictionaries::{FeatureActivation, indices};
use crate::engine::{PlanError, read_numbers};
use crate::training::devices::number;

/// A loss of dead features, and its gradients.
pub(super) struct Revival<B: Backend> {
    pub(super) loss: f64,
    /// The dead features, `[dead]`.
    features: Tensor<B, 1, Int>,
    /// `[dead, d_in]`
    encoder: Tensor<B, 2>,
    /// `[dead]`
    encoder_bias: Tensor<B, 1>,
    /// `[dead, d_in]`
    decoder: Tensor<B, 2>,
    /// `[dead]`
    threshold: Option<Tensor<B, 1>>,
}

impl<B: Backend> Revival<B> {
    /// The gradients of all features with these.
    pub(super) fn added_to(self, to: Parameters<B>) -> Parameters<B> {
        let features = self.features;
        let rows = |to: Tensor<B, 2>, of_dead: Tensor<B, 2>| {
            to.select_assign(0, features.clone(), of_dead, IndexingUpdateOp::Add)
        };
        let numbers = |to: Tensor<B, 1>, of_dead: Tensor<B, 1>| {
            to.select_assign(0, features.clone(), of_dead, IndexingUpdateOp::Add)
        };
        Parameters {
            encoder: rows(to.encoder, self.encoder),
            encoder_bias: numbers(to.encoder_bias, self.encoder_bias),
            decoder: rows(to.decoder, self.decoder),
            decoder_bias: to.decoder_bias,
            threshold: match (to.threshold, self.threshold) {
                (Some(to), Some(of_dead)) => Some(numbers(to, of_dead)),
                (to, _) => to,
            },
        }
    }
}

/// The loss of dead features, if there are any and the configuration has one.
///
/// - error: `e`, `[row, d_in]`
pub(super) fn revive<B: Backend>(
    parameters: &Parameters<B>,
    encoded: &Encoded<B>,
    error: Tensor<B, 2>,
    config: &DictionaryTrainingConfig,
    dead: &[usize],
) -> Result<Option<Revival<B>>, PlanError> {
    if dead.is_empty() {
        return Ok(None);
    }
    let [rows, width] = error.dims();
    let features = indices(dead, &error.device());
    let decoder = parameters.decoder.clone().select(0, features.clone()); // [dead, d_in]
    let hidden = encoded.hidden.clone().select(1, features.clone()); // [row, dead]
    match &config.sparsity {
        Sparsity::TopK(it) if it.auxiliary > 0.0 => {
            let k = it.auxiliary_k.unwrap_or(width / 2).max(1);
            let share = (dead.len() as f64 / k as f64).min(1.0);
            let scale = it.auxiliary * share / rows as f64;
            let off = all_but_largest(&hidden, k);
            let without = |x: Tensor<B, 2>| match &off {
                Some(off) => x.mask_fill(off.clone(), 0.0),
                None => x,
            };
            let values = without(hidden);
            let missed = values.clone().matmul(decoder.clone()) - error; // [row, d_in]
            let loss = number(missed.clone().square().sum())? * scale;
            let gradient = missed * (2.0 * scale);
            let change = without(gradient.clone().matmul(decoder.transpose())); // [row, dead]
            Ok(Some(Revival {
                loss,
                features,
                encoder: change.clone().transpose().matmul(encoded.read.clone()),
                encoder_bias: change.sum_dim(0).squeeze_dim::<1>(0),
                decoder: values.transpose().matmul(gradient),
                threshold: None,
            }))
        }
        Sparsity::JumpRelu(it) => {
            let coefficient = it.dead_coefficient.filter(|it| *it > 0.0);
            let (Some(coefficient), Some(threshold)) = (coefficient, &parameters.threshold) else {
                return Ok(None);
            };
            let scale = coefficient / rows as f64;
            let threshold = threshold.clone().select(0, features.clone());
            let lack = threshold.unsqueeze::<2>() - hidden; // [row, dead]
            let above = lack.clone().lower_equal_elem(0.0);
            let sums = lack.mask_fill(above.clone(), 0.0).sum_dim(0); // [1, dead]
            let length = norms(decoder.clone()); // [dead, 1]
            let loss = number((sums.clone() * length.clone().transpose()).sum())? * scale;
            let change = length.clone().transpose() * scale; // [1, dead]
            let change = change.expand::<2, _>(above.shape()).mask_fill(above, 0.0); // [row, dead]
            let of_threshold = change.clone().sum_dim(0).squeeze_dim::<1>(0);
            Ok(Some(Revival {
                loss,
                features,
                encoder: -change.transpose().matmul(encoded.read.clone()),
                encoder_bias: -of_threshold.clone(),
                decoder: decoder / length * sums.transpose() * scale,
                threshold: Some(of_threshold),
            }))
        }
        Sparsity::TopK(_) => Ok(None),
    }
}

/// Which values are not among the `k` largest of their row, be they above 0 or below; `None` if all
/// are.
fn all_but_largest<B: Backend>(values: &Tensor<B, 2>, k: usize) -> Option<Tensor<B, 2, Bool>> {
    let [_rows, count] = values.dims();
    if count <= k {
        return None;
    }
    // TopK keeps what is above 0, and the smallest value is not among the largest `k`.
    let above = values.clone() - values.clone().min_dim(1);
    let none = Tensor::zeros([count], (&values.device(), DType::F32));
    let kept = FeatureActivation::top_k(k).forward(above, none, None);
    Some(kept.equal_elem(0.0))
}

/// Gives dead features the directions of inputs that are reconstructed badly: inputs are drawn with
/// probabilities in proportion to the square of their loss, and the encoder's directions are short
/// (Bricken et al. 2023). Biases, thresholds and moments are as at the beginning.
///
/// - read, squares: the last batch as the encoder reads it, and `‖e‖²` of each row
pub(super) fn resample<B: Backend>(
    parameters: Parameters<B>,
    moments: &mut Moments<B>,
    (read, squares): (&Tensor<B, 2>, &[f64]),
    config: &DictionaryTrainingConfig,
    step: usize,
    dead: &[usize],
) -> Result<Parameters<B>, PlanError> {
    /// The encoder's norm, as a share of the mean norm of living features.
    const SHARE: f64 = 0.2;
    let weights: Vec<f64> = squares.iter().map(|it| it * it).collect();
    // Nothing is lost where everything is reconstructed.
    let (Ok(weights), false) = (WeightedIndex::<f64>::new(&weights), dead.is_empty()) else {
        return Ok(parameters);
    };
    let [features, width] = parameters.dims();
    let device = read.device();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(RESAMPLING | step as u64);
    let drawn: Vec<usize> = dead.iter().map(|_| weights.sample(&mut rng)).collect();
    let drawn = read.clone().select(0, indices(&drawn, &device));
    let directions = unit_rows(drawn); // [dead, d_in]

    let lengths = read_numbers(norms(parameters.encoder.clone()))?;
    let mut is_dead = vec![false; features];
    dead.iter().for_each(|feature| is_dead[*feature] = true);
    let living = lengths.iter().zip(&is_dead).filter(|(_, dead)| !**dead);
    let living: Vec<f64> = living.map(|(length, _)| *length).collect();
    let mean = match living.is_empty() {
        true => 1.0,
        false => living.iter().sum::<f64>() / living.len() as f64,
    };

    let rows = Rows::new(features, dead, &device);
    let count = dead.len();
    let zeros = || Tensor::<B, 1>::zeros([count], (&device, DType::F32));
    moments.forget(
        |of| rows.replaced(of, Tensor::zeros([count, width], (&device, DType::F32))),
        |of| rows.replaced(of, zeros()),
    );
    let threshold = match (parameters.threshold, &config.sparsity) {
        (Some(threshold), Sparsity::JumpRelu(it)) => {
            Some(rows.replaced(threshold, zeros() + it.threshold))
        }
        (threshold, _) => threshold,
    };
    Ok(Parameters {
        encoder: rows.replaced(parameters.encoder, directions.clone() * (SHARE * mean)),
        encoder_bias: rows.replaced(parameters.encoder_bias, zeros()),
        decoder: rows.replaced(parameters.decoder, directions),
        decoder_bias: parameters.decoder_bias,
        threshold,
    })
}

/// Marks the random numbers of resampling: those of examples have the number of the epoch.
const RESAMPLING: u64 = 1 << 62;

/// Where the rows of a tensor come from if some are replaced: the old rows, then the new ones.
struct Rows<B: Backend>(Tensor<B, 1, Int>);

impl<B: Backend> Rows<B> {
    fn new(count: usize, replaced: &[usize], device: &B::Device) -> Self {
        let mut from: Vec<i64> = (0..count as i64).collect();
        for (row, new) in replaced.iter().zip(count as i64..) {
            from[*row] = new;
        }
        Self(Tensor::from_data(TensorData::new(from, [count]), device))
    }

    fn replaced<const D: usize>(&self, old: Tensor<B, D>, new: Tensor<B, D>) -> Tensor<B, D> {
        Tensor::cat(vec![old, new], 0).select(0, self.0.clone())
    }
}
