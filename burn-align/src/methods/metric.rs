//! Metrics: one number per prediction.
//!
//! A probability saturates near 0 and 1 and hides effects there; a logit difference does not, and
//! is linear in the final residual stream (after the norm).

use burn::tensor::{DType, Int, Tensor, TensorData, activation, backend::Backend};

/// The probability of a token for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
pub fn probability<B: Backend>(logits: Tensor<B, 2>, token: u32) -> Tensor<B, 1> {
    let probabilities = activation::softmax(logits.cast(DType::F32), 1);
    column(probabilities, token)
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
/// If there are not as many tokens as examples.
pub fn cross_entropies<B: Backend>(logits: Tensor<B, 2>, tokens: &[u32]) -> Tensor<B, 1> {
    -cells(activation::log_softmax(logits.cast(DType::F32), 1), tokens)
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
