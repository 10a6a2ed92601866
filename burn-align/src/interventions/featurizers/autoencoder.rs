//! Features in the hidden layer of an autoencoder, as in pyvene.
//!
//! A feature of a sparse autoencoder is often easier to interpret than a neuron, but the
//! autoencoder reconstructs the activation only in part. The featurizers here replace the whole
//! activation by the decoder's output, so the reconstruction error is lost: even a swap with
//! `source = base` changes the prediction. Compare with that swap, not with the plain run, or use
//! [`DictionaryFeatures`](super::DictionaryFeatures), which keep the error.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::dictionary::{restore_layers, store_layers};
use super::{Encoded, Featurizer};
use crate::dictionaries::{Dictionary, FeatureActivation};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Hidden features of an autoencoder: `z = ReLU((x - b_d) W_e + b_e)`, and the vector
/// `z W_d + b_d`. As in pyvene, the reconstruction error is lost. All parameters are trained.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct Autoencoder<B: Backend> {
    dictionary: Dictionary<B>,
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
        let dictionary = Dictionary::of_layers(encoder, FeatureActivation::relu(), decoder);
        Self {
            dictionary: dictionary.subtracting_bias(),
        }
    }

    /// Its parameters.
    pub fn dictionary(&self) -> &Dictionary<B> {
        &self.dictionary
    }
}

impl<B: Backend> Featurizer<B> for Autoencoder<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.dictionary.encoder.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.dictionary.encode(x)
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        self.dictionary.decode(z, &from.vector())
    }
}

impl<B: Backend> Part<B> for Autoencoder<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        store_layers(&self.dictionary, out)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let [encoder, decoder] = restore_layers(from)?;
        Ok(Self::new(encoder, decoder))
    }
}

/// Hidden features of a JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435):
/// `z = ReLU(h) · [h > θ]` with `h = x W_e + b_e`, and the vector `z W_d + b_d`. As in
/// pyvene, the reconstruction error is lost. The threshold `θ` has no gradient.
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct JumpReluAutoencoder<B: Backend> {
    dictionary: Dictionary<B>,
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
        let activation = FeatureActivation::jump_relu(threshold);
        Self {
            dictionary: Dictionary::of_layers(encoder, activation, decoder),
        }
    }

    /// Its parameters.
    pub fn dictionary(&self) -> &Dictionary<B> {
        &self.dictionary
    }
}

impl<B: Backend> Featurizer<B> for JumpReluAutoencoder<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.dictionary.encoder.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.dictionary.encode(x)
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        self.dictionary.decode(z, &from.vector())
    }
}

impl<B: Backend> Part<B> for JumpReluAutoencoder<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        store_layers(&self.dictionary, out)?;
        match &self.dictionary.activation {
            FeatureActivation::JumpRelu(it) => out.tensor("threshold", &it.threshold),
            _ => Ok(()),
        }
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let [encoder, decoder] = restore_layers(from)?;
        let [_d, latent] = encoder.0.dims();
        let threshold = from.tensor("threshold", [Some(latent)])?;
        Ok(Self::new(encoder, threshold, decoder))
    }
}
