//! Where a dictionary comes from, and loading it.

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn_align_models::LoadOptions;

use super::{CrossLayerTranscoder, Dictionary, DictionaryError, DictionaryInfo, read};

/// A dictionary with what is known about it.
#[derive(Debug)]
#[non_exhaustive]
pub struct PublishedDictionary<B: Backend> {
    /// The dictionary. Its weights are not tracked for gradients.
    pub dictionary: Dictionary<B>,
    /// Model, activation and training text, as far as they are known.
    pub info: DictionaryInfo,
}

/// Where a dictionary comes from.
///
/// From a string: a folder or file, if one of that name exists; otherwise `ID#PATH`, a repository
/// on the Hugging Face hub and a folder or file in it (`ID` alone for the repository's root).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DictionarySource {
    /// A folder, or a file that holds a dictionary.
    Path(PathBuf),
    /// A repository on the Hugging Face hub.
    Hub {
        /// The repository, such as `google/gemma-scope-2b-pt-res`.
        id: String,
        /// A folder or file in it; empty for its root.
        path: String,
    },
}

impl From<&str> for DictionarySource {
    fn from(text: &str) -> Self {
        if Path::new(text).exists() {
            return Self::Path(text.into());
        }
        let (id, path) = text.split_once('#').unwrap_or((text, ""));
        match is_hub_id(id) {
            true => Self::Hub {
                id: id.to_owned(),
                path: path.trim_matches('/').to_owned(),
            },
            false => Self::Path(text.into()),
        }
    }
}

impl From<String> for DictionarySource {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Path> for DictionarySource {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<PathBuf> for DictionarySource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// Whether the text is `owner/name`, with the characters that the hub allows.
fn is_hub_id(text: &str) -> bool {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/')
        .is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// How to load a dictionary.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DictionaryOptions {
    /// The factor of the input, for dictionaries that were trained on scaled activations
    /// (`expected_average_only_in`) and do not store it; see
    /// [`Dictionary::with_input_scale`]. Others do not use it.
    pub input_scale: Option<f64>,
    /// How many features are active, for TopK dictionaries that do not store it (Qwen Scope).
    pub k: Option<usize>,
    /// Unknown keys of a configuration (of SAELens or sparsify) that the caller knows not to affect
    /// the computation, although their names suggest that they might.
    pub ignored_config_keys: Vec<String>,
    /// Revision, cache and address of the hub.
    pub hub: LoadOptions,
}

impl DictionaryOptions {
    /// Gives the factor of the input.
    pub fn with_input_scale(mut self, scale: f64) -> Self {
        self.input_scale = Some(scale);
        self
    }

    /// Gives the number of active features.
    pub fn with_k(mut self, k: usize) -> Self {
        self.k = Some(k);
        self
    }

    /// Accepts these unknown keys.
    pub fn with_ignored_config_keys<T: Into<String>>(
        mut self,
        keys: impl IntoIterator<Item = T>,
    ) -> Self {
        self.ignored_config_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Revision, cache and address of the hub.
    pub fn with_hub(mut self, hub: LoadOptions) -> Self {
        self.hub = hub;
        self
    }

    /// The factor of a dictionary that cannot be used without it.
    pub(super) fn needed_scale(&self, file: &Path) -> Result<f64, DictionaryError> {
        let usable = |scale: &f64| scale.is_finite() && *scale > 0.0;
        let scale = self.input_scale.filter(usable);
        scale.ok_or_else(|| DictionaryError::NotStored {
            file: file.to_owned(),
            what: "the factor that activations were multiplied by in training (√d_in over their \
                   mean norm, a number above 0)",
            remedy: "DictionaryOptions::with_input_scale",
        })
    }
}

impl<B: Backend> Dictionary<B> {
    /// Loads a published dictionary; see the [formats](crate::dictionaries#formats).
    ///
    /// # Errors
    /// If it cannot be obtained or read, is of no known format, or computes something that is not
    /// implemented.
    pub fn load(
        source: impl Into<DictionarySource>,
        options: &DictionaryOptions,
        device: &B::Device,
    ) -> Result<PublishedDictionary<B>, DictionaryError> {
        match source.into() {
            DictionarySource::Path(path) => read::load(&path, options, device),
            DictionarySource::Hub { id, path } => {
                let path = hub::fetch(&id, &path, &options.hub)?;
                read::load(&path, options, device)
            }
        }
    }
}

impl<B: Backend> CrossLayerTranscoder<B> {
    /// Loads the features of one layer from a folder, with what is known about them: of
    /// circuit-tracer (`W_enc_N.safetensors` and `W_dec_N.safetensors`) or Gemma Scope 2
    /// (`layer_N.safetensors`).
    ///
    /// # Errors
    /// If the files are not there, cannot be read, or do not match.
    pub fn load(
        folder: impl AsRef<Path>,
        layer: usize,
        device: &B::Device,
    ) -> Result<(Self, DictionaryInfo), DictionaryError> {
        read::load_layer(folder.as_ref(), layer, device)
    }
}

#[cfg(not(feature = "hub"))]
mod hub {
    use std::path::PathBuf;

    use burn_align_models::LoadOptions;

    use crate::dictionaries::DictionaryError;

