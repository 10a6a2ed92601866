//! How an activation is normalised before it is encoded.

use burn::tensor::{DType, Tensor, backend::Backend};

/// What is done to each row of an activation before it is encoded. The reconstruction of an
/// autoencoder is mapped back, that of a transcoder is not. Names and formulas are those of SAELens
/// (`normalize_activations`).
///
/// A constant factor (`expected_average_only_in`) needs no normalisation: it is part of the
/// weights, see [`Dictionary::with_input_scale`](super::Dictionary::with_input_scale).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InputNorm {
    /// Nothing.
    #[default]
    None,
    /// `x √d / ‖x‖`.
    #[doc(alias = "constant_norm_rescale")]
    ConstantNorm,
    /// `(x − μ) / (σ + 10⁻⁵)`, with the unbiased standard deviation; mapped back by `y σ + μ`.
    LayerNorm,
}

/// The statistics of each row.
struct Statistics<B: Backend> {
    /// `[row, 1]`.
    mean: Option<Tensor<B, 2>>,
    /// `[row, 1]`.
    scale: Tensor<B, 2>,
}

impl InputNorm {
    /// SAELens' constant.
    const EPSILON: f64 = 1e-5;
    /// Smallest scale of a row, so that a row of zeros stays one.
    const SMALLEST: f64 = 1e-30;

    /// The activation as the encoder reads it, `[row, d_in]`.
    pub(super) fn apply<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let Some(Statistics { mean, scale }) = self.statistics(&x) else {
            return x;
        };
        match mean {
            Some(mean) => (x - mean) / (scale + Self::EPSILON),
            None => x / scale,
        }
    }

    /// A sum of decoder directions in units of the activation, `[row, d_out]`.
    pub(super) fn rescale<B: Backend>(self, y: Tensor<B, 2>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        match self.statistics(x) {
            Some(Statistics { scale, .. }) => y * scale,
            None => y,
        }
    }

    /// A reconstruction in units of the activation, `[row, d_out]`.
    pub(super) fn undo<B: Backend>(self, y: Tensor<B, 2>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
        match self.statistics(x) {
            Some(Statistics { scale, mean }) => match mean {
                Some(mean) => y * scale + mean,
                None => y * scale,
            },
            None => y,
        }
    }

    fn statistics<B: Backend>(self, x: &Tensor<B, 2>) -> Option<Statistics<B>> {
        let [_row, d] = x.dims();
        let x = x.clone().cast(DType::F32);
        match self {
            Self::None => None,
            Self::ConstantNorm => {
                let norm = x.square().sum_dim(1).sqrt();
                Some(Statistics {
                    mean: None,
                    scale: (norm / (d as f64).sqrt()).clamp_min(Self::SMALLEST),
                })
            }
            Self::LayerNorm => {
                let mean = x.clone().mean_dim(1);
                let squares = (x - mean.clone()).square().sum_dim(1);
                let scale = (squares / d.saturating_sub(1).max(1) as f64).sqrt();
                Some(Statistics {
                    mean: Some(mean),
                    scale,
                })
            }
        }
    }
}
