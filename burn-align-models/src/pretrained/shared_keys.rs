//! Keys of `config.json` that most families have under the same names: sizes and rotary positions.

use serde_json::Value;

use super::rope::{RotaryDefaults, read_rotary, write_scaling};
use super::{ConfigError, Fields};
use crate::dims::ModelDims;
use crate::nn::RotaryConfig;

impl Fields {
    /// The sizes of a transformer: `vocab_size`, `hidden_size`, `intermediate_size`,
    /// `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads` (if absent, as many as
    /// query heads) and `head_dim` (if absent, heads divide the model's width). What these keys do
    /// not say, such as whether positions are rotary, is off.
    ///
    /// # Errors
    /// If one is missing or invalid, or they are inconsistent.
    pub fn dims(&mut self) -> Result<ModelDims, ConfigError> {
        self.dims_or(None, None)
    }

    /// The same with other defaults.
    pub(crate) fn dims_or(
        &mut self,
        kv_heads: Option<usize>,
        d_head: Option<usize>,
    ) -> Result<ModelDims, ConfigError> {
        let d_model = self.size("hidden_size")?;
        let heads = self.size("num_attention_heads")?;
        let kv_heads = self.size_or("num_key_value_heads", kv_heads)?;
        let kv_heads = kv_heads.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::Invalid {
                key: "num_key_value_heads".to_owned(),
                expected: format!("a divisor of num_attention_heads = {heads}"),
                found: kv_heads.to_string(),
            });
        }
        let d_head = match self.optional_size("head_dim")?.or(d_head) {
            Some(d_head) => d_head,
            None if d_model.is_multiple_of(heads) => d_model / heads,
            None => {
                return Err(ConfigError::Invalid {
                    key: "num_attention_heads".to_owned(),
                    expected: format!("a divisor of hidden_size = {d_model}, or a head_dim"),
                    found: heads.to_string(),
                });
            }
        };
        Ok(ModelDims {
            heads,
            kv_heads,
            d_head,
            d_mlp: self.size("intermediate_size")?,
            vocab: self.size("vocab_size")?,
            ..ModelDims::features(self.layers("num_hidden_layers")?, d_model, 0)
        })
    }

    /// The size under a key: `default` if there is no such key, none if it is `null`.
    ///
    /// # Errors
    /// If it is something else than a whole number of at least 1.
    pub fn size_or(
        &mut self,
        key: &str,
        default: Option<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let default = default.filter(|_| !self.has(key));
        Ok(self.optional_size(key)?.or(default))
    }

    /// The rotary embedding of all layers, which rotates whole heads: `max_position_embeddings`,
    /// and the base and scaling of the frequencies under the keys of any release of `transformers`.
    ///
    /// - theta: the base of the frequencies, if the file has none
    ///
    /// # Errors
    /// If heads have an odd width, a key is missing or invalid, or a scaling is not implemented.
    pub fn rotary(&mut self, d_head: usize, theta: f64) -> Result<RotaryConfig, ConfigError> {
        self.rotary_or(d_head, theta, None)
    }

    /// Like [`rotary`](Self::rotary), in a family that may rotate only the first part of each head.
    ///
    /// - share: which share of the features is rotated, if the file does not say
    ///
    /// # Errors
    /// As [`rotary`](Self::rotary), or if the number of rotated features is odd.
    pub fn partial_rotary(
        &mut self,
        d_head: usize,
        theta: f64,
        share: f64,
    ) -> Result<RotaryConfig, ConfigError> {
        self.rotary_or(d_head, theta, Some(share))
    }

    pub(crate) fn rotary_or(
        &mut self,
        d_head: usize,
        theta: f64,
        partial: Option<f64>,
    ) -> Result<RotaryConfig, ConfigError> {
        if partial.is_none() {
            check_even(d_head)?;
        }
        let defaults = RotaryDefaults {
            d_head,
            max_positions: self.size("max_position_embeddings")?,
            theta,
            partial,
        };
        read_rotary(self, &defaults)
    }
}

/// Checks that the features of a head can be rotated in pairs.
pub(crate) fn check_even(d_head: usize) -> Result<(), ConfigError> {
    match d_head.is_multiple_of(2) {
        true => Ok(()),
        false => Err(ConfigError::Invalid {
            key: "head_dim".to_owned(),
            expected: "an even number, for the rotary embedding".to_owned(),
            found: d_head.to_string(),
        }),
    }
}

/// Adds what [`Fields::dims`] reads to a `config.json`.
///
/// # Panics
/// If `json` is not an object.
pub fn write_dims(json: &mut Value, dims: &ModelDims) {
    json["vocab_size"] = dims.vocab.into();
    json["hidden_size"] = dims.d_model.into();
    json["intermediate_size"] = dims.d_mlp.into();
    json["num_hidden_layers"] = dims.layers.into();
    json["num_attention_heads"] = dims.heads.into();
    json["num_key_value_heads"] = dims.kv_heads.into();
    json["head_dim"] = dims.d_head.into();
}

/// Adds what [`Fields::rotary`] reads to a `config.json`, in a form that every release of
/// `transformers` reads.
///
/// # Panics
/// If `json` is not an object.
pub fn write_rotary(json: &mut Value, rotary: &RotaryConfig) {
    write_rotary_as(json, rotary, "rope_theta");
}

/// The same with the base of the frequencies under another key.
pub(crate) fn write_rotary_as(json: &mut Value, rotary: &RotaryConfig, theta: &str) {
    json["max_position_embeddings"] = rotary.max_positions.into();
    json[theta] = rotary.theta.into();
    if let Some(scaling) = write_scaling(&rotary.scaling) {
        json["rope_scaling"] = scaling;
    }
}
