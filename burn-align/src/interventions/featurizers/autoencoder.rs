//! Features in the hidden layer of an autoencoder, as in pyvene.
//!
//! A feature of a sparse autoencoder is often easier to interpret than a neuron, but the
//! autoencoder reconstructs the activation only in part. The featurizers here replace the whole
//! activation by the decoder's output, so the reconstruction error is lost: even a swap with
//! `source = base` changes the prediction. Compare with that swap, not with the plain run, or use
//! [`DictionaryFeatures`](super::DictionaryFeatures), which keep the error.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, activation, backend::Backend};

use super::{Encoded, Featurizer};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Hidden features of an autoencoder: `z = ReLU(W_e (x - b_d) + b_e)`, and the vector
/// `W_d z + b_d`. As in pyvene, the reconstruction error is lost.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct Autoencoder<B: Backend> {
    /// `W_eᵀ`, `[d, latent]`.
    pub encoder: Param<Tensor<B, 2>>,
    /// `b_e`, `[latent]`.
    pub encoder_bias: Param<Tensor<B, 1>>,
    /// `W_dᵀ`, `[latent, d]`.
    pub decoder: Param<Tensor<B, 2>>,
    /// `b_d`, `[d]`.
    pub decoder_bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Autoencoder<B> {
    /// An autoencoder with these parameters.
    ///
    /// # Shapes
    /// - encoder: weight `[d, latent]`, bias `[latent]`
    /// - decoder: weight `[latent, d]`, bias `[d]`
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
    ) -> Self {
        Self {
            encoder: Param::from_tensor(encoder.0.cast(DType::F32)),
            encoder_bias: Param::from_tensor(encoder.1.cast(DType::F32)),
            decoder: Param::from_tensor(decoder.0.cast(DType::F32)),
            decoder_bias: Param::from_tensor(decoder.1.cast(DType::F32)),
        }
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

impl<B: Backend> Featurizer<B> for Autoencoder<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.encoder.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.encode(x)
    }

    fn decode(&self, z: Tensor<B, 2>, _from: &Encoded<'_, B>) -> Tensor<B, 2> {
        self.decode(z)
    }
}

impl<B: Backend> Part<B> for Autoencoder<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.tensor("encoder", &self.encoder)?;
        out.tensor("encoder_bias", &self.encoder_bias)?;
        out.tensor("decoder", &self.decoder)?;
        out.tensor("decoder_bias", &self.decoder_bias)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let encoder = from.tensor("encoder", [None, None])?;
        let [d, latent] = encoder.dims();
        let encoder = (encoder, from.tensor("encoder_bias", [Some(latent)])?);
        let decoder = (
            from.tensor("decoder", [Some(latent), Some(d)])?,
            from.tensor("decoder_bias", [Some(d)])?,
        );
        Ok(Self::new(encoder, decoder))
    }
}

/// Hidden features of a JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435):
/// `z = ReLU(h) · [h > θ]` with `h = x W_e + b_e`, and the vector `z W_d + b_d`. As in
/// pyvene, the reconstruction error is lost. The threshold `θ` has no gradient.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct JumpReluAutoencoder<B: Backend> {
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
}

impl<B: Backend> JumpReluAutoencoder<B> {
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
    ) -> Self {
        Self {
            encoder: Param::from_tensor(encoder.0.cast(DType::F32)),
            encoder_bias: Param::from_tensor(encoder.1.cast(DType::F32)),
            threshold: Param::from_tensor(threshold.cast(DType::F32)),
            decoder: Param::from_tensor(decoder.0.cast(DType::F32)),
            decoder_bias: Param::from_tensor(decoder.1.cast(DType::F32)),
        }
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

impl<B: Backend> Featurizer<B> for JumpReluAutoencoder<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.encoder.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.encode(x)
    }

    fn decode(&self, z: Tensor<B, 2>, _from: &Encoded<'_, B>) -> Tensor<B, 2> {
        self.decode(z)
    }
}

impl<B: Backend> Part<B> for JumpReluAutoencoder<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.tensor("encoder", &self.encoder)?;
        out.tensor("encoder_bias", &self.encoder_bias)?;
        out.tensor("threshold", &self.threshold)?;
        out.tensor("decoder", &self.decoder)?;
        out.tensor("decoder_bias", &self.decoder_bias)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let encoder = from.tensor("encoder", [None, None])?;
        let [d, latent] = encoder.dims();
        let encoder = (encoder, from.tensor("encoder_bias", [Some(latent)])?);
        let threshold = from.tensor("threshold", [Some(latent)])?;
        let decoder = (
            from.tensor("decoder", [Some(latent), Some(d)])?,
            from.tensor("decoder_bias", [Some(d)])?,
        );
        Ok(Self::new(encoder, threshold, decoder))
    }
}
