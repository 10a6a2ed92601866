//! Features of published dictionaries.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{Encoded, Featurizer};
use crate::dictionaries::{
    Dictionary, DictionaryError, DictionaryKind, FeatureActivation, InputNorm, Ranking, indices,
};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// The features of a [`Dictionary`] that is an autoencoder. What it does not reconstruct, its
/// error, stays in the activation: `x + (f′ - f) W_dec`, so that nothing changes if no feature
/// does. It is not trained; gradients flow through it.
///
/// # When it misleads
/// See [`dictionaries`](crate::dictionaries#when-it-misleads).
#[derive(Module, Debug)]
#[doc(alias = "SAE")]
pub struct DictionaryFeatures<B: Backend> {
    dictionary: Dictionary<B>,
    /// Some of the dictionary's features; `None` for all.
    #[module(skip)]
    selected: Option<Vec<usize>>,
}

impl<B: Backend> DictionaryFeatures<B> {
    /// All features of a dictionary.
    ///
    /// # Errors
    /// [`DictionaryError::Misfit`] for a transcoder, which reads another activation than it writes.
    pub fn new(dictionary: Dictionary<B>) -> Result<Self, DictionaryError> {
        match dictionary.kind() {
            DictionaryKind::Autoencoder => Ok(Self {
                dictionary: dictionary.no_grad(),
                selected: None,
            }),
            DictionaryKind::Transcoder => Err(DictionaryError::Misfit {
                part: "dictionary, to change its features in the activation that it reads",
                expected: "an autoencoder".to_owned(),
                found: "a transcoder".to_owned(),
            }),
        }
    }

    /// Some features of a dictionary: feature `i` is then `features[i]` of the dictionary. Work,
    /// memory and what is saved are in proportion to their number, except for TopK, whose features
    /// compete with all others.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`DictionaryError::NoSuchFeature`],
    /// [`DictionaryError::RepeatedFeature`] or [`DictionaryError::NoFeatures`].
    pub fn selected(
        dictionary: Dictionary<B>,
        features: &[usize],
    ) -> Result<Self, DictionaryError> {
        let whole = Self::new(dictionary)?;
        whole.dictionary.check_features(features)?;
        if !whole.dictionary.activation.is_local() {
            return Ok(Self {
                selected: Some(features.to_vec()),
                ..whole
            });
        }
        let dictionary = whole.dictionary;
        let indices = indices(features, &dictionary.encoder.val().device());
        let of = |param: Param<Tensor<B, 1>>| param.val().detach().select(0, indices.clone());
        let activation = match dictionary.activation.clone() {
            FeatureActivation::JumpRelu(it) => FeatureActivation::jump_relu(of(it.threshold)),
            FeatureActivation::Gated(it) => {
                FeatureActivation::gated(of(it.log_magnitude), of(it.magnitude_bias))
            }
            other => other,
        };
        let encoder = dictionary.encoder.val().detach().select(1, indices.clone());
        let decoder = dictionary.decoder.val().detach().select(0, indices.clone());
        let mut few = Dictionary::new(
            (encoder, of(dictionary.encoder_bias.clone())),
            activation,
            (decoder, dictionary.decoder_bias.val().detach()),
        )?
        .with_kind(DictionaryKind::Autoencoder)?
        .with_input_norm(dictionary.input_norm())
        .with_subtracted_bias(dictionary.subtracts_bias())?;
        if let Some(skip) = &dictionary.skip {
            few = few.with_skip(skip.val().detach())?;
        }
        Self::new(few)
    }

    /// The dictionary; if features were selected, with these only.
    pub fn dictionary(&self) -> &Dictionary<B> {
        &self.dictionary
    }
}

impl<B: Backend> Featurizer<B> for DictionaryFeatures<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        let [d, all] = self.dictionary.encoder.dims();
        Some([d, self.selected.as_ref().map_or(all, Vec::len)])
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let device = x.device();
        let all = self.dictionary.encode(x);
        match &self.selected {
            Some(selected) => all.select(1, indices(selected, &device)),
            None => all,
        }
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        let x = from.vector();
        let change = z - from.features();
        let change = match &self.selected {
            Some(selected) => {
                let indices = indices(selected, &x.device());
                let directions = self.dictionary.decoder.val().select(0, indices);
                self.dictionary.in_units(change.matmul(directions), &x)
            }
            None => self.dictionary.contribution(change, &x),
        };
        x + change
    }
}

