//! What a batch says: its loss, and the gradients of all parameters.
//!
//! The gradients are written out instead of found by autodiff: the loss has few terms, and knowing
//! which features are active saves most of the products. With `u = x − b_dec` (or `x`),
//! `h = u W_enc + b_enc`, features `f`, `e = x − f W_dec − b_dec` and `n` rows:
//!
//! ```text
//! g      = −2 e / n                      gradient of the reconstruction
//! df     = g W_decᵀ                      where a feature is active
//! W_dec  : fᵀ g        b_dec : Σ g − (Σ dh) W_encᵀ
//! W_enc  : uᵀ dh       b_enc : Σ dh
//! ```

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::parameters::Parameters;
use super::revive::revive;
use super::sparse::SparseRows;
use super::{DictionaryTrainingConfig, JumpReluSparsity, L0Penalty, Products, Sparsity};
use crate::dictionaries::FeatureActivation;
use crate::engine::{PlanError, read_floats, read_numbers};

/// Of how many features one may be active on average before all of them are computed.
const SPARSE: usize = 16;

/// What a batch says.
pub(super) struct Pass<B: Backend> {
    pub(super) gradients: Parameters<B>,
    /// The input as the encoder reads it, `[row, d_in]`.
    pub(super) read: Tensor<B, 2>,
    /// `‖e‖²` of each row; not finite if a hidden value is not a number.
    pub(super) squares: Vec<f64>,
    /// The mean number of active features.
    pub(super) l0: f64,
    /// Whether each feature is active in some row.
    pub(super) fired: Vec<bool>,
    /// What is added to the mean of the squares.
    pub(super) penalty: f64,
}

/// A batch, and what the encoder makes of it.
pub(super) struct Encoded<B: Backend> {
    /// `[row, d_in]`
    pub(super) x: Tensor<B, 2>,
    /// `u`, `[row, d_in]`
    pub(super) read: Tensor<B, 2>,
    /// `h`, `[row, feature]`
    pub(super) hidden: Tensor<B, 2>,
}

/// The part of a pass that the active features make.
struct Core<B: Backend> {
    /// Without that of the decoder's bias, and without its part through the encoder.
    gradients: Parameters<B>,
    /// `e`, `[row, d_in]`
    error: Tensor<B, 2>,
    squares: Vec<f64>,
    /// The number of active features of each row.
    active: Vec<usize>,
    fired: Vec<bool>,
}

/// Computes the loss and its gradients.
///
/// - x: `[row, d_in]`, in f32
/// - step: counted from 0, for what rises over steps
/// - dead: the features that have been silent too long
pub(super) fn pass<B: Backend>(
    parameters: &Parameters<B>,
    x: Tensor<B, 2>,
    config: &DictionaryTrainingConfig,
    step: usize,
    dead: &[usize],
) -> Result<Pass<B>, PlanError> {
    let [rows, _width] = x.dims();
    let read = match config.subtract_bias {
        true => x.clone() - parameters.decoder_bias.clone().unsqueeze::<2>(),
        false => x.clone(),
    };
    let hidden = read.clone().matmul(parameters.encoder.clone().transpose());
    let encoded = Encoded {
        hidden: hidden + parameters.encoder_bias.clone().unsqueeze::<2>(),
        x,
        read,
    };
    let sparse = match config.products {
        Products::Sparse => sparse(parameters, &encoded, config, step)?,
        Products::Dense => None,
    };
    let core = match sparse {
        Some(core) => core,
        None => dense(parameters, &encoded, config, step)?,
    };
    let Core {
        mut gradients,
        error,
        squares,
        active,
        fired,
    } = core;
    gradients.decoder_bias = error.clone().sum_dim(0).squeeze_dim::<1>(0) * (-2.0 / rows as f64);
    let mut penalty = match &config.sparsity {
        Sparsity::TopK(_) => 0.0,
        Sparsity::JumpRelu(it) => it.penalty(&active, step),
    };
    if let Some(revival) = revive(parameters, &encoded, error, config, dead)? {
        penalty += revival.loss;
        gradients = revival.added_to(gradients);
    }
    if config.subtract_bias {
        let of_bias = gradients.encoder_bias.clone().unsqueeze::<2>(); // [1, feature]
        let through = of_bias.matmul(parameters.encoder.clone()); // [1, d_in]
        gradients.decoder_bias = gradients.decoder_bias - through.squeeze_dim::<1>(0);
    }
    Ok(Pass {
        gradients,
        read: encoded.read,
        squares,
        l0: active.iter().sum::<usize>() as f64 / rows as f64,
        fired,
        penalty,
    })
}

