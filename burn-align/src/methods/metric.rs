//! Numbers for a prediction.

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

/// How much more one token's logit is than another's, for each example.
///
/// # Shapes
/// - logits: `[batch, vocab]`
/// - output: `[batch]`
pub fn logit_difference<B: Backend>(logits: Tensor<B, 2>, token: u32, other: u32) -> Tensor<B, 1> {
    let logits = logits.cast(DType::F32);
    column(logits.clone(), token) - column(logits, other)
}

fn column<B: Backend>(values: Tensor<B, 2>, token: u32) -> Tensor<B, 1> {
    let data = TensorData::new(vec![i64::from(token)], [1]);
    let index = Tensor::<B, 1, Int>::from_data(data, &values.device());
    values.select(1, index).squeeze_dim(1)
}