/// What is saved of a dictionary, apart from its tensors.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActivationName {
    Relu,
    JumpRelu,
    Gated,
    TopK(usize),
    AbsTopK(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NormName {
    None,
    ConstantNorm,
    LayerNorm,
}

/// Saves what every dictionary has.
pub(super) fn store_layers<B: Backend>(
    it: &Dictionary<B>,
    out: &mut Writer<'_>,
) -> Result<(), SaveInterventionsError> {
    out.tensor("encoder", &it.encoder)?;
    out.tensor("encoder_bias", &it.encoder_bias)?;
    out.tensor("decoder", &it.decoder)?;
    out.tensor("decoder_bias", &it.decoder_bias)
}

/// Weight and bias.
type Layer<B> = (Tensor<B, 2>, Tensor<B, 1>);

/// The encoder and the decoder of an autoencoder.
pub(super) fn restore_layers<B: Backend>(
    from: &mut Reader<'_, B>,
) -> Result<[Layer<B>; 2], PartError> {
    let encoder = from.tensor("encoder", [None, None])?;
    let [d, features] = encoder.dims();
    let encoder_bias = from.tensor("encoder_bias", [Some(features)])?;
    let decoder = from.tensor("decoder", [Some(features), Some(d)])?;
    let decoder_bias = from.tensor("decoder_bias", [Some(d)])?;
    Ok([(encoder, encoder_bias), (decoder, decoder_bias)])
}

impl<B: Backend> Part<B> for DictionaryFeatures<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        let it = &self.dictionary;
        let activation = match &it.activation {
            FeatureActivation::Relu(_) => ActivationName::Relu,
            FeatureActivation::JumpRelu(jump) => {
                out.tensor("threshold", &jump.threshold)?;
                ActivationName::JumpRelu
            }
            FeatureActivation::Gated(gated) => {
                out.tensor("log_magnitude", &gated.log_magnitude)?;
                out.tensor("magnitude_bias", &gated.magnitude_bias)?;
                ActivationName::Gated
            }
            FeatureActivation::TopK(top) => match top.ranking {
                Ranking::Value => ActivationName::TopK(top.k),
                Ranking::Magnitude => ActivationName::AbsTopK(top.k),
            },
        };
        let norm = match it.input_norm() {
            InputNorm::None => NormName::None,
            InputNorm::ConstantNorm => NormName::ConstantNorm,
            InputNorm::LayerNorm => NormName::LayerNorm,
        };
        out.field("activation", activation);
        out.field("input_norm", norm);
        out.field("subtracts_bias", it.subtracts_bias());
        out.field("skip", it.skip.is_some());
        out.field("selected", &self.selected);
        store_layers(it, out)?;
        match &it.skip {
            Some(skip) => out.tensor("skip", skip),
            None => Ok(()),
        }
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let misfit = |error: DictionaryError| PartError::Description(error.to_string());
        let [encoder, decoder] = restore_layers(from)?;
        let [d, features] = encoder.0.dims();
        let activation = match from.field("activation")? {
            ActivationName::Relu => FeatureActivation::relu(),
            ActivationName::JumpRelu => {
                FeatureActivation::jump_relu(from.tensor("threshold", [Some(features)])?)
            }
            ActivationName::Gated => FeatureActivation::gated(
                from.tensor("log_magnitude", [Some(features)])?,
                from.tensor("magnitude_bias", [Some(features)])?,
            ),
            ActivationName::TopK(k) => FeatureActivation::top_k(k),
            ActivationName::AbsTopK(k) => FeatureActivation::abs_top_k(k),
        };
        let norm = match from.field("input_norm")? {
            NormName::None => InputNorm::None,
            NormName::ConstantNorm => InputNorm::ConstantNorm,
            NormName::LayerNorm => InputNorm::LayerNorm,
        };
        let mut dictionary = Dictionary::new(encoder, activation, decoder)
            .map_err(misfit)?
            .with_input_norm(norm);
        if from.field("subtracts_bias")? {
            dictionary = dictionary.with_subtracted_bias(true).map_err(misfit)?;
        }
        if from.field("skip")? {
            let skip = from.tensor("skip", [Some(d), Some(d)])?;
            dictionary = dictionary.with_skip(skip).map_err(misfit)?;
        }
        match from.field::<Option<Vec<usize>>>("selected")? {
            Some(selected) => Self::selected(dictionary, &selected).map_err(misfit),
            None => Self::new(dictionary).map_err(misfit),
        }
    }
}
