//! The operations that a self-check covers, and how far rounding may take them from the exact
//! values.

use std::fmt;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

/// An operation that plans are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// A product of two matrices, as of activations with a weight.
    Product,
    /// A product whose second factor has one column: a rotation with one direction, a reflection.
    ColumnProduct,
    /// A product with a transposed matrix that is not copied: a head that is tied to the embedding.
    TransposedProduct,
    /// Products of heads, whose axes have been swapped without a copy.
    HeadProduct,
    /// The softmax of scores under a mask.
    Softmax,
    /// Causal attention of whole rows.
    Attention,
    /// Attention of one new position to all earlier ones, whose keys and values were kept.
    CachedAttention,
    /// From a dtype of 16 bits to f32, and back.
    Cast,
    /// A difference in f32 between a matrix of 16-bit values and a row in f32.
    MixedDifference,
    /// Rows taken by their indices.
    Select,
    /// Elements taken by their indices.
    Gather,
    /// Rows added at their indices: the gradient of [`Select`](Self::Select).
    SelectAdd,
    /// A block of values put into a larger tensor.
    SliceAssign,
    /// Values taken from one tensor or the other, by a mask.
    MaskWhere,
    /// Tensors joined along an axis.
    Concatenate,
    /// A part along an axis.
    Narrow,
    /// An axis of size 1 repeated.
    Expand,
    /// Two axes swapped, then copied: heads merged into one vector.
    SwapAxes,
    /// Sums along an axis.
    Sum,
    /// The index of the largest value along an axis.
    Argmax,
    /// A layer norm.
    LayerNorm,
    /// A root mean square norm.
    RmsNorm,
    /// A rotary embedding.
    Rotary,
    /// GELU, with the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// An MLP with a SiLU gate.
    GatedMlp,
    /// An interchange along a few directions: `x + (s - x) R Rᵀ`.
    LowRank,
    /// The logarithm of a softmax at given classes.
    CrossEntropy,
    /// The gradients of a matrix product.
    ProductGradient,
    /// The gradient of a softmax.
    SoftmaxGradient,
    /// The gradient of a norm.
    NormGradient,
    /// The gradient of rows taken by their indices.
    SelectGradient,
    /// The logits of a small decoder.
    DecoderForward,
    /// The logits of a small decoder under interchanges, from a plan.
    DecoderInterchange,
    /// The logits of a small decoder that continues from kept keys and values.
    DecoderContinued,
    /// The gradient of a small decoder's logits with respect to a steering vector.
    DecoderGradient,
}

/// How a result is rounded.
enum Rounding {
    /// Values are moved, not computed.
    None,
    /// A function, or a short sum.
    Function,
    /// Tens of thousands of numbers, which may be added one after the other.
    LongSum,
    /// A sum of products.
    Product,
    /// Several products and functions, one after the other.
    Chain,
}

impl Operation {
    /// The largest difference that rounding explains, relative to the largest value of the result.
    ///
    /// A few roundings of the largest value. Products of f32 count with the 11 bits of TF32, in
    /// which NVIDIA GPUs may compute them: the faults looked for are a hundred times as large.
    pub(super) fn allowed(self, dtype: DType) -> f64 {
        const ROUNDED_TO_11_BITS: f64 = 1.0 / 2048.0;
        const ROUNDED_TO_8_BITS: f64 = 1.0 / 256.0;
        let rounding = match dtype {
            DType::BF16 => ROUNDED_TO_8_BITS,
            _ => ROUNDED_TO_11_BITS,
        };
        let is_half = matches!(dtype, DType::BF16 | DType::F16);
        match self.rounding() {
            Rounding::None => 0.0,
            Rounding::Function if is_half => 16.0 * rounding,
            Rounding::Function => 1e-4,
            Rounding::LongSum => 1e-3,
            // Some add up in 16 bits, as Flex does for one row.
            Rounding::Product if is_half => 16.0 * rounding,
            Rounding::Product => 8.0 * rounding,
            Rounding::Chain => 32.0 * rounding,
        }
    }

    fn rounding(self) -> Rounding {
        match self {
            Self::Select
            | Self::Gather
            | Self::SliceAssign
            | Self::MaskWhere
            | Self::Concatenate
            | Self::Narrow
            | Self::Expand
            | Self::SwapAxes
            | Self::Argmax => Rounding::None,
            Self::Softmax
            | Self::Cast
            | Self::MixedDifference
            | Self::SelectAdd
            | Self::LayerNorm
            | Self::RmsNorm
            | Self::Rotary
            | Self::Gelu
            | Self::GeluTanh
            | Self::CrossEntropy
            | Self::SelectGradient => Rounding::Function,
            Self::Sum => Rounding::LongSum,
            Self::Product
            | Self::ColumnProduct
            | Self::TransposedProduct
            | Self::HeadProduct
            | Self::ProductGradient => Rounding::Product,
            Self::Attention
            | Self::CachedAttention
            | Self::GatedMlp
            | Self::LowRank
            | Self::SoftmaxGradient
            | Self::NormGradient
            | Self::DecoderForward
            | Self::DecoderInterchange
            | Self::DecoderContinued
            | Self::DecoderGradient => Rounding::Chain,
        }
    }

    /// Whether it is one matrix product, or the gradient of one.
    pub(super) fn is_product(self) -> bool {
        matches!(self.rounding(), Rounding::Product)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Product => "matrix product",
            Self::ColumnProduct => "matrix product with one column",
            Self::TransposedProduct => "matrix product with a transposed matrix",
            Self::HeadProduct => "matrix product of heads",
            Self::Softmax => "softmax under a mask",
            Self::Attention => "attention",
            Self::CachedAttention => "attention to kept keys and values",
            Self::Cast => "cast",
            Self::MixedDifference => "difference after a cast",
            Self::Select => "rows by index",
            Self::Gather => "elements by index",
            Self::SelectAdd => "rows added by index",
            Self::SliceAssign => "assignment of a slice",
            Self::MaskWhere => "choice by a mask",
            Self::Concatenate => "concatenation",
            Self::Narrow => "part of an axis",
            Self::Expand => "repetition of an axis",
            Self::SwapAxes => "swapped axes",
            Self::Sum => "sum along an axis",
            Self::Argmax => "index of the largest value",
            Self::LayerNorm => "layer norm",
            Self::RmsNorm => "root mean square norm",
            Self::Rotary => "rotary embedding",
            Self::Gelu => "GELU",
            Self::GeluTanh => "tanh approximation of GELU",
            Self::GatedMlp => "gated MLP",
            Self::LowRank => "interchange along a few directions",
            Self::CrossEntropy => "cross-entropy",
            Self::ProductGradient => "gradient of a matrix product",
            Self::SoftmaxGradient => "gradient of a softmax",
            Self::NormGradient => "gradient of a norm",
            Self::SelectGradient => "gradient of rows by index",
            Self::DecoderForward => "forward pass of a decoder",
            Self::DecoderInterchange => "interchanges in a decoder",
            Self::DecoderContinued => "continued run of a decoder",
            Self::DecoderGradient => "gradient of a decoder",
        })
    }
}
