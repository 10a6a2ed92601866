//! Why a model could not be loaded or saved.

use std::io;
use std::path::PathBuf;

use super::gguf::GgufError;
use super::hub::HubError;
use super::note::listed;
use crate::tokens::TokensError;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The source is neither a folder nor a hub id.
    #[error(
        "no model at `{source_text}`: expected a folder with config.json and model.safetensors, \
         a GGUF file, a bundled model such as `bundled:capitals` or `bundled:induction`, or a hub \
         id such as `gpt2`"
    )]
    NoSuchModel {
        /// The source.
        source_text: String,
    },
    /// The source is a hub id, but the crate was built without the hub.
    #[error(
        "`{id}` is not a local folder, and this build cannot reach the hub: enable the feature \
         `hub`, or give a folder"
    )]
    HubDisabled {
        /// The hub id.
        id: String,
    },
    /// A model or a file could not be obtained from the hub or from its cache.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// A bundled model of this name does not exist.
    #[error("no bundled model `{name}`; expected `capitals`, `induction` or `price-tagging`")]
    UnknownBundled {
        /// The name.
        name: String,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A GGUF file cannot be used.
    #[error("{}: cannot be used: {cause}", file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: GgufError,
    },
    /// A folder with several models.
    #[error(
        "{}: expected one GGUF file, found {}: name one, as in {}/{}",
        folder.display(), listed(files), folder.display(), files[0]
    )]
    SeveralGguf {
        /// The folder.
        folder: PathBuf,
        /// The files.
        files: Vec<String>,
    },
    /// A folder without `config.json`.
    #[error(
        "{}: no config.json; expected a folder in the Hugging Face layout, as `save_pretrained` \
         of `transformers` writes it, or one with a GGUF file",
        folder.display()
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder in which saving a model was interrupted.
    #[error(
        "{}: saving a model here was interrupted, config.json is missing; the new files are \
         complete: remove .part from the names that end with it",
        folder.display()
    )]
    CutOff {
        /// The folder.
        folder: PathBuf,
    },
    /// `config.json` cannot be used.
    #[error("{}: cannot be used: {cause}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: ConfigError,
    },
    /// The tokenizer's files cannot be used.
    #[error("{}: cannot be used: {cause}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: TokensError,
    },
    /// The checkpoint has no tokenizer, but one is needed.
    #[error(
        "the checkpoint has no tokenizer (tokenizer.json, vocab.json with merges.txt, or \
         tokenizer.model): give token ids instead of text, or add the files (for a model of the \
         hub that was cached without them, set `LoadOptions::update`)"
    )]
    NoTokenizer,
    /// The weights cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl From<HubError> for LoadError {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}

/// What is wrong with a `config.json`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("not a JSON object: {reason}")]
    NotAnObject {
        /// The parser's message.
        reason: String,
    },
    /// A required key is absent.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value of the wrong type or out of range.
    #[error("`{key}`: expected {expected}, found {found}")]
    Invalid {
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// The value.
        found: String,
    },
    /// A value that changes the computation in a way that is not implemented.
    #[error("`{key}` = {found} is not supported: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// What is supported.
        reason: String,
    },
    /// Unknown keys whose names suggest that they may change the computation.
    #[error(
        "unknown {}: the names suggest an effect on the computation, but this model family has no \
         such keys, so the model may differ from its `model_type`; expected the configuration \
         that `save_pretrained` in `transformers` writes for a model of this type",
        keys.join(", ")
    )]
    Unknown {
        /// The keys with their values.
        keys: Vec<String>,
    },
}

/// What is wrong with a checkpoint's weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder contains no safetensors file.
    #[error(
        "{}: neither model.safetensors nor model.safetensors.index.json; convert a checkpoint in \
         another format with `save_pretrained(dir, safe_serialization=True)` in `transformers`",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file is damaged.
    #[error("{}: not a readable safetensors file: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// The index of the shards is damaged.
    #[error("{}: {reason}", file.display())]
    BadIndex {
        /// The index.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A shard that the index names is absent.
    #[error("{}: named in model.safetensors.index.json, but missing", file.display())]
    MissingShard {
        /// The shard.
        file: PathBuf,
    },
    /// A tensor in two files, without an index to decide.
    #[error(
        "tensor `{tensor}` is in {} and in {}, and there is no model.safetensors.index.json to \
         decide: remove one, or add the index",
        files[0].display(), files[1].display()
    )]
    StoredTwice {
        /// Its name.
        tensor: String,
        /// The two files.
        files: Vec<PathBuf>,
    },
    /// Two tensors for the same parameter.
    #[error(
        "tensors `{}` and `{}` are for the same parameter: expected one of them",
        tensors[0], tensors[1]
    )]
    SameParameter {
        /// Their names.
        tensors: [String; 2],
    },
    /// Parameters without a tensor.
    #[error("the checkpoint lacks {}", listed(tensors))]
    MissingTensors {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Tensors without a parameter.
    #[error(
        "the checkpoint has tensors that the model does not use: {}",
        listed(tensors)
    )]
    UnusedTensors {
        /// Their names.
        tensors: Vec<String>,
    },
    /// A tensor whose shape does not match the configuration.
    #[error("tensor `{tensor}`: expected shape {expected:?} from config.json, found {found:?}")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// The shape according to the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor that does not contain floats.
    #[error("tensor `{tensor}`: expected f64, f32, f16 or bf16, found {found}")]
    WrongDType {
        /// Its name.
        tensor: String,
        /// The dtype in the file.
        found: String,
    },
}

/// Why a model could not be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The Hugging Face format has no model with this configuration.
    #[error("no Hugging Face model of this family has this configuration: {reason}")]
    Unrepresentable {
        /// What would differ when read back.
        reason: String,
    },
    /// The weights could not be written.
    #[error("{}: {reason}", file.display())]
    Weights {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        reason: String,
    },
}
