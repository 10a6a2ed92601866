//! Matrix products with the model's weights.

use std::ops::Range;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::module::linear as portable;
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
    let bias = linear.bias.as_ref().map(Param::val);
    affine(x.reshape([batch * pos, d_input]), linear.weight.val(), bias)
        .reshape([batch, pos, d_output])
}

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    #[cfg(feature = "flex")]
    let x = match super::flex::affine(x, &weight, bias.as_ref()) {
        Ok(product) => return product,
        Err(x) => x,
    };
    portable(x, weight, bias)
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
    let bias = linear.bias.as_ref();
    let bias = bias.map(|bias| bias.val().narrow(0, first, count));
    affine(x.reshape([batch * pos, d_input]), weight, bias).reshape([batch, pos, count])
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
    affine(mixed.reshape([batch * pos, d_head]), rows, None).reshape([batch, pos, d_model])
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
    affine(
        x.reshape([batch * pos, d_model]),
        embedding.transpose(),
        None,
    )
    .reshape([batch, pos, vocab])
}
