//! Swapping features in the hidden layer of an autoencoder.
//!
//! A feature of a sparse autoencoder is often easier to interpret than a neuron, but the
//! autoencoder reconstructs the activation only in part. The interventions here replace the whole
//! activation by the decoder's output, so the reconstruction error is lost: even a swap with
//! `source = base` changes the prediction. Compare with that swap, not with the plain run.

use burn::module::{Module, Param};
use burn::tensor::{Bool, DType, Tensor, TensorData, activation, backend::Backend};

use super::rotated::choose;
use super::{Intervention, Misfit, Operands, TokenGrouping};

/// Swaps hidden features of an autoencoder: `z = ReLU(W_e (x - b_d) + b_e)`, with the new
/// activation `W_d z + b_d`. As in pyvene, the reconstruction error is lost.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct AutoencoderIntervention<B: Backend> {
    /// `W_eᵀ`, `[d, latent]`.
    pub encoder: Param<Tensor<B, 2>>,
    /// `b_e`, `[latent]`.
    pub encoder_bias: Param<Tensor<B, 1>>,
    /// `W_dᵀ`, `[latent, d]`.
    pub decoder: Param<Tensor<B, 2>>,
    /// `b_d`, `[d]`.
    pub decoder_bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    tokens: TokenGrouping,
    /// Which hidden features are swapped if no subspace is named; `None` for all.
    #[module(skip)]
    swapped: Option<Vec<usize>>,
}

impl<B: Backend> AutoencoderIntervention<B> {
    /// An autoencoder with these parameters.
    ///
    /// # Shapes
    /// - encoder: weight `[d, latent]`, bias `[latent]`
    /// - decoder: weight `[latent, d]`, bias `[d]`
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
        tokens: TokenGrouping,
    ) -> Self {
        Self {
            encoder: Param::from_tensor(encoder.0.cast(DType::F32)),
            encoder_bias: Param::from_tensor(encoder.1.cast(DType::F32)),
            decoder: Param::from_tensor(decoder.0.cast(DType::F32)),
            decoder_bias: Param::from_tensor(decoder.1.cast(DType::F32)),
            tokens,
            swapped: None,
        }
    }

    /// Swaps these hidden features only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(mut self, features: Vec<usize>) -> Self {
        self.swapped = Some(features);
        self
    }

    /// Which hidden features are swapped if no subspace is named; `None` for all.
    pub fn swapped(&self) -> Option<&[usize]> {
        self.swapped.as_deref()
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// `[vector, d]` → `[vector, latent]`.
    pub fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = x - self.decoder_bias.val().unsqueeze();
        activation::relu(x.matmul(self.encoder.val()) + self.encoder_bias.val().unsqueeze())
    }

    /// `[vector, latent]` → `[vector, d]`.
    pub fn decode(&self, z: Tensor<B, 2>) -> Tensor<B, 2> {
        z.matmul(self.decoder.val()) + self.decoder_bias.val().unsqueeze()
    }
}

impl<B: Backend> Intervention<B> for AutoencoderIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d, latent] = self.encoder.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(latent)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let encode = |x| self.encode(self.tokens.join(x));
        let subspace = match (&operands.subspace, &self.swapped) {
            (None, Some(swapped)) => {
                let [_d, latent] = self.encoder.dims();
                Some(only(swapped, latent, &base.device()))
            }
            (named, _) => named.clone(),
        };
        let new = swap(encode, &base, operands.source(), subspace);
        self.tokens.split(&base, self.decode(new))
    }
}

