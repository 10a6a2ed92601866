//! Reads `config.json` key by key, by value.
//!
//! The set of config keys is open: `transformers` adds new ones with every release, fine-tuning
//! tools add their own, and `transformers` ignores keys that it does not know. So every key falls
//! into one of four groups. A family *reads* the keys that its computation depends on. [`INERT`]
//! keys never change a forward pass, and keys of [`OFF`] do not while they have the value listed
//! there. Any other key is accepted with a [`LoadNote`], unless its name suggests that it may
//! affect the computation; then it is rejected.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::ConfigError;
use super::inert::{is_inert, off_values, sounds_relevant};
use super::note::LoadNote;

/// Largest size accepted for a dimension, so that products of sizes cannot overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The fields of a `config.json`.
///
/// A key that is absent or `null` is `None`, or an error if it is required. Keys that are not read
/// are handled by [`finish`](Self::finish).
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    read: BTreeSet<String>,
    /// Keys that the caller declares harmless.
    ignored: BTreeSet<String>,
    notes: Vec<LoadNote>,
}

impl Fields {
    pub(crate) fn parse(json: &str, ignored: &[String]) -> Result<Self, ConfigError> {
        let map = serde_json::from_str(json).map_err(|error| ConfigError::NotAnObject {
            reason: error.to_string(),
        })?;
        Ok(Self {
            map,
            read: BTreeSet::new(),
            ignored: ignored.iter().cloned().collect(),
            notes: Vec::new(),
        })
    }

    /// The fields of an object nested under `key`; its keys are `key.inner`.
    fn nested(&self, key: &str, map: Map<String, Value>) -> Self {
        let map = map
            .into_iter()
            .map(|(inner, value)| (format!("{key}.{inner}"), value))
            .collect();
        Self {
            map,
            read: BTreeSet::new(),
            ignored: self.ignored.clone(),
            notes: Vec::new(),
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

    /// Whether `key` is present, even as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A size: a whole number of at least 1, if present.
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

    /// A whole number, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_index(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A finite number of at least 0, if present.
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

    /// A finite number above 0, if present.
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

    /// A string, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.typed(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A list of strings, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_texts(&mut self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.typed(key, "a list of strings", |value| {
            let texts = value.as_array()?.iter();
            texts.map(|text| text.as_str().map(str::to_owned)).collect()
        })
    }

    /// The fields of an object under a key, if present, named `key.inner`. Return them with
    /// [`absorb`](Self::absorb) once all relevant ones have been read.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_object(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        let map = self.typed(key, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| self.nested(key, map)))
    }

    /// [Finishes](Self::finish) the fields of a nested object and keeps their notes.
    ///
    /// # Errors
    /// If one of them may affect the computation and was not read.
    pub fn absorb(&mut self, nested: Self) -> Result<(), ConfigError> {
        self.notes.extend(nested.finish()?);
        Ok(())
    }

    /// The keys that are present and not `null`, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let there = self.map.iter().filter(|(_, value)| !value.is_null());
        there.map(|(key, _)| key.as_str())
    }

    /// A list of numbers, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        self.typed(key, "a list of finite numbers", |value| {
            let numbers = value.as_array()?.iter().map(Value::as_f64);
            let numbers: Vec<f64> = numbers.collect::<Option<_>>()?;
            numbers.iter().all(|n| n.is_finite()).then_some(numbers)
        })
    }

    /// A value of any type, if present. A key that is known not to matter is read like this too.
    pub fn optional_value(&mut self, key: &str) -> Option<Value> {
        self.get(key).cloned()
    }

    /// Whether `key` has been read.
    pub(super) fn was_read(&self, key: &str) -> bool {
        self.read.contains(key)
    }

    /// Adds a note for the user of the model.
    pub fn note(&mut self, note: LoadNote) {
        self.notes.push(note);
    }

    /// Checks a value that may be absent, and otherwise must be one of these: any other would
    /// change the computation.
    ///
    /// # Errors
    /// If it is a different one.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => Err(ConfigError::Unsupported {
                key: key.to_owned(),
                found: shortened(value),
                reason: "this feature is not implemented".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Goes through the keys that were not read: those known not to change a forward pass are
    /// ignored, others become notes. Loading calls this for the whole file.
    ///
    /// # Errors
    /// If a key has a value that would change the computation, or is unknown and its name suggests
    /// that it might.
    pub fn finish(self) -> Result<Vec<LoadNote>, ConfigError> {
        let Self {
            map,
            read,
            ignored,
            mut notes,
        } = self;
        let mut unknown = Vec::new();
        for (key, value) in map {
            if value.is_null() || read.contains(&key) || is_inert(&key) {
                continue;
            }
            if let Some(off) = off_values(&key) {
                if off.contains(&value) {
                    continue;
                }
                return Err(ConfigError::Unsupported {
                    key,
                    found: shortened(&value),
                    reason: "this feature is not implemented".to_owned(),
                });
            }
            if sounds_relevant(&key) && !ignored.contains(&key) {
                unknown.push(format!("`{key}` = {}", shortened(&value)));
            } else if !ignored.contains(&key) {
                let value = shortened(&value);
                notes.push(LoadNote::UnknownConfigKey { key, value });
            }
        }
        match unknown.is_empty() {
            true => Ok(notes),
            false => Err(ConfigError::Unknown { keys: unknown }),
        }
    }
}

/// A value, shortened for a message.
pub(super) fn shortened(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
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
        found: shortened(found),
    }
}
