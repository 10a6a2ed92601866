//! Matrix products with the model's weights.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::module::linear as portable;
use burn::tensor::{Tensor, backend::Backend};

use super::weight::{Orientation, Weight};
use super::{TokenEmbedding, unfused};
use crate::quants::QuantizedMatrix;

/// `x W + b`: every product of activations with a model weight in this crate, dense or quantised.
///
/// On Flex, with the feature `flex`, products are fast, and a row's result is the same to the bit
/// whatever it is batched with.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[d_input, d_output]`.
    pub weight: Weight<B>,
    /// `[d_output]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Projection<B> {
    /// # Shapes
    /// - weight: `[d_input, d_output]`
    /// - bias: `[d_output]`
    pub fn new(weight: Param<Tensor<B, 2>>, bias: Option<Param<Tensor<B, 1>>>) -> Self {
        Self {
            weight: Weight::new(weight, Orientation::Transposed),
            bias,
        }
    }

    /// `[d_input, d_output]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// `x W + b` as one matrix product over all positions of all rows, so that the weight is read
    /// once rather than once per row.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_input]`
    /// - output: `[batch, pos, d_output]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, pos, d_input] = x.dims();
        let [_d_input, d_output] = self.dims();
        let bias = self.bias.as_ref().map(Param::val);
        let x = x.reshape([batch * pos, d_input]);
        let product = match self.weight.quantized() {
            Some(matrix) => affine_quantized(x, matrix, bias),
            None => affine_in_parts(x, self.weight.parts(), bias),
        };
        product.reshape([batch, pos, d_output])
    }

    /// [`forward`](Self::forward) of several projections that read the same. On Flex without
    /// autodiff, they read it once if there are many rows.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_input]`
    /// - outputs: `[batch, pos, d_output]`
    pub fn forward_each<const N: usize>(each: [&Self; N], x: Tensor<B, 3>) -> [Tensor<B, 3>; N] {
        #[cfg(feature = "flex")]
        let x = match Self::forward_together(each, x) {
            Ok(products) => return products,
            Err(x) => x,
        };
        // The last one may use its memory again.
        let (mut left, mut x) = (N, Some(x));
        each.map(|projection| {
            left -= 1;
            let x = match left {
                0 => x.take(),
                _ => x.clone(),
            };
            projection.forward(x.expect("taken last"))
        })
    }

    #[cfg(feature = "flex")]
    fn forward_together<const N: usize>(
        each: [&Self; N],
        x: Tensor<B, 3>,
    ) -> Result<[Tensor<B, 3>; N], Tensor<B, 3>> {
        let is_dense = |it: &&Self| it.weight.quantized().is_none();
        if !super::flex::is_flex::<B>() || !each.iter().all(is_dense) {
            return Err(x);
        }
        let parts = each.map(|projection| projection.weight.parts());
        let in_one_part = parts.iter().all(|parts| parts.len() == 1);
        if !in_one_part {
            return Err(x);
        }
        let [batch, pos, d_input] = x.dims();
        let biases = each.map(|projection| projection.bias.as_ref().map(Param::val));
        let products = super::flex::affine_each(
            x.reshape([batch * pos, d_input]),
            parts.each_ref().map(|parts| &parts[0]),
            biases.each_ref().map(Option::as_ref),
        );
        match products {
            Ok(products) => Ok(products.map(|product| {
                let [_rows, d_output] = product.dims();
                product.reshape([batch, pos, d_output])
            })),
            Err(x) => Err(x.reshape([batch, pos, d_input])),
        }
    }

    /// Some of the outputs, side by side; there may be none.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_input]`
    /// - output: `[batch, pos, outputs.len()]`
    pub fn forward_part(&self, outputs: Range<usize>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, pos, d_input] = x.dims();
        let (first, count) = (outputs.start, outputs.len());
        if count == 0 {
            return Tensor::zeros([batch, pos, 0], (&x.device(), x.dtype()));
        }
        let bias = self.bias.as_ref();
        let bias = bias.map(|bias| bias.val().narrow(0, first, count));
        let x = x.reshape([batch * pos, d_input]);
        let product = match self.weight.quantized() {
            Some(matrix) => affine_quantized(x, &matrix.rows(outputs), bias),
            None => affine_in_parts(x, self.weight.outputs(outputs), bias),
        };
        product.reshape([batch, pos, count])
    }

    /// What some of the inputs contribute to the output, without the bias: a head's part of an
    /// output projection.
    ///
    /// # Shapes
    /// - x: `[batch, pos, inputs.len()]`
    /// - output: `[batch, pos, d_output]`
    pub fn contribution(&self, inputs: Range<usize>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, pos, width] = x.dims();
        let [_d_input, d_output] = self.dims();
        let x = x.reshape([batch * pos, width]);
        let product = match self.weight.quantized() {
            Some(matrix) => affine_quantized(x, &matrix.cols(inputs), None),
            None => {
                let parts = self.weight.parts().into_iter();
                let rows = parts.map(|part| part.narrow(0, inputs.start, inputs.len()));
                affine_in_parts(x, rows.collect(), None)
            }
        };
        product.reshape([batch, pos, d_output])
    }

    /// [`contribution`](Self::contribution) of one head.
    ///
    /// # Shapes
    /// - mixed: `[batch, pos, d_head]`
    /// - output: `[batch, pos, d_model]`
    pub fn head_output(&self, head: usize, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        let [_batch, _pos, d_head] = mixed.dims();
        self.contribution(head * d_head..(head + 1) * d_head, mixed)
    }
}

impl<B: Backend> From<Linear<B>> for Projection<B> {
    fn from(linear: Linear<B>) -> Self {
        Self::new(linear.weight, linear.bias)
    }
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
    let [rows, _d_input] = x.dims();
    match bias {
        Some(bias) if rows == 1 => unfused(x.matmul(weight)) + bias.unsqueeze(),
        bias => portable(x, weight, bias),
    }
}

/// `x W + b`, with the columns of `W` in parts.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - parts: `[d_input, part]` each
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine_in_parts<B: Backend>(
    x: Tensor<B, 2>,
    mut parts: Vec<Tensor<B, 2>>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    if parts.len() == 1 {
        return affine(x, parts.remove(0), bias);
    }
    let mut start = 0;
    let products = parts.into_iter().map(|part| {
        let [_d_input, count] = part.dims();
        let own = bias.clone().map(|bias| bias.narrow(0, start, count));
        start += count;
        affine(x.clone(), part, own)
    });
    Tensor::cat(products.collect(), 1)
}

/// `x Qᵀ + b`. Without a kernel for it, the matrix is dequantised first.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - matrix: `[d_output, d_input]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine_quantized<B: Backend>(
    x: Tensor<B, 2>,
    matrix: &QuantizedMatrix,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    #[cfg(feature = "flex")]
    let x = match super::flex::affine_quantized(x, matrix, bias.as_ref()) {
        Ok(product) => return product,
        Err(x) => x,
    };
    let weight = matrix.to_transposed_tensor(&x.device(), x.dtype());
    portable(x, weight, bias)
}

/// Logits, from a separate head if there is one, otherwise from the token embedding.
///
/// # Shapes
/// - x: `[batch, pos, d_model]`
/// - output: `[batch, pos, vocab]`
pub fn unembed<B: Backend>(
    head: Option<&Projection<B>>,
    embedding: &TokenEmbedding<B>,
    x: Tensor<B, 3>,
) -> Tensor<B, 3> {
    match head {
        Some(head) => head.forward(x),
        None => embedding.unembed(x),
    }
}