impl JumpReluSparsity {
    /// The penalty in the loss.
    fn penalty(&self, active: &[usize], step: usize) -> f64 {
        let of_row = |active: &usize| match self.penalty {
            L0Penalty::Linear => *active as f64,
            L0Penalty::Target(target) => 2.0 / target * (*active as f64 - target).powi(2),
        };
        let sum: f64 = active.iter().map(of_row).sum();
        self.coefficient_at(step) * sum / active.len() as f64
    }

    /// The gradient of the loss by the number of active features of a row.
    fn slope(&self, active: usize, rows: usize, step: usize) -> f32 {
        let slope = match self.penalty {
            L0Penalty::Linear => 1.0,
            L0Penalty::Target(target) => 4.0 / target * (active as f64 - target),
        };
        (self.coefficient_at(step) * slope / rows as f64) as f32
    }
}

/// The pass on the host, from the active features; `None` if they are too many.
fn sparse<B: Backend>(
    parameters: &Parameters<B>,
    encoded: &Encoded<B>,
    config: &DictionaryTrainingConfig,
    step: usize,
) -> Result<Option<Core<B>>, PlanError> {
    let ([rows, width], [features, _]) = (encoded.x.dims(), parameters.dims());
    // Rows with fewer than `k` values above 0 are too rare to count on.
    if let Sparsity::TopK(it) = &config.sparsity
        && it.k * SPARSE > features
    {
        return Ok(None);
    }
    let hidden = read_floats(encoded.hidden.clone())?;
    let thresholds = match &parameters.threshold {
        Some(threshold) => read_floats(threshold.clone())?,
        None => Vec::new(),
    };
    // What is not a number is chosen, and is in the error then.
    let chosen = match &config.sparsity {
        Sparsity::TopK(it) => SparseRows::top_k(&hidden, features, it.k),
        Sparsity::JumpRelu(it) => {
            let below = (it.bandwidth / 2.0) as f32;
            let bounds: Vec<f32> = thresholds.iter().map(|it| it - below).collect();
            SparseRows::above(&hidden, &bounds)
        }
    };
    drop(hidden);
    if chosen.len() * SPARSE > rows * features {
        return Ok(None);
    }
    let is_on = |feature: usize, value: f32| match thresholds.get(feature) {
        Some(threshold) => value > *threshold || value.is_nan(),
        None => true,
    };
    let values = chosen.entries();
    let values = values.map(|(feature, value)| if is_on(feature, value) { value } else { 0.0 });
    let values: Vec<f32> = values.collect();

    let decoder = read_floats(parameters.decoder.clone())?;
    let bias = read_floats(parameters.decoder_bias.clone())?;
    let x = read_floats(encoded.x.clone())?;
    let mut error = chosen.sums(&values, &decoder, width); // [row, d_in]
    let mut squares = Vec::with_capacity(rows);
    for (error, x) in error.chunks_mut(width).zip(x.chunks(width)) {
        let mut sum = 0.0;
        for ((error, x), bias) in error.iter_mut().zip(x).zip(&bias) {
            *error = x - *error - bias;
            sum += f64::from(*error).powi(2);
        }
        squares.push(sum);
    }
    let factor = -2.0 / rows as f32;
    let gradient: Vec<f32> = error.iter().map(|error| error * factor).collect();
    let mut change = chosen.dots(&gradient, &decoder, width); // df, of each entry

    let (mut fired, mut active) = (vec![false; features], Vec::with_capacity(rows));
    let mut of_threshold = vec![0.0; change.len()];
    let entries: Vec<(usize, f32)> = chosen.entries().collect();
    for own in chosen.rows() {
        let on = own
            .clone()
            .filter(|it| is_on(entries[*it].0, entries[*it].1));
        let count = on.count();
        active.push(count);
        for entry in own {
            let (feature, value) = entries[entry];
            let on = is_on(feature, value);
            fired[feature] |= on;
            if let Sparsity::JumpRelu(it) = &config.sparsity {
                let (threshold, bandwidth) = (thresholds[feature], it.bandwidth as f32);
                if (value - threshold).abs() < bandwidth / 2.0 {
                    let by_step = it.slope(count, rows, step);
                    of_threshold[entry] = -(threshold * change[entry] + by_step) / bandwidth;
                }
            }
            if !on {
                change[entry] = 0.0;
            }
        }
    }

    let read = match config.subtract_bias {
        true => read_floats(encoded.read.clone())?,
        false => x,
    };
    let columns = chosen.by_feature(features);
    let device = encoded.x.device();
    let matrix = |values: Vec<f32>, rows: usize| -> Tensor<B, 2> {
        Tensor::from_data(
            TensorData::new(values, [rows, width]),
            (&device, DType::F32),
        )
    };
    let vector = |values: Vec<f32>| -> Tensor<B, 1> {
        Tensor::from_data(TensorData::new(values, [features]), (&device, DType::F32))
    };
    let threshold = parameters.threshold.as_ref();
    Ok(Some(Core {
        gradients: Parameters {
            encoder: matrix(columns.sums(&change, &read, width), features),
            encoder_bias: vector(columns.totals(&change)),
            decoder: matrix(columns.sums(&values, &gradient, width), features),
            decoder_bias: parameters.decoder_bias.zeros_like(),
            threshold: threshold.map(|_| vector(columns.totals(&of_threshold))),
        },
        error: matrix(error, rows),
        squares,
        active,
        fired,
    }))
}

