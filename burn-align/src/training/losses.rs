//! Losses of a batch: what training minimises.
//!
//! [`InterchangeData::positions`](super::InterchangeData) decides which positions count. At all
//! positions of prompts of different lengths, the two losses that get the [targets](Targets) leave
//! padding out; the others do not.

use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};
use burn_align_models::nn;

use super::Targets;

/// The cross-entropy with the labels, averaged over examples and positions.
///
/// # Shapes
/// - logits: `[batch, unit, vocab]`
/// - output: `[1]`
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 3>, targets: &Targets<B>) -> Tensor<B, 1> {
    let [batch, units, vocab] = logits.dims();
    let rows = logits.cast(DType::F32).reshape([batch * units, vocab]);
    let labels = targets.labels.clone();
    let found = match nn::cross_entropies(rows, || labels.into_data().iter().collect()) {
        Ok(found) => found.reshape([batch, units]),
        Err(rows) => {
            let log_probabilities = activation::log_softmax(rows, 1);
            let log_probabilities = log_probabilities.reshape([batch, units, vocab]);
            -at(log_probabilities, targets.labels.clone())
        }
    };
    mean(found, targets)
}

/// How far the labels' logits are below those of other classes, averaged.
///
/// # Shapes
/// - logits: `[batch, unit, vocab]`
/// - others: `[batch, unit]`
/// - output: `[1]`
pub fn logit_difference<B: Backend>(
    logits: Tensor<B, 3>,
    targets: &Targets<B>,
    others: Tensor<B, 2, Int>,
) -> Tensor<B, 1> {
    let logits = logits.cast(DType::F32);
    mean(
        at(logits.clone(), others) - at(logits, targets.labels.clone()),
        targets,
    )
}

/// The Kullback-Leibler divergence from the target distributions, `Σ p (ln p - ln q)`, averaged.
///
/// # Shapes
/// - logits, wanted (logits too): `[batch, unit, vocab]`
/// - output: `[1]`
pub fn kl_divergence<B: Backend>(logits: Tensor<B, 3>, wanted: Tensor<B, 3>) -> Tensor<B, 1> {
    let [batch, units, vocab] = logits.dims();
    let rows = |x: Tensor<B, 3>| x.reshape([batch * units, vocab]);
    nn::kl_divergences(rows(wanted), rows(logits)).mean()
}

/// The mean squared difference, for models whose outputs are not logits.
///
/// # Shapes
/// - outputs, wanted: `[batch, unit, vocab]`
/// - output: `[1]`
pub fn mean_squared_error<B: Backend>(outputs: Tensor<B, 3>, wanted: Tensor<B, 3>) -> Tensor<B, 1> {
    (outputs.cast(DType::F32) - wanted.cast(DType::F32))
        .powi_scalar(2)
        .mean()
}

/// The mean over the positions that count.
fn mean<B: Backend>(values: Tensor<B, 2>, targets: &Targets<B>) -> Tensor<B, 1> {
    match &targets.weights {
        None => values.mean(),
        Some(weights) => (values * weights.clone()).sum() / weights.clone().sum(),
    }
}

/// One class for each, `[batch, unit]`.
fn at<B: Backend>(values: Tensor<B, 3>, classes: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    values.gather(2, classes.unsqueeze_dim(2)).squeeze_dim(2)
}
