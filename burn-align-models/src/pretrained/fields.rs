//! Strict reading of `config.json`: a key that nothing reads may change what the model computes.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::ConfigError;

/// Keys of `config.json` that do not change what a forward pass computes: about training,
/// generation, serialisation, or another head than the language-modelling one.
const IRRELEVANT: &[&str] = &[
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// Largest size accepted for a dimension, so that products of sizes cannot overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The fields of a `config.json`; every one must be read or be known not to matter.
///
/// A key that is absent or `null` is `None`, or an error where it is needed.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    read: BTreeSet<String>,
}

impl Fields {
    pub(super) fn parse(json: &str, ignored: &[String]) -> Result<Self, ConfigError> {
        let map = serde_json::from_str(json).map_err(|error| ConfigError::NotAnObject {
            reason: error.to_string(),
        })?;
        let read = ignored.iter().cloned().collect();
        Ok(Self { map, read })
    }

    /// The fields of an object nested under `key`, whose keys are all to be read.
    fn nested(key: &str, map: Map<String, Value>) -> Self {
        let map = map
            .into_iter()
            .map(|(inner, value)| (format!("{key}.{inner}"), value))
            .collect();
        Self {
            map,
            read: BTreeSet::new(),
        }
    }

    /// The value of `key`; `null` counts as absent.
    fn get(&mut self, key: &str) -> Option<&Value> {
        self.read.insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(invalid(key, expected, value)),
        }
    }

    /// Whether `key` is there, even as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A size: a whole number of at least 1, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_size(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number from 1 to 16777216", |value| {
            let size = value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n))?;
            usize::try_from(size).ok()
        })
    }

    /// A size: a whole number of at least 1.
    ///
    /// # Errors
    /// If it is missing, or something else.
    pub fn size(&mut self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| missing(key))
    }

    /// A number of layers: small enough that a model without weights can be built.
    ///
    /// # Errors
    /// If it is missing, or something else.
    pub fn layers(&mut self, key: &str) -> Result<usize, ConfigError> {
        const MAX_LAYERS: usize = 4096;
        let layers = self.size(key)?;
        if layers > MAX_LAYERS {
            return Err(invalid(key, "at most 4096 layers", &layers.into()));
        }
        Ok(layers)
    }

    /// A whole number, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_index(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A finite number of at least 0, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number of at least 0", |value| {
            value.as_f64().filter(|n| n.is_finite() && *n >= 0.0)
        })
    }

    /// A finite number of at least 0.
    ///
    /// # Errors
    /// If it is missing, or something else.
    pub fn number(&mut self, key: &str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| missing(key))
    }

    /// A finite number above 0, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_positive(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number above 0", |value| {
            value.as_f64().filter(|n| n.is_finite() && *n > 0.0)
        })
    }

    /// A finite number above 0.
    ///
    /// # Errors
    /// If it is missing, or something else.
    pub fn positive(&mut self, key: &str) -> Result<f64, ConfigError> {
        self.optional_positive(key)?.ok_or_else(|| missing(key))
    }

    /// True or false, or the default.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        let flag = self.typed(key, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    /// A text, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.typed(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A list of texts, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_texts(&mut self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.typed(key, "a list of texts", |value| {
            let texts = value.as_array()?.iter();
            texts.map(|text| text.as_str().map(str::to_owned)).collect()
        })
    }

    /// The fields of an object under a key, if it is there; [`finish`](Self::finish) them.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_object(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        let map = self.typed(key, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| Self::nested(key, map)))
    }

    /// A value that may be absent, and is none but one of these: another one would change the
    /// computation.
    ///
    /// # Errors
    /// If it is another one.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => Err(ConfigError::Unsupported {
                key: key.to_owned(),
                found: value.to_string(),
                reason: "this part of the model is not implemented".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// That all has been asked for. Loading calls it for the whole file; call it for an
    /// [`optional_object`](Self::optional_object).
    ///
    /// # Errors
    /// If a key was not asked for and is not known to be irrelevant.
    pub fn finish(&self) -> Result<(), ConfigError> {
        let keys: Vec<String> = self
            .map
            .keys()
            .filter(|key| !self.read.contains(*key) && !IRRELEVANT.contains(&key.as_str()))
            .cloned()
            .collect();
        if keys.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Unknown { keys })
        }
    }
}

fn missing(key: &str) -> ConfigError {
    ConfigError::Missing {
        key: key.to_owned(),
    }
}

fn invalid(key: &str, expected: &str, found: &Value) -> ConfigError {
    ConfigError::Invalid {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}
