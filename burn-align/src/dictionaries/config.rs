//! Configurations of dictionaries, read key by key.
//!
//! A reader reads the keys that the computation depends on. Of the others, those that are known to
//! concern training or bookkeeping are ignored. In the formats whose keys are known well (SAELens,
//! sparsify), an unknown key is an error if its name suggests an effect on the computation, and
//! otherwise a note.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::DictionaryError;
use crate::saved::FileError;

/// Largest size accepted for a dimension, so that products of sizes cannot overflow.
const MAX_SIZE: u64 = 1 << 28;

/// Words in the names of keys that suggest an effect on the computation.
const RELEVANT: [&str; 12] = [
    "activation",
    "architecture",
    "bias",
    "b_dec",
    "gate",
    "norm",
    "rescale",
    "reshape",
    "scaling",
    "skip",
    "threshold",
    "whiten",
];

/// Keys with such a word that concern training or bookkeeping alone.
const INERT: [&str; 16] = [
    "act_store_device",
    "activations_mixing_fraction",
    "b_dec_init_method",
    "cached_activations_path",
    "dead_feature_threshold",
    "decoder_heuristic_init_norm",
    "decoder_init_norm",
    "jumprelu_init_threshold",
    "log_activations_store_to_wandb",
    "lp_norm",
    "mse_loss_normalization",
    "normalize_sae_decoder",
    "scale_sparsity_penalty_by_decoder_norm",
    "topk_threshold_lr",
    "use_cached_activations",
    "use_sparse_activations",
];

/// The keys of a configuration, or of an object in it.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) file: PathBuf,
    /// Of the object's keys, such as `metadata.`.
    prefix: String,
    map: Map<String, Value>,
    read: BTreeSet<String>,
}

impl Config {
    /// Reads a file.
    pub(super) fn read(file: &Path) -> Result<Self, DictionaryError> {
        let json = fs::read(file).map_err(|cause| FileError::Io {
            file: file.to_owned(),
            cause,
        })?;
        let map = serde_json::from_slice(&json).map_err(|error| FileError::Unreadable {
            file: file.to_owned(),
            reason: format!("expected a JSON object: {error}"),
        })?;
        Ok(Self::new(file, String::new(), map))
    }

    /// A configuration without keys, for a file that is optional.
    pub(super) fn empty(file: &Path) -> Self {
        Self::new(file, String::new(), Map::new())
    }

    fn new(file: &Path, prefix: String, map: Map<String, Value>) -> Self {
        Self {
            file: file.to_owned(),
            prefix,
            map,
            read: BTreeSet::new(),
        }
    }

