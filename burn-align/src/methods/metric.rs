//! Metrics: one number per prediction.
//!
//! A probability saturates near 0 and 1 and hides effects there; a logit difference does not, and
//! is linear in the final residual stream (after the norm).

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_align_models::nn;

/// The probability of a token for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
pub fn probability<B: Backend>(logits: Tensor<B, 2>, token: u32) -> Tensor<B, 1> {
    let (exponentials, sums) = exponentials(logits);
    column(exponentials, token) / sums.squeeze_dim(1)
}

/// By how much the logit of one token exceeds that of another, for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
pub fn logit_difference<B: Backend>(logits: Tensor<B, 2>, token: u32, other: u32) -> Tensor<B, 1> {
    let logits = logits.cast(DType::F32);
    column(logits.clone(), token) - column(logits, other)
}

/// Like [`logit_difference`], with separate tokens for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
///
/// # Panics
/// If there are not as many tokens as examples.
pub fn logit_differences<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: &[u32],
    others: &[u32],
) -> Tensor<B, 1> {
    let logits = logits.cast(DType::F32);
    cells(logits.clone(), tokens) - cells(logits, others)
}

/// The surprisal of a token, `-ln p`, with a separate token for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
///
/// # Panics
/// If there are not as many tokens as examples, or a token is not in the vocabulary.
pub fn cross_entropies<B: Backend>(logits: Tensor<B, 2>, tokens: &[u32]) -> Tensor<B, 1> {
    let logits = match nn::cross_entropies(logits.cast(DType::F32), || tokens.to_vec()) {
        Ok(found) => return found,
        Err(logits) => logits,
    };
    let highest = logits.clone().max_dim(1).detach();
    let (_exponentials, sums) = exponentials(logits.clone());
    let log_sums = (sums.log() + highest).squeeze_dim(1); // [batch]
    log_sums - cells(logits, tokens)
}

/// The exponentials of logits less the highest one, and their sums, `[batch, 1]`.
///
/// Sums are of sums of 256 at a time: one after the other in f32, the terms of a vocabulary of
/// 50,000 tokens are off by 1e-4 of the result.
fn exponentials<B: Backend>(logits: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    const TOGETHER: usize = 256;
    let logits = logits.cast(DType::F32);
    let highest = logits.clone().max_dim(1).detach();
    let exponentials = (logits - highest).exp();
    let [batch, vocab] = exponentials.dims();
    let parts = vocab.div_ceil(TOGETHER);
    let padded = match parts * TOGETHER - vocab {
        0 => exponentials.clone(),
        missing => {
            let options = (&exponentials.device(), DType::F32);
            let zeros = Tensor::zeros([batch, missing], options);
            Tensor::cat(vec![exponentials.clone(), zeros], 1)
        }
    };
    let sums = padded.reshape([batch, parts, TOGETHER]).sum_dim(2); // [batch, part, 1]
    (exponentials, sums.sum_dim(1).squeeze_dim(2))
}

/// The value of one token for each example.
fn cells<B: Backend>(values: Tensor<B, 2>, tokens: &[u32]) -> Tensor<B, 1> {
    let [batch, vocab] = values.dims();
    assert_eq!(tokens.len(), batch, "a token for each example");
    let rows = (0..batch).map(|row| (row * vocab) as i64);
    let indices = rows.zip(tokens).map(|(row, token)| {
        assert!((*token as usize) < vocab, "token {token} of {vocab}");
        row + i64::from(*token)
    });
    let data = TensorData::new(indices.collect(), [batch]);
    let indices = Tensor::<B, 1, Int>::from_data(data, &values.device());
    values.reshape([batch * vocab]).select(0, indices)
}

fn column<B: Backend>(values: Tensor<B, 2>, token: u32) -> Tensor<B, 1> {
    let data = TensorData::new(vec![i64::from(token)], [1]);
    let index = Tensor::<B, 1, Int>::from_data(data, &values.device());
    values.select(1, index).squeeze_dim(1)
}
