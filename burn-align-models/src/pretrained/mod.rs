//! Models, their configuration and their tokenizer, from Hugging Face checkpoints.
//!
//! [`FromPretrained::from_pretrained`] reads a folder in the Hugging Face layout (`config.json`,
//! `model.safetensors` or an index with shards, and the tokenizer's files), a model bundled with
//! this crate (`bundled:capitals`, `bundled:induction`, `bundled:price-tagging`) or, with the
//! feature `hub`, a model on the Hugging Face hub.
//!
//! Loading is strict in both directions. A tensor that is missing, unused or of the wrong shape is
//! an error, and so is a configuration value that would change the computation in a way that is not
//! implemented.

mod bundled;
mod checkpoint;
mod error;
mod family;
mod fields;
pub mod gguf;
mod gguf_weights;
mod hub;
mod inert;
mod note;
mod repository;
mod rope;
mod safetensors_file;
mod save;
mod shared_keys;
mod tokenizer;
mod weights;

use burn::tensor::{DType, backend::Backend};

pub use bundled::Bundled;
pub use error::{CheckpointError, ConfigError, LoadError, SaveError};
pub use family::{Family, WeightLayout};
pub use fields::Fields;
#[cfg(feature = "hub")]
pub use hub::fetch_file;
pub use hub::{HubError, HubProblem};
pub use note::LoadNote;
pub use repository::{GgufModel, ModelSource, Repository};
pub use save::SavePretrained;
pub use shared_keys::{write_dims, write_rotary};

use crate::tokens::Tokenizer;
pub(crate) use rope::{RotaryDefaults, read_rotary_kinds};
pub(crate) use shared_keys::{check_even, write_rotary_as};

use checkpoint::Checkpoint;

const CONFIG: &str = "config.json";

/// A loaded model, with its configuration and tokenizer.
#[derive(Debug)]
pub struct Pretrained<M, C> {
    /// The model's configuration.
    pub config: C,
    /// The tokenizer; `None` if the checkpoint has no file with a vocabulary.
    pub tokenizer: Option<Tokenizer>,
    /// The model.
    pub model: M,
    /// What loading ignored or decided, for the user to know.
    pub notes: Vec<LoadNote>,
}

impl<M, C> Pretrained<M, C> {
    /// The tokenizer.
    ///
    /// # Errors
    /// If the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, LoadError> {
        self.tokenizer.as_ref().ok_or(LoadError::NoTokenizer)
    }
}

/// How far loading has come.
#[derive(Clone, Debug)]
pub struct LoadProgress<'a> {
    /// The tensor that is about to be read.
    pub tensor: &'a str,
    /// Number of tensors read before it.
    pub tensors_done: usize,
    /// Total number of tensors.
    pub tensors_total: usize,
    /// Bytes read before it.
    pub bytes_done: usize,
    /// Total bytes.
    pub bytes_total: usize,
}