    /// Gives a key its newer name, unless that is there too.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        if let Some(value) = self.map.remove(old) {
            self.map.entry(new).or_insert(value);
        }
    }

    /// The value of a key; `null` counts as absent.
    pub(super) fn value(&mut self, key: &str) -> Option<&Value> {
        self.read.insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, DictionaryError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => {
                let found = shortened(value);
                Err(DictionaryError::InvalidKey {
                    file: self.file.clone(),
                    key: format!("{}{key}", self.prefix),
                    expected,
                    found,
                })
            }
        }
    }

    /// The error of a required key that is absent.
    pub(super) fn missing(&self, key: &str) -> DictionaryError {
        DictionaryError::MissingKey {
            file: self.file.clone(),
            key: format!("{}{key}", self.prefix),
        }
    }

    /// The error of a value that is not supported.
    pub(super) fn unsupported(&self, key: &str, reason: impl Into<String>) -> DictionaryError {
        DictionaryError::UnsupportedKey {
            file: self.file.clone(),
            key: format!("{}{key}", self.prefix),
            found: self
                .map
                .get(key)
                .map_or_else(|| "null".to_owned(), shortened),
            reason: reason.into(),
        }
    }

    /// A whole number of at least 1.
    pub(super) fn optional_size(&mut self, key: &str) -> Result<Option<usize>, DictionaryError> {
        self.typed(key, "a whole number from 1 to 268435456", |value| {
            let size = value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n))?;
            usize::try_from(size).ok()
        })
    }

    /// A whole number of at least 1 that must be there.
    pub(super) fn size(&mut self, key: &str) -> Result<usize, DictionaryError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number.
    pub(super) fn optional_index(&mut self, key: &str) -> Result<Option<usize>, DictionaryError> {
        self.typed(key, "a whole number", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A finite number above 0 that must be there.
    pub(super) fn positive(&mut self, key: &str) -> Result<f64, DictionaryError> {
        let number = self.typed(key, "a number above 0", |value| {
            value.as_f64().filter(|n| n.is_finite() && *n > 0.0)
        })?;
        number.ok_or_else(|| self.missing(key))
    }

    /// A finite number that must be there.
    pub(super) fn number(&mut self, key: &str) -> Result<f64, DictionaryError> {
        let number = self.typed(key, "a number", |value| {
            value.as_f64().filter(|n| n.is_finite())
        })?;
        number.ok_or_else(|| self.missing(key))
    }

    /// True or false.
    pub(super) fn optional_flag(&mut self, key: &str) -> Result<Option<bool>, DictionaryError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// True or false, or the default.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> Result<bool, DictionaryError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    /// A text.
    pub(super) fn optional_text(&mut self, key: &str) -> Result<Option<String>, DictionaryError> {
        self.typed(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A text that must be there.
    pub(super) fn text(&mut self, key: &str) -> Result<String, DictionaryError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    /// A text that concerns nothing but the reader: anything else counts as absent.
    pub(super) fn known_text(&mut self, key: &str) -> Option<String> {
        self.value(key).and_then(Value::as_str).map(str::to_owned)
    }

    /// An object.
    pub(super) fn optional_object(&mut self, key: &str) -> Result<Option<Self>, DictionaryError> {
        let map = self.typed(key, "an object", |value| value.as_object().cloned())?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Self::new(&self.file, prefix, map)))
    }

    /// An object that must be there.
    pub(super) fn object(&mut self, key: &str) -> Result<Self, DictionaryError> {
        self.optional_object(key)?.ok_or_else(|| self.missing(key))
    }

    /// Checks a value that may be absent, and otherwise must be one of these.
    pub(super) fn only(&mut self, key: &str, supported: &[Value]) -> Result<(), DictionaryError> {
        match self.value(key) {
            Some(value) if !supported.contains(value) => {
                Err(self.unsupported(key, "this is not implemented"))
            }
            _ => Ok(()),
        }
    }

    /// Goes through the keys that were not read, and returns those that are only notes.
    pub(super) fn finish(self, ignored: &[String]) -> Result<Vec<String>, DictionaryError> {
        let (mut notes, mut unknown) = (Vec::new(), Vec::new());
        for (key, value) in &self.map {
            let known = self.read.contains(key) || INERT.contains(&key.as_str());
            if known || value.is_null() || ignored.contains(key) {
                continue;
            }
            let shown = format!("`{}{key}` = {}", self.prefix, shortened(value));
            match RELEVANT.iter().any(|word| key.contains(word)) {
                true => unknown.push(shown),
                false => notes.push(shown),
            }
        }
        match unknown.is_empty() {
            true => Ok(notes),
            false => Err(DictionaryError::UnknownKeys {
                file: self.file,
                keys: unknown,
            }),
        }
    }
}

/// A value, shortened for a message.
fn shortened(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The text of a key at the top of a YAML file. Only `key: text` on a line of its own is
/// understood, which is how the publishers of transcoders write what is read here.
pub(super) fn yaml_text(yaml: &str, key: &str) -> Option<String> {
    let value = yaml
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = value.split(" #").next()?.trim();
    let unquoted = value.trim_matches(|c: char| c == '"' || c == '\'');
    (!unquoted.is_empty() && !unquoted.starts_with(['[', '{', '&', '|', '>']))
        .then(|| unquoted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::yaml_text;

    #[test]
    fn texts_at_the_top_are_read() {
        let yaml = "model_name: \"Qwen/Qwen3-4B\"\nlist:\n  model_kind: x\nscan: 'a' # b\nempty:\n";
        let text = |key| yaml_text(yaml, key);
        assert_eq!(text("model_name").as_deref(), Some("Qwen/Qwen3-4B"));
        assert_eq!(text("scan").as_deref(), Some("a"));
        assert_eq!(text("model_kind"), None);
        assert_eq!(text("empty"), None);
        assert_eq!(text("model"), None);
    }
}