/// Swaps hidden features of a JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435):
/// `z = ReLU(h) · [h > θ]` with `h = x W_e + b_e`, and the new activation `z W_d + b_d`. As in
/// pyvene, the reconstruction error is lost. The threshold `θ` has no gradient.
#[derive(Module, Debug)]
#[doc(alias = "JumpReLUAutoencoderIntervention")]
#[doc(alias = "SAE")]
pub struct JumpReluAutoencoderIntervention<B: Backend> {
    /// `W_e`, `[d, latent]`.
    pub encoder: Param<Tensor<B, 2>>,
    /// `b_e`, `[latent]`.
    pub encoder_bias: Param<Tensor<B, 1>>,
    /// `θ`, `[latent]`.
    pub threshold: Param<Tensor<B, 1>>,
    /// `W_d`, `[latent, d]`.
    pub decoder: Param<Tensor<B, 2>>,
    /// `b_d`, `[d]`.
    pub decoder_bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    tokens: TokenGrouping,
    /// Which hidden features are swapped if no subspace is named; `None` for all.
    #[module(skip)]
    swapped: Option<Vec<usize>>,
}

impl<B: Backend> JumpReluAutoencoderIntervention<B> {
    /// An autoencoder with these parameters.
    ///
    /// # Shapes
    /// - encoder: weight `[d, latent]`, bias `[latent]`
    /// - threshold: `[latent]`
    /// - decoder: weight `[latent, d]`, bias `[d]`
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        threshold: Tensor<B, 1>,
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
        tokens: TokenGrouping,
    ) -> Self {
        Self {
            encoder: Param::from_tensor(encoder.0.cast(DType::F32)),
            encoder_bias: Param::from_tensor(encoder.1.cast(DType::F32)),
            threshold: Param::from_tensor(threshold.cast(DType::F32)),
            decoder: Param::from_tensor(decoder.0.cast(DType::F32)),
            decoder_bias: Param::from_tensor(decoder.1.cast(DType::F32)),
            tokens,
            swapped: None,
        }
    }

    /// Swaps these hidden features only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(mut self, features: Vec<usize>) -> Self {
        self.swapped = Some(features);
        self
    }

    /// Which hidden features are swapped if no subspace is named; `None` for all.
    pub fn swapped(&self) -> Option<&[usize]> {
        self.swapped.as_deref()
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// `[vector, d]` → `[vector, latent]`.
    pub fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = x.matmul(self.encoder.val()) + self.encoder_bias.val().unsqueeze();
        let threshold = self.threshold.val().unsqueeze::<2>().expand(hidden.shape());
        let off = hidden.clone().lower_equal(threshold);
        activation::relu(hidden).mask_fill(off, 0.0)
    }

    /// `[vector, latent]` → `[vector, d]`.
    pub fn decode(&self, z: Tensor<B, 2>) -> Tensor<B, 2> {
        z.matmul(self.decoder.val()) + self.decoder_bias.val().unsqueeze()
    }
}

impl<B: Backend> Intervention<B> for JumpReluAutoencoderIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d, latent] = self.encoder.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(latent)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let encode = |x| self.encode(self.tokens.join(x));
        let subspace = match (&operands.subspace, &self.swapped) {
            (None, Some(swapped)) => {
                let [_d, latent] = self.encoder.dims();
                Some(only(swapped, latent, &base.device()))
            }
            (named, _) => named.clone(),
        };
        let new = swap(encode, &base, operands.source(), subspace);
        self.tokens.split(&base, self.decode(new))
    }
}

/// A subspace of these features, the same for every example, `[1, 1, latent]`.
fn only<B: Backend>(features: &[usize], latent: usize, device: &B::Device) -> Tensor<B, 3, Bool> {
    let chosen: Vec<bool> = (0..latent).map(|i| features.contains(&i)).collect();
    Tensor::from_data(TensorData::new(chosen, [1, 1, latent]), device)
}

/// The base's hidden features, with the source's in the subspace, `[vector, latent]`.
fn swap<B: Backend>(
    encode: impl Fn(Tensor<B, 3>) -> Tensor<B, 2>,
    base: &Tensor<B, 3>,
    source: Tensor<B, 3>,
    subspace: Option<Tensor<B, 3, Bool>>,
) -> Tensor<B, 2> {
    let source = encode(source);
    match subspace {
        None => source,
        Some(_) => {
            let kept = encode(base.clone());
            let change = source - kept.clone();
            kept + choose(change, subspace, base.dims()[0])
        }
    }
}
