//! Which model a program uses, and how it is loaded.

use anyhow::{Context, Result};
use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_align_models::{FromPretrained, LoadOptions, ModelSource, Pretrained};
use clap::Args;

use crate::memory::max_tensor_bytes;
use crate::{complain, progress};

/// A model from the command line: flatten it into a program's arguments.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// A folder written by `save_pretrained`, a GGUF file, a hub id such as gpt2 (with #file.gguf
    /// for a GGUF file there), or a bundled model such as bundled:capitals [default: a bundled
    /// one].
    #[arg(long)]
    pub model: Option<String>,
    /// How it is loaded.
    #[command(flatten)]
    pub options: LoadArgs,
}

/// How a model is loaded: [`LoadOptions`] on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct LoadArgs {
    /// Branch, tag or commit of a model on the hub [default: main].
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// The GGUF file to load from a folder or a repository on the hub.
    #[arg(long, value_name = "FILE")]
    pub file: Option<String>,
    /// Use only what the hub cache already holds.
    #[arg(long)]
    pub offline: bool,
    /// Check the hub for a newer version of a cached model.
    #[arg(long, conflicts_with = "offline")]
    pub update: bool,
    /// Keep the weights of a GGUF file quantised in memory (with the backend flex, in f32).
    #[arg(long)]
    pub keep_quantised: bool,
    /// A key of config.json that you know not to affect the computation, although its name suggests
    /// that it might; may be given several times.
    #[arg(long, value_name = "KEY")]
    pub ignore_config_key: Vec<String>,
}

impl LoadArgs {
    /// The options for loading in this dtype.
    pub fn options(&self, dtype: DType) -> LoadOptions {
        let mut options = LoadOptions::default()
            .with_dtype(dtype)
            .with_update(self.update)
            .with_keep_quantised(self.keep_quantised)
            .with_ignored_config_keys(self.ignore_config_key.iter().cloned());
        if let Some(revision) = &self.revision {
            options = options.with_revision(revision);
        }
        if let Some(file) = &self.file {
            options = options.with_file(file);
        }
        if self.offline {
            options = options.with_offline(true);
        }
        options
    }

    /// Loads a model with a progress bar, and prints notes about what was ignored on standard
    /// error.
    ///
    /// # Errors
    /// If it can't be loaded.
    pub fn load<B: Backend, M: FromPretrained<B>>(
        &self,
        source: impl Into<ModelSource>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Pretrained<M, M::Config>> {
        let mut options = self.options(dtype).with_progress(progress::loading());
        options.max_tensor_bytes = max_tensor_bytes::<B>(device);
        let loaded = M::from_pretrained(source, &options, device)?;
        for note in &loaded.notes {
            complain!("note: {note}");
        }
        Ok(loaded)
    }
}

impl ModelArgs {
    /// The requested model, or this one if none was.
    pub fn source<'a>(&'a self, default: &'a str) -> &'a str {
        self.model.as_deref().unwrap_or(default)
    }

    /// The requested model, or SmolLM2 in the folder that `BURN_ALIGN_REAL` names if none was.
    ///
    /// - expected: what a model must be like, for the error
    ///
    /// # Errors
    /// If no model was requested, and the variable is not set.
    pub fn or_smollm2(&self, expected: &str) -> Result<String> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let folder = std::env::var("BURN_ALIGN_REAL").ok();
        let folder = folder.with_context(|| {
            format!(
                "--model: expected {expected}, found none; `bash tests/real/fetch.sh DIR` fetches \
                 SmolLM2-135M-Instruct (98 MB), which BURN_ALIGN_REAL=DIR then names"
            )
        })?;
        Ok(format!("{folder}/SmolLM2-135M-Instruct.Q4_1.gguf"))
    }

    /// Loads the requested model, or the default one; see [`LoadArgs::load`].
    ///
    /// # Errors
    /// If it can't be loaded.
    pub fn load<B: Backend, M: FromPretrained<B>>(
        &self,
        default: &str,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Pretrained<M, M::Config>> {
        self.options.load(self.source(default), dtype, device)
    }
}
