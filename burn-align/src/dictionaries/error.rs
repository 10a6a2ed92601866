//! What can go wrong when dictionaries are built, loaded or saved.

use std::io;
use std::path::PathBuf;

use burn_align_models::pretrained::LoadError;

use crate::saved::FileError;

/// Why a dictionary could not be built or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryError {
    /// The source is neither a folder, nor a file, nor a place on the hub.
    #[error(
        "no dictionary at `{source_text}`: expected a folder or a file of a published dictionary, \
         or a hub id and a path in it, such as \
         `google/gemma-scope-2b-pt-res#layer_12/width_16k/average_l0_82`"
    )]
    NoSuchSource {
        /// The source.
        source_text: String,
    },
    /// The source is on the hub, but the crate was built without the hub.
    #[error(
        "`{id}` is not a local folder, and this build cannot reach the hub: enable the feature \
         `hub`, or give a folder"
    )]
    HubDisabled {
        /// The hub id.
        id: String,
    },
    /// A file could not be obtained from the hub or from its cache.
    #[error(transparent)]
    Hub(Box<LoadError>),
    /// The files belong to no known format.
    #[error(
        "{}: not a known kind of dictionary: expected {expected}, found {}",
        folder.display(), files_or_none(found)
    )]
    UnknownFormat {
        /// The folder or file.
        folder: PathBuf,
        /// The files or tensors of the known formats.
        expected: &'static str,
        /// The files or tensors that are there.
        found: Vec<String>,
    },
    /// A folder in which saving was interrupted.
    #[error(
        "{}: saving a dictionary here was interrupted, cfg.json is missing; the new files are \
         complete: remove .part from the names that end with it",
        folder.display()
    )]
    CutOff {
        /// The folder.
        folder: PathBuf,
    },
    /// A file could not be read, or its tensors are others than expected.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key of a configuration is missing.
    #[error("{}: `{key}` is missing", file.display())]
    MissingKey {
        /// The configuration.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{}: `{key}`: expected {expected}, found {found}", file.display())]
    InvalidKey {
        /// The configuration.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// A value that changes the computation in a way that is not implemented.
    #[error("{}: `{key}` = {found} is not supported: {reason}", file.display())]
    UnsupportedKey {
        /// The configuration.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// What is supported.
        reason: String,
    },
    /// Unknown keys whose names suggest that they may change the computation.
    #[error(
        "{}: unknown {}: the names suggest an effect on the computation; if you know that there \
         is none, name the keys in DictionaryOptions::with_ignored_config_keys",
        file.display(), keys.join(", ")
    )]
    UnknownKeys {
        /// The configuration.
        file: PathBuf,
        /// The keys with their values.
        keys: Vec<String>,
    },
    /// Something that the computation depends on and the files do not say.
    #[error("{}: {what} is not stored with this dictionary: give it with {remedy}", file.display())]
    NotStored {
        /// The folder or file.
        file: PathBuf,
        /// What is missing.
        what: &'static str,
        /// The option to give it with.
        remedy: &'static str,
    },
    /// A tensor whose values change the computation in a way that is not implemented.
    #[error("{}: tensor `{tensor}` is not supported: {reason}", file.display())]
    UnsupportedTensor {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// What is supported, and what was found.
        reason: String,
    },
    /// The parts of a dictionary do not fit together.
    #[error("{part}: expected {expected}, found {found}")]
    Misfit {
        /// The part.
        part: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A feature that the dictionary does not have.
    #[error("feature {feature}: expected features below {features}, the number in this dictionary")]
    NoSuchFeature {
        /// The feature.
        feature: usize,
        /// The number of features.
        features: usize,
    },
    /// A selection that names a feature twice.
    #[error("feature {feature} is selected twice: expected each feature once")]
    RepeatedFeature {
        /// The feature.
        feature: usize,
    },
    /// A selection without features.
    #[error("no feature is selected: expected at least one")]
    NoFeatures,
}

fn files_or_none(found: &[String]) -> String {
    const SHOWN: usize = 12;
    match found.len() {
        0 => "none".to_owned(),
        all if all > SHOWN => format!("{} and {} more", found[..SHOWN].join(", "), all - SHOWN),
        _ => found.join(", "),
    }
}

/// Why a dictionary could not be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveDictionaryError {
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// SAELens has no class that computes this.
    #[error("SAELens has no dictionary of this kind: {reason}")]
    Unrepresentable {
        /// What it lacks.
        reason: String,
    },
    /// A tensor cannot be stored.
    #[error("{tensor}: expected a float tensor that can be read, found {found}")]
    Tensor {
        /// Its name in the file.
        tensor: String,
        /// What was found.
        found: String,
    },
}