    pub(super) fn fetch(
        id: &str,
        _path: &str,
        _options: &LoadOptions,
    ) -> Result<PathBuf, DictionaryError> {
        Err(DictionaryError::HubDisabled { id: id.to_owned() })
    }
}

#[cfg(feature = "hub")]
mod hub {
    use std::path::{Path, PathBuf};

    use burn_align_models::LoadOptions;
    use burn_align_models::pretrained::{HubProblem, LoadError, fetch_file};

    use crate::dictionaries::DictionaryError;
    use crate::dictionaries::read::{
        CONFIG, GEMMA_SCOPE_2_WEIGHTS, GEMMA_SCOPE_WEIGHTS, LLAMA_SCOPE_CONFIG,
        LLAMA_SCOPE_WEIGHTS, SAE_LENS_CONFIG, SAE_LENS_WEIGHTS, SPARSIFY_WEIGHTS, TORCH_WEIGHTS,
        YAML_CONFIG,
    };

    /// The formats that are a folder: the weights, and what is beside them.
    const FORMATS: [(&str, &[&str]); 6] = [
        (SAE_LENS_WEIGHTS, &[SAE_LENS_CONFIG, CONFIG]),
        (GEMMA_SCOPE_WEIGHTS, &[]),
        (GEMMA_SCOPE_2_WEIGHTS, &[CONFIG]),
        (TORCH_WEIGHTS, &[CONFIG]),
        (SPARSIFY_WEIGHTS, &[SAE_LENS_CONFIG, "../config.json"]),
        (LLAMA_SCOPE_WEIGHTS, &[LLAMA_SCOPE_CONFIG]),
    ];

    /// Fetches the files of a dictionary into the cache, and returns their folder or file there.
    pub(super) fn fetch(
        id: &str,
        path: &str,
        options: &LoadOptions,
    ) -> Result<PathBuf, DictionaryError> {
        let mut repository = Repository {
            id,
            options: options.clone(),
        };
        let last = path.rsplit('/').next().unwrap_or_default();
        let is_file = [".safetensors", ".npz", ".pt", ".pth"];
        if is_file.iter().any(|extension| last.ends_with(extension)) {
            let folder = path.strip_suffix(last).unwrap_or_default();
            let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
            let file = repository.need(path)?;
            for beside in [CONFIG, YAML_CONFIG, SAE_LENS_CONFIG] {
                repository.want(&format!("{folder}{beside}"))?;
            }
            repository.want(&format!("{folder}{stem}_cfg.json"))?;
            return Ok(file);
        }
        let inside = |name: &str| match (path, name.strip_prefix("../")) {
            ("", None) => Some(name.to_owned()),
            (_, None) => Some(format!("{path}/{name}")),
            (_, Some(name)) => match path.rsplit_once('/') {
                Some((above, _)) => Some(format!("{above}/{name}")),
                None => (!path.is_empty()).then(|| name.to_owned()),
            },
        };
        // Which of the formats it is shows in the small files first.
        for (weights, beside) in FORMATS {
            for name in beside.iter().filter_map(|name| inside(name)) {
                repository.want(&name)?;
            }
            let Some(name) = inside(weights) else {
                continue;
            };
            if let Some(file) = repository.want(&name)? {
                let depth = weights.split('/').count();
                let folder = file.ancestors().nth(depth).unwrap_or(&file);
                return Ok(folder.to_owned());
            }
        }
        // The hub's answer about the most common of them says what is wrong.
        let name = inside(SAE_LENS_WEIGHTS).unwrap_or_default();
        repository.need(&name)
    }

    struct Repository<'a> {
        id: &'a str,
        options: LoadOptions,
    }

    impl Repository<'_> {
        fn need(&mut self, file: &str) -> Result<PathBuf, DictionaryError> {
            let fetched = fetch_file(self.id, file, &self.options);
            let fetched = fetched.map_err(|error| DictionaryError::Hub(Box::new(error)))?;
            self.pin(&fetched, file);
            Ok(fetched)
        }

        /// A file that need not be there.
        fn want(&mut self, file: &str) -> Result<Option<PathBuf>, DictionaryError> {
            match fetch_file(self.id, file, &self.options) {
                Ok(fetched) => {
                    self.pin(&fetched, file);
                    Ok(Some(fetched))
                }
                Err(LoadError::Hub(error)) => match error.problem {
                    HubProblem::NoSuchFile { .. } | HubProblem::Offline { .. } => Ok(None),
                    // It may exist: from here on only the cache counts, so that no other file is
                    // fetched without it.
                    HubProblem::Unreachable { .. } => {
                        self.options.offline = true;
                        Ok(None)
                    }
                    _ => Err(DictionaryError::Hub(Box::new(LoadError::Hub(error)))),
                },
                Err(error) => Err(DictionaryError::Hub(Box::new(error))),
            }
        }

        /// Takes the other files from the same commit, whose folder in the cache has its name.
        fn pin(&mut self, fetched: &Path, file: &str) {
            let depth = file.split('/').count();
            let commit = fetched.ancestors().nth(depth);
            let commit = commit.and_then(|folder| folder.file_name());
            if let Some(commit) = commit.and_then(|commit| commit.to_str()) {
                self.options.revision = commit.to_owned();
            }
        }
    }
}