/// Called before each tensor is read.
pub type ProgressCallback = std::rc::Rc<dyn Fn(LoadProgress<'_>)>;

/// How to load a model.
#[derive(Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Dtype of the loaded parameters, a float type, whatever the checkpoint's. Default: f32.
    pub dtype: DType,
    /// Whether to track gradients of the weights on an autodiff backend, to train the weights
    /// themselves. Default: no. Burn's autodiff keeps everything that depends on a tracked weight
    /// until a backward pass, so a model that is only run would use more memory with each pass.
    pub require_grad: bool,
    /// Whether matrices of GGUF files stay quantised, if the backend can multiply by them
    /// ([`keeps_quantized`](crate::nn::keeps_quantized)) and the dtype is f32; otherwise they are
    /// dequantised. They are frozen regardless of `require_grad`, and take as much memory as in the
    /// file. Default: no.
    pub keep_quantised: bool,
    /// Bytes of the largest tensor that the device can hold, if larger matrices are to be kept in
    /// parts, which compute the same. Some GPUs bind no more than 128 MiB as one buffer, which the
    /// head of a small model can exceed. Such a matrix has no gradient, regardless of
    /// `require_grad`. Default: none.
    pub max_tensor_bytes: Option<u64>,
    /// Called before each tensor is read.
    pub progress: Option<ProgressCallback>,
    /// Keys of `config.json` that the caller knows not to affect the computation, although they are
    /// unknown to this crate and their names suggest that they might. Keys known to this crate are
    /// still read, or rejected by their value.
    pub ignored_config_keys: Vec<String>,
    /// The GGUF file to load from a folder or a repository on the hub. Default: none, unless a
    /// folder has no `config.json` and one GGUF file.
    pub file: Option<String>,
    /// Branch, tag, commit or pull request (`refs/pr/1`) on the hub. Default: `main`.
    ///
    /// It is resolved to one commit when loading begins. A full commit hash whose files are in the
    /// cache is loaded without contacting the hub.
    pub revision: String,
    /// Use only what the hub cache already holds. Default: whether `HF_HUB_OFFLINE` or, if that is
    /// not set, `TRANSFORMERS_OFFLINE` is `1`, `true`, `yes` or `on`.
    pub offline: bool,
    /// Check the hub for a newer commit of the branch, and for optional files that the cache lacks,
    /// even if the cache holds a complete model. Default: no; a complete model is loaded without
    /// any request.
    pub update: bool,
    /// Address of the hub. Default: `HF_ENDPOINT`, or `https://huggingface.co` if that is not set.
    pub hub_endpoint: Option<String>,
    /// Folder of the hub cache. Default: the one that Python's `huggingface_hub` uses:
    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub`
    /// or `~/.cache/huggingface/hub`, whichever is set first.
    pub hub_cache: Option<std::path::PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            require_grad: false,
            keep_quantised: false,
            max_tensor_bytes: None,
            progress: None,
            ignored_config_keys: Vec::new(),
            file: None,
            revision: "main".to_owned(),
            offline: hub::offline(),
            update: false,
            hub_endpoint: None,
            hub_cache: None,
        }
    }
}

impl LoadOptions {
    /// Loads into this dtype.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Whether to track gradients of the weights.
    pub fn with_require_grad(mut self, require_grad: bool) -> Self {
        self.require_grad = require_grad;
        self
    }

    /// Whether matrices of GGUF files stay quantised.
    pub fn with_keep_quantised(mut self, keep_quantised: bool) -> Self {
        self.keep_quantised = keep_quantised;
        self
    }

    /// Keeps larger matrices in parts; see [`max_tensor_bytes`](Self::max_tensor_bytes).
    pub fn with_max_tensor_bytes(mut self, bytes: u64) -> Self {
        self.max_tensor_bytes = Some(bytes);
        self
    }

    /// Reports progress.
    pub fn with_progress(mut self, callback: impl Fn(LoadProgress<'_>) + 'static) -> Self {
        self.progress = Some(std::rc::Rc::new(callback));
        self
    }

    /// Accepts these unknown keys of `config.json`; see
    /// [`ignored_config_keys`](Self::ignored_config_keys).
    pub fn with_ignored_config_keys<T: Into<String>>(
        mut self,
        keys: impl IntoIterator<Item = T>,
    ) -> Self {
        self.ignored_config_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Loads this GGUF file from a folder or from a repository on the hub.
    pub fn with_file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Loads this branch, tag or commit.
    pub fn with_revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = revision.into();
        self
    }

    /// Whether to use only what the hub cache already holds.
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Whether to check the hub for updates; see [`update`](Self::update).
    pub fn with_update(mut self, update: bool) -> Self {
        self.update = update;
        self
    }

    /// Uses the hub at this address.
    pub fn with_hub_endpoint(mut self, address: impl Into<String>) -> Self {
        self.hub_endpoint = Some(address.into());
        self
    }

    /// Uses this folder as the hub cache.
    pub fn with_hub_cache(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.hub_cache = Some(folder.into());
        self
    }
}

impl std::fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("dtype", &self.dtype)
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// Models that can be loaded from a Hugging Face checkpoint: those of every [`Family`].
pub trait FromPretrained<B: Backend>: Sized {
    /// The model's configuration.
    type Config;

    /// Loads the model at `source`: a folder, a hub id or a bundled model.
    ///
    /// # Errors
    /// If the source cannot be read, is of a different model family, or does not exactly match its
    /// configuration. See [`LoadError`].
    fn from_pretrained(
        source: impl Into<ModelSource>,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<Self, Self::Config>, LoadError> {
        let repository = Repository::open(&source.into(), options)?;
        let config = Fields::parse(&repository.config()?, &options.ignored_config_keys)
            .map_err(|cause| repository.config_error(cause))?;
        Self::from_repository(&repository, config, options, device)
    }

    /// Loads from a repository whose `config.json` has been read.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    fn from_repository(
        repository: &Repository,
        config: Fields,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<Self, Self::Config>, LoadError>;
}

impl<B: Backend, M: Family<B>> FromPretrained<B> for M {
    type Config = <M as Family<B>>::Config;

    fn from_repository(
        repository: &Repository,
        config: Fields,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<M, <M as Family<B>>::Config>, LoadError> {
        load_family::<B, M>(repository, config, options, device)
    }
}

/// Loads a model of one family.
///
/// # Errors
/// If the configuration, the tokenizer or the weights do not exactly match the family.
fn load_family<B: Backend, M: Family<B>>(
    repository: &Repository,
    mut fields: Fields,
    options: &LoadOptions,
    device: &B::Device,
) -> Result<Pretrained<M, M::Config>, LoadError> {
    let (mut config, mut notes) = M::read_config(&mut fields)
        .and_then(|config| Ok((config, fields.finish()?)))
        .map_err(|cause| repository.config_error(cause))?;
    let tokenizer = repository.tokenizer()?;
    let of_tokenizer = tokenizer.iter().flat_map(Tokenizer::notes);
    notes.extend(of_tokenizer.map(|what| LoadNote::Tokenizer { what: what.clone() }));
    let checkpoint = Checkpoint::open(repository)?;
    if let Some(tensor) = own_head(M::weight_layout(&config), &checkpoint)? {
        if !M::untie_head(&mut config) {
            let tensors = vec![tensor];
            return Err(CheckpointError::UnusedTensors { tensors }.into());
        }
        notes.push(LoadNote::HeadNotTied { tensor });
    }
    let model = M::skeleton(&config, options.dtype, device);
    let (model, passed_over) =
        weights::load(model, M::weight_layout(&config), checkpoint, options)?;
    notes.extend(passed_over);
    let model = if options.require_grad {
        model
    } else {
        model.no_grad()
    };
    Ok(Pretrained {
        config,
        tokenizer,
        model,
        notes,
    })
}

/// The name of a stored head that differs from the embedding it should be tied to.
fn own_head(
    layout: WeightLayout,
    checkpoint: &Checkpoint,
) -> Result<Option<String>, CheckpointError> {
    let Some(embedding) = layout.tied_head else {
        return Ok(None);
    };
    let stored = |path: &str| {
        let mut names = checkpoint.tensors.keys();
        names
            .find(|name| layout.path(name).as_deref() == Some(path))
            .cloned()
    };
    match (stored(embedding), stored(WeightLayout::HEAD)) {
        (Some(embedding), Some(head)) if !checkpoint.equal(&embedding, &head)? => Ok(Some(head)),
        _ => Ok(None),
    }
}
