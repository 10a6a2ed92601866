//! Some features of a dictionary: what a run needs of 16,384 or a million is usually a few.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::{Dictionary, DictionaryError};

/// Some features of a dictionary, with their part of its weights: encoding and decoding costs in
/// proportion to their number. Made by [`Dictionary::select`].
///
/// Features of a TopK dictionary compete with all others, so all of them are encoded; decoding is
/// as cheap as in the other cases.
#[derive(Clone, Debug)]
pub struct FeatureSelection<B: Backend> {
    dictionary: Dictionary<B>,
    features: Vec<usize>,
    /// `[selected]`
    indices: Tensor<B, 1, Int>,
    /// Weight `[d_in, selected]` and bias `[selected]`, unless all features are encoded.
    encoder: Option<(Tensor<B, 2>, Tensor<B, 1>)>,
    /// `[selected, d_out]`
    decoder: Tensor<B, 2>,
}

impl<B: Backend> Dictionary<B> {
    /// Selects features, in this order.
    ///
    /// The weights are copied. If they are trained, make a new selection after each step.
    ///
    /// # Errors
    /// [`DictionaryError::NoSuchFeature`], [`DictionaryError::RepeatedFeature`] or
    /// [`DictionaryError::NoFeatures`].
    pub fn select(&self, features: &[usize]) -> Result<FeatureSelection<B>, DictionaryError> {
        self.check_features(features)?;
        let indices = indices(features, &self.encoder.val().device());
        let encoder = self.activation.is_local().then(|| {
            let weight = self.encoder.val().select(1, indices.clone());
            (weight, self.encoder_bias.val().select(0, indices.clone()))
        });
        Ok(FeatureSelection {
            dictionary: self.clone(),
            features: features.to_vec(),
            decoder: self.decoder.val().select(0, indices.clone()),
            indices,
            encoder,
        })
    }

    /// Checks that these are features, each once.
    pub(crate) fn check_features(&self, features: &[usize]) -> Result<(), DictionaryError> {
        if features.is_empty() {
            return Err(DictionaryError::NoFeatures);
        }
        let all = self.features();
        let mut seen = vec![false; all];
        for &feature in features {
            let Some(seen) = seen.get_mut(feature) else {
                return Err(DictionaryError::NoSuchFeature {
                    feature,
                    features: all,
                });
            };
            if std::mem::replace(seen, true) {
                return Err(DictionaryError::RepeatedFeature { feature });
            }
        }
        Ok(())
    }
}

impl<B: Backend> FeatureSelection<B> {
    /// The selected features, in the order of the columns.
    pub fn features(&self) -> &[usize] {
        &self.features
    }

    /// The dictionary that they are from.
    pub fn dictionary(&self) -> &Dictionary<B> {
        &self.dictionary
    }

    /// The decoder's directions, `[selected, d_out]`.
    pub fn directions(&self) -> Tensor<B, 2> {
        self.decoder.clone()
    }

    /// The selected features of an activation.
    ///
    /// # Shapes
    /// - x: `[row, d_in]`
    /// - output: `[row, selected]`
    pub fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let Some((weight, bias)) = &self.encoder else {
            return self.dictionary.encode(x).select(1, self.indices.clone());
        };
        let hidden = self.dictionary.read(x).matmul(weight.clone());
        let activation = &self.dictionary.activation;
        activation.forward(hidden, bias.clone(), Some(&self.indices))
    }

    /// What the selected features, or changes of them, add to the reconstruction; see
    /// [`Dictionary::contribution`].
    ///
    /// # Shapes
    /// - values: `[row, selected]`
    /// - input: the activation that they are from, `[row, d_in]`
    /// - output: `[row, d_out]`
    pub fn contribution(&self, values: Tensor<B, 2>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        let sum = values.matmul(self.decoder.clone());
        self.dictionary.in_units(sum, input)
    }
}

/// The features that are active in at least one row.
#[derive(Clone, Debug)]
pub struct ActiveFeatures<B: Backend> {
    features: Vec<usize>,
    /// `[row, active]`; `None` if no feature is active.
    values: Option<Tensor<B, 2>>,
}

impl<B: Backend> ActiveFeatures<B> {
    /// Those of features as [encoded](Dictionary::encode), `[row, feature]`.
    ///
    /// Which they are is read from the device.
    pub fn of(features: &Tensor<B, 2>) -> Self {
        let on = features.clone().detach().not_equal_elem(0.0).any_dim(0);
        let on = on.into_data();
        let active: Vec<usize> = (on.iter::<bool>().enumerate())
            .filter_map(|(feature, on)| on.then_some(feature))
            .collect();
        let values = (!active.is_empty()).then(|| {
            let indices = indices(&active, &features.device());
            features.clone().select(1, indices)
        });
        Self {
            features: active,
            values,
        }
    }

    /// The features, ascending.
    pub fn features(&self) -> &[usize] {
        &self.features
    }

    /// Their activations, `[row, active]`; `None` if no feature is active.
    pub fn values(&self) -> Option<Tensor<B, 2>> {
        self.values.clone()
    }

    /// What [`Dictionary::decode`] gives, from the active features alone.
    ///
    /// # Shapes
    /// - input: the activation that they are from, `[row, d_in]`
    /// - output: `[row, d_out]`
    pub fn decode(&self, dictionary: &Dictionary<B>, input: &Tensor<B, 2>) -> Tensor<B, 2> {
        let sum = match &self.values {
            Some(values) => {
                let indices = indices(&self.features, &values.device());
                let directions = dictionary.decoder.val().select(0, indices);
                values.clone().matmul(directions)
            }
            None => {
                let [rows, _d_in] = input.dims();
                let device = input.device();
                Tensor::zeros([rows, dictionary.d_out()], (&device, DType::F32))
            }
        };
        dictionary.write(sum, input)
    }
}

/// Features as a tensor.
pub(crate) fn indices<B: Backend>(features: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let features: Vec<i64> = features.iter().map(|feature| *feature as i64).collect();
    let count = features.len();
    Tensor::from_data(TensorData::new(features, [count]), device)
}
