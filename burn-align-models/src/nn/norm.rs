//! Normalisation layers, computed in f32 whatever the model's dtype.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};

use super::init::ParamInit;

/// Layer normalisation, `(x - mean) / √(var + ε) · weight + bias`.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// Scale, `[d_model]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift, `[d_model]`.
    pub bias: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    pub(crate) fn new(d_model: usize, epsilon: f64, init: &mut ParamInit<'_, B>) -> Self {
        Self {
            weight: init.constant([d_model], 1.0),
            bias: init.constant([d_model], 0.0),
            epsilon,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let weight = self.weight.val().cast(DType::F32);
        let bias = self.bias.val().cast(DType::F32);
        in_f32(x, |x| layer_norm(x, weight, bias, self.epsilon))
    }
}

/// `(x - mean) / √(var + ε) · weight + bias`, over the features.
pub(super) fn layer_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    #[cfg(feature = "flex")]
    let x = match super::flex::layer_norm(x, &weight, &bias, epsilon) {
        Ok(normed) => return normed,
        Err(x) => x,
    };
    Tensor::from_primitive(TensorPrimitive::Float(B::layer_norm(
        x.into_primitive().tensor(),
        weight.into_primitive().tensor(),
        Some(bias.into_primitive().tensor()),
        epsilon,
    )))
}

/// Root-mean-square normalisation, `x / √(mean(x²) + ε) · weight` (arXiv 1910.07467).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// Scale, `[d_model]`.
    pub weight: Param<Tensor<B, 1>>,
    epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    pub(crate) fn new(d_model: usize, epsilon: f64, init: &mut ParamInit<'_, B>) -> Self {
        Self {
            weight: init.constant([d_model], 1.0),
            epsilon,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        // As in `transformers`, the scale is applied in the model's dtype.
        let x = in_f32(x, |x| root_mean_square(x, self.epsilon));
        x * self.weight.val().unsqueeze()
    }
}

/// `x / √(mean(x²) + ε)`, over the features.
pub(super) fn root_mean_square<B: Backend>(x: Tensor<B, 3>, epsilon: f64) -> Tensor<B, 3> {
    #[cfg(feature = "flex")]
    let x = match super::flex::root_mean_square(x, epsilon) {
        Ok(normed) => return normed,
        Err(x) => x,
    };
    let mean_square = (x.clone() * x.clone()).mean_dim(2);
    x / (mean_square + epsilon).sqrt()
}

/// Applies `f` in f32 and returns to the dtype of `x`.
fn in_f32<B: Backend>(
    x: Tensor<B, 3>,
    f: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
) -> Tensor<B, 3> {
    let dtype = x.dtype();
    f(x.cast(DType::F32)).cast(dtype)
}
