//! Saving a model in the Hugging Face layout.

use std::path::Path;
use std::rc::Rc;

use burn::tensor::backend::Backend;
use burn_store::{ModuleAdapter, ModuleStore, SafetensorsStore, TensorSnapshot};

use super::{
    CONFIG, Family, Fields, FromPretrained, SaveError, WeightLayout, tokenizer as tokenizer_files,
    weights,
};
use crate::files::{Replacement, WriteError};
use crate::tokens::Tokenizer;

const WEIGHTS: &str = "model.safetensors";

/// Models that can be saved in the Hugging Face layout: those of every [`Family`].
pub trait SavePretrained<B: Backend>: FromPretrained<B> {
    /// Writes `config.json`, `model.safetensors` and, if given, the tokenizer's files into a
    /// folder, which Python's `transformers` can also load, with the same token ids. The folder is
    /// created if it does not exist. An existing model is replaced once everything is written, and
    /// is left unchanged if writing fails.
    ///
    /// # Errors
    /// If the configuration has no Hugging Face form, or the folder cannot be created or written
    /// to.
    fn save_pretrained(
        &self,
        config: &Self::Config,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError>;
}

impl<B: Backend, M: Family<B>> SavePretrained<B> for M {
    fn save_pretrained(
        &self,
        config: &<M as Family<B>>::Config,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError> {
        save_family::<B, M>(self, config, tokenizer, folder)
    }
}

/// Saves a model of one family.
fn save_family<B: Backend, M: Family<B>>(
    model: &M,
    config: &M::Config,
    tokenizer: Option<&Tokenizer>,
    folder: &Path,
) -> Result<(), SaveError> {
    let json = format!("{:#}\n", M::write_config(config));
    check_config::<B, M>(&json, config)?;
    let mut files = Replacement::new(folder)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer_files::save(tokenizer, &mut files)?;
    }
    let mut store = SafetensorsStore::from_file(files.part(WEIGHTS))
        .overwrite(true)
        .clear_metadata()
        .metadata("format", "pt")
        .with_to_adapter(ToHuggingFace(M::weight_layout(config)));
    store
        .collect_from(model)
        .map_err(|error| SaveError::Weights {
            file: folder.join(WEIGHTS),
            reason: error.to_string(),
        })?;
    files.write(CONFIG, json.as_bytes())?;
    Ok(files.finish()?)
}

impl From<WriteError> for SaveError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

/// Checks that a configuration reads back unchanged.
fn check_config<B: Backend, M: Family<B>>(json: &str, config: &M::Config) -> Result<(), SaveError> {
    let read = Fields::parse(json, &[]).and_then(|mut fields| M::read_config(&mut fields));
    match read {
        Ok(read) if read == *config => Ok(()),
        Ok(_) => Err(SaveError::Unrepresentable {
            reason: "it would read back as a different one".to_owned(),
        }),
        Err(error) => Err(SaveError::Unrepresentable {
            reason: error.to_string(),
        }),
    }
}

/// Gives tensors the names and the layout of the checkpoint format.
#[derive(Clone)]
struct ToHuggingFace(WeightLayout);

impl ModuleAdapter for ToHuggingFace {
    fn adapt(&self, snapshot: &TensorSnapshot) -> TensorSnapshot {
        let path = snapshot.full_path();
        let name = self.0.name(&path);
        let read = snapshot.clone_data_fn();
        let mut shape = snapshot.shape.clone();
        let transposed = self.0.transposes(&path, snapshot.shape.num_dims());
        if transposed {
            shape = shape.iter().rev().copied().collect::<Vec<_>>().into();
        }
        TensorSnapshot::from_closure(
            Rc::new(move || {
                let data = read()?;
                Ok(if transposed {
                    weights::transpose(data)
                } else {
                    data
                })
            }),
            snapshot.dtype,
            shape,
            name.split('.').map(str::to_owned).collect(),
            snapshot.container_stack.clone().unwrap_or_default(),
            snapshot.tensor_id.unwrap_or_default(),
        )
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}
