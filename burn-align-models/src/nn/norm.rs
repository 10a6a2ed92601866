//! Normalisation layers, computed in f32 whatever the model's dtype.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};

use super::copies::in_row_major_order;
use super::init::ParamInit;
use super::linearised::LinearisedNorm;

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / √(var + ε) · weight + bias` (arXiv 1607.06450).
    Layer,
    /// `x / √(mean(x²) + ε) · weight` (arXiv 1910.07467), where the scale is applied in the model's
    /// dtype: LLaMA, Qwen.
    Rms,
    /// The same, but rounded to the model's dtype after the scale: OLMo 2.
    RmsF32,
    /// `x / √(mean(x²) + ε) · (1 + weight)`, rounded to the model's dtype after the scale: Gemma.
    RmsPlusOne,
}

/// A norm over the last axis, computed in f32.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// Scale, `[width]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift, `[width]`, of layer norms.
    pub bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    kind: NormKind,
    epsilon: f64,
}

impl<B: Backend> Norm<B> {
    /// A norm that does not change the scale of normalised vectors yet.
    pub fn new(kind: NormKind, width: usize, epsilon: f64, init: &mut ParamInit<'_, B>) -> Self {
        let one = if kind == NormKind::RmsPlusOne {
            0.0
        } else {
            1.0
        };
        Self {
            weight: init.constant([width], one),
            bias: (kind == NormKind::Layer).then(|| init.constant([width], 0.0)),
            kind,
            epsilon,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, width]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let in_model = || self.weight.val();
        let weight = || in_model().cast(DType::F32);
        match self.kind {
            NormKind::Layer => {
                let weight = weight();
                let bias = match &self.bias {
                    Some(bias) => bias.val().cast(DType::F32),
                    None => weight.zeros_like(),
                };
                in_f32(x, |x| layer_norm(x, weight, bias, self.epsilon))
            }
            NormKind::Rms if x.dtype() != DType::F32 => {
                in_f32(x, |x| root_mean_square(x, self.epsilon)) * in_model().unsqueeze()
            }
            NormKind::Rms | NormKind::RmsF32 => in_f32(x, |x| rms_norm(x, weight(), self.epsilon)),
            NormKind::RmsPlusOne => in_f32(x, |x| rms_norm(x, weight() + 1.0, self.epsilon)),
        }
    }

    /// The direction in the input that this direction in the output is, if the scale of the norm is
    /// held at its value for `at`: `⟨direction, norm(at)⟩` is `⟨output, at⟩`, plus `⟨direction,
    /// bias⟩` in layer norms. It is linear in what `at` is the sum of.
    ///
    /// # Shapes
    /// - direction, at, output: `[batch, pos, width]`; the output in f32
    pub fn pulled_back(&self, direction: Tensor<B, 3>, at: Tensor<B, 3>) -> Tensor<B, 3> {
        let (direction, at) = (
            direction.cast(DType::F32) * self.gain(),
            at.cast(DType::F32),
        );
        let centred = |x: Tensor<B, 3>| match self.is_centred() {
            true => x.clone() - x.mean_dim(2),
            false => x,
        };
        let mean_square = centred(at).powi_scalar(2).mean_dim(2);
        centred(direction) / (mean_square + self.epsilon).sqrt()
    }

    /// The norm as a linear map of small changes of `at`: its full Jacobian, the scale included.
    ///
    /// # Shapes
    /// - at: `[batch, pos, width]`
    pub fn linearised(&self, at: Tensor<B, 3>) -> LinearisedNorm<B> {
        LinearisedNorm::new(self, at)
    }

    /// What the normalised vector is multiplied by, in f32, `[1, 1, width]`.
    pub(super) fn gain(&self) -> Tensor<B, 3> {
        let weight = self.weight.val().cast(DType::F32).unsqueeze::<3>();
        match self.kind {
            NormKind::RmsPlusOne => weight + 1.0,
            NormKind::Layer | NormKind::Rms | NormKind::RmsF32 => weight,
        }
    }

    /// Whether the mean over features is subtracted.
    pub(super) fn is_centred(&self) -> bool {
        match self.kind {
            NormKind::Layer => true,
            NormKind::Rms | NormKind::RmsF32 | NormKind::RmsPlusOne => false,
        }
    }

    /// Added to the variance or the mean square.
    pub(super) fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// [`forward`](Self::forward) of each head's vector.
    ///
    /// # Shapes
    /// - x, output: `[batch, head, pos, width]`
    pub fn forward_heads(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, head, pos, width] = x.dims();
        // Heads come from projections, in which those of a token lie side by side.
        let by_token = in_row_major_order(x.swap_dims(1, 2));
        let normed = self.forward(by_token.reshape([batch * pos, head, width]));
        normed.reshape([batch, pos, head, width]).swap_dims(1, 2)
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

/// `x / √(mean(x²) + ε) · weight`, over the features.
pub(super) fn rms_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    #[cfg(feature = "flex")]
    let x = match super::flex::rms_norm(x, &weight, epsilon) {
        Ok(normed) => return normed,
        Err(x) => x,
    };
    root_mean_square(x, epsilon) * weight.unsqueeze()
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
