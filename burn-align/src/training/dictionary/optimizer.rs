//! Adam for the parameters of a dictionary.

use burn::optim::{Adam, AdamState, AdaptiveMomentumState, SimpleOptimizer};
use burn::tensor::{Tensor, backend::Backend};

use super::parameters::{Parameters, unit_rows};
use crate::engine::{PlanError, read_numbers};

/// What Adam knows about each parameter; nothing before the first step.
#[derive(Clone)]
pub(super) struct Moments<B: Backend> {
    pub(super) encoder: Option<AdamState<B, 2>>,
    pub(super) encoder_bias: Option<AdamState<B, 1>>,
    pub(super) decoder: Option<AdamState<B, 2>>,
    pub(super) decoder_bias: Option<AdamState<B, 1>>,
    pub(super) threshold: Option<AdamState<B, 1>>,
}

impl<B: Backend> Default for Moments<B> {
    fn default() -> Self {
        Self {
            encoder: None,
            encoder_bias: None,
            decoder: None,
            decoder_bias: None,
            threshold: None,
        }
    }
}

impl<B: Backend> Moments<B> {
    /// One step of all parameters.
    pub(super) fn step(
        &mut self,
        adam: &Adam,
        rate: f64,
        parameters: &Parameters<B>,
        gradients: Parameters<B>,
    ) -> Parameters<B> {
        let (old, new) = (parameters.clone(), gradients);
        let threshold = match (old.threshold, new.threshold) {
            (Some(old), Some(gradient)) => {
                let moved = stepped(adam, rate, old, gradient, &mut self.threshold);
                // The next pass compares with 0 or more.
                Some(moved.clamp_min(0.0))
            }
            (threshold, _) => threshold,
        };
        Parameters {
            encoder: stepped(adam, rate, old.encoder, new.encoder, &mut self.encoder),
            encoder_bias: stepped(
                adam,
                rate,
                old.encoder_bias,
                new.encoder_bias,
                &mut self.encoder_bias,
            ),
            decoder: stepped(adam, rate, old.decoder, new.decoder, &mut self.decoder),
            decoder_bias: stepped(
                adam,
                rate,
                old.decoder_bias,
                new.decoder_bias,
                &mut self.decoder_bias,
            ),
            threshold,
        }
    }

    /// Forgets what belongs to some features.
    ///
    /// - matrix, vector: set the rows of these features to 0
    pub(super) fn forget(
        &mut self,
        matrix: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
        vector: impl Fn(Tensor<B, 1>) -> Tensor<B, 1>,
    ) {
        for state in [&mut self.encoder, &mut self.decoder] {
            *state = state.take().map(|state| mapped(state, &matrix));
        }
        for state in [&mut self.encoder_bias, &mut self.threshold] {
            *state = state.take().map(|state| mapped(state, &vector));
        }
    }
}

fn stepped<B: Backend, const D: usize>(
    adam: &Adam,
    rate: f64,
    parameter: Tensor<B, D>,
    gradient: Tensor<B, D>,
    state: &mut Option<AdamState<B, D>>,
) -> Tensor<B, D> {
    let (parameter, new) = adam.step(rate, parameter, gradient, state.take());
    *state = new;
    parameter
}

fn mapped<B: Backend, const D: usize>(
    state: AdamState<B, D>,
    map: impl Fn(Tensor<B, D>) -> Tensor<B, D>,
) -> AdamState<B, D> {
    let AdaptiveMomentumState {
        time,
        moment_1,
        moment_2,
        max_moment_2,
    } = state.momentum;
    AdamState::new(AdaptiveMomentumState {
        time,
        moment_1: map(moment_1),
        moment_2: map(moment_2),
        max_moment_2: max_moment_2.map(map),
    })
}

/// The gradient of the decoder without the part along its directions, which only changes their
/// norms.
///
/// # Shapes
/// - gradient, directions (of norm 1), output: `[feature, d_in]`
pub(super) fn across<B: Backend>(
    gradient: Tensor<B, 2>,
    directions: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    let along = (gradient.clone() * directions.clone()).sum_dim(1); // [feature, 1]
    gradient - directions.clone() * along
}

/// The decoder with directions of norm 1.
pub(super) fn normalised<B: Backend>(mut parameters: Parameters<B>) -> Parameters<B> {
    parameters.decoder = unit_rows(parameters.decoder);
    parameters
}

/// The gradients, scaled down so that all of them together have at most this norm, as by PyTorch's
/// `clip_grad_norm_`.
pub(super) fn clipped<B: Backend>(
    gradients: Parameters<B>,
    most: f64,
) -> Result<Parameters<B>, PlanError> {
    /// PyTorch's constant.
    const EPSILON: f64 = 1e-6;
    let Parameters {
        encoder,
        encoder_bias,
        decoder,
        decoder_bias,
        threshold,
    } = gradients;
    let mut sums = vec![
        squares(encoder.clone()),
        squares(encoder_bias.clone()),
        squares(decoder.clone()),
        squares(decoder_bias.clone()),
    ];
    sums.extend(threshold.clone().map(squares));
    let norm = read_numbers(Tensor::cat(sums, 0))?
        .iter()
        .sum::<f64>()
        .sqrt();
    let factor = most / (norm + EPSILON);
    if factor >= 1.0 {
        return Ok(Parameters {
            encoder,
            encoder_bias,
            decoder,
            decoder_bias,
            threshold,
        });
    }
    Ok(Parameters {
        encoder: encoder * factor,
        encoder_bias: encoder_bias * factor,
        decoder: decoder * factor,
        decoder_bias: decoder_bias * factor,
        threshold: threshold.map(|threshold| threshold * factor),
    })
}

fn squares<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    x.square().sum()
}
