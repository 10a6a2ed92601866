//! Matrix products with the model's weights.

use std::ops::Range;

use burn::nn::Linear;
use burn::tensor::{Tensor, backend::Backend};

/// `x W + b` as one matrix product over all positions of all rows, so that the weight is read
/// once and not once per row.
///
/// # Shapes
/// - x: `[batch, pos, d_input]`
/// - output: `[batch, pos, d_output]`
pub(crate) fn project<B: Backend>(linear: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, pos, d_input] = x.dims();
    let [_d_input, d_output] = linear.weight.dims();
    linear
        .forward(x.reshape([batch * pos, d_input]))
        .reshape([batch, pos, d_output])
}

/// Some of a projection's outputs, side by side.
///
/// # Shapes
/// - x: `[batch, pos, d_input]`
/// - output: `[batch, pos, outputs.len()]`
pub(crate) fn project_part<B: Backend>(
    linear: &Linear<B>,
    outputs: Range<usize>,
    x: Tensor<B, 3>,
) -> Tensor<B, 3> {
    let [batch, pos, d_input] = x.dims();
    let (first, count) = (outputs.start, outputs.len());
    let weight = linear.weight.val().narrow(1, first, count);
    let x = x.reshape([batch * pos, d_input]).matmul(weight);
    let x = match &linear.bias {
        Some(bias) => x + bias.val().narrow(0, first, count).unsqueeze(),
        None => x,
    };
    x.reshape([batch, pos, count])
}

/// A head's part of an output projection, without its bias.
///
/// # Shapes
/// - mixed: `[batch, pos, d_head]`
/// - output: `[batch, pos, d_model]`
pub(crate) fn head_output<B: Backend>(
    projection: &Linear<B>,
    head: usize,
    mixed: Tensor<B, 3>,
) -> Tensor<B, 3> {
    let [batch, pos, d_head] = mixed.dims();
    let [_all_heads, d_model] = projection.weight.dims();
    let rows = projection.weight.val().narrow(0, head * d_head, d_head);
    mixed
        .reshape([batch * pos, d_head])
        .matmul(rows)
        .reshape([batch, pos, d_model])
}

/// Logits by an untied head, or by the transposed token embedding `[vocab, d_model]` where the
/// head is tied to it.
///
/// # Shapes
/// - x: `[batch, pos, d_model]`
/// - output: `[batch, pos, vocab]`
pub(crate) fn unembed<B: Backend>(
    head: Option<&Linear<B>>,
    embedding: Tensor<B, 2>,
    x: Tensor<B, 3>,
) -> Tensor<B, 3> {
    if let Some(head) = head {
        return project(head, x);
    }
    let [batch, pos, d_model] = x.dims();
    let [vocab, _d_model] = embedding.dims();
    times_transposed(x.reshape([batch * pos, d_model]), embedding).reshape([batch, pos, vocab])
}

/// `x Eᵀ`.
///
/// # Shapes
/// - x: `[row, d_model]`
/// - embedding: `[vocab, d_model]`
/// - output: `[row, vocab]`
pub(super) fn times_transposed<B: Backend>(
    x: Tensor<B, 2>,
    embedding: Tensor<B, 2>,
) -> Tensor<B, 2> {
    #[cfg(feature = "flex")]
    let x = match super::flex::times_transposed(x, &embedding) {
        Ok(product) => return product,
        Err(x) => x,
    };
    x.matmul(embedding.transpose())
}