/// The pass on the device, from all features.
fn dense<B: Backend>(
    parameters: &Parameters<B>,
    encoded: &Encoded<B>,
    config: &DictionaryTrainingConfig,
    step: usize,
) -> Result<Core<B>, PlanError> {
    let [rows, _width] = encoded.x.dims();
    let hidden = encoded.hidden.clone();
    let activation = match (&config.sparsity, &parameters.threshold) {
        (Sparsity::TopK(it), _) => FeatureActivation::top_k(it.k),
        (Sparsity::JumpRelu(_), Some(threshold)) => FeatureActivation::jump_relu(threshold.clone()),
        (Sparsity::JumpRelu(_), None) => FeatureActivation::relu(),
    };
    // The bias is in the hidden values.
    let none = parameters.encoder_bias.zeros_like();
    let features = activation.forward(hidden.clone(), none, None); // [row, feature]
    let off = features.clone().equal_elem(0.0);
    let reconstruction = features.clone().matmul(parameters.decoder.clone());
    let reconstruction = reconstruction + parameters.decoder_bias.clone().unsqueeze::<2>();
    let error = encoded.x.clone() - reconstruction; // [row, d_in]
    let gradient = error.clone() * (-2.0 / rows as f64);
    let change = gradient
        .clone()
        .matmul(parameters.decoder.clone().transpose());
    let on = off.clone().bool_not();
    let counts = read_numbers(on.clone().int().sum_dim(1))?;
    let active: Vec<usize> = counts.into_iter().map(|count| count as usize).collect();
    let fired = read_numbers(on.any_dim(0).int())?;

    let threshold = match (&config.sparsity, &parameters.threshold) {
        (Sparsity::JumpRelu(it), Some(threshold)) => {
            let row = threshold.clone().unsqueeze::<2>(); // [1, feature]
            let slopes = active.iter().map(|active| it.slope(*active, rows, step));
            let slopes = TensorData::new(slopes.collect::<Vec<f32>>(), [rows, 1]);
            let slopes = Tensor::<B, 2>::from_data(slopes, (&hidden.device(), DType::F32));
            let outside = (hidden - row.clone()).abs();
            let outside = outside.greater_equal_elem(it.bandwidth / 2.0);
            let steps = (change.clone() * row + slopes) * (-1.0 / it.bandwidth);
            Some(steps.mask_fill(outside, 0.0).sum_dim(0).squeeze_dim::<1>(0))
        }
        _ => None,
    };
    let change = change.mask_fill(off, 0.0);
    // A hidden value that is not a number may be a feature that is off: the error would not tell.
    let of_rows = error.clone().square().sum_dim(1).squeeze_dim::<1>(1); // [row]
    let sum = encoded.hidden.clone().sum();
    let mut squares = read_numbers(Tensor::cat(vec![of_rows, sum], 0))?;
    if !squares.pop().is_some_and(f64::is_finite) {
        squares.fill(f64::NAN);
    }
    Ok(Core {
        gradients: Parameters {
            encoder: change.clone().transpose().matmul(encoded.read.clone()),
            encoder_bias: change.sum_dim(0).squeeze_dim::<1>(0),
            decoder: features.transpose().matmul(gradient),
            decoder_bias: parameters.decoder_bias.zeros_like(),
            threshold,
        },
        error,
        squares,
        active,
        fired: fired.into_iter().map(|it| it != 0.0).collect(),
    })
}
