use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;

use burn::tensor::backend::Backend;
use burn_store::{ModuleAdapter, ModuleStore, SafetensorsStore, TensorSnapshot};

use super::{Family, Fields, FromPretrained, SaveError, WeightLayout, weights};
use crate::tokens::Tokenizer;

/// Models that can be saved in the Hugging Face layout.
pub trait SavePretrained<B: Backend>: FromPretrained<B> {
    /// Writes `config.json`, `model.safetensors` and, if given, `tokenizer.json` into a folder
    /// that Python's `transformers` loads, too. The folder is made if it is not there.
    ///
    /// # Errors
    /// If the configuration has no Hugging Face form, or the folder cannot be made or written to.
    fn save_pretrained(
        &self,
        config: &Self::Config,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError>;
}

/// Saves a model of one family: what its [`SavePretrained::save_pretrained`] calls.
///
/// # Errors
/// As there.
pub fn save_family<B: Backend, M: Family<B>>(
    model: &M,
    config: &M::Config,
    tokenizer: Option<&Tokenizer>,
    folder: &Path,
) -> Result<(), SaveError> {
    let io_error = |file: &Path| {
        let file = file.to_owned();
        move |cause: io::Error| SaveError::Io { file, cause }
    };
    let json = format!("{:#}\n", M::write_config(config));
    check_config::<B, M>(&json, config)?;
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let file = folder.join("config.json");
    fs::write(&file, json).map_err(io_error(&file))?;

    if let Some(tokenizer) = tokenizer {
        let file = folder.join("tokenizer.json");
        fs::write(&file, tokenizer.json()).map_err(io_error(&file))?;
    }

    let layout = M::layout(config);
    let file = folder.join("model.safetensors");
    let mut store = SafetensorsStore::from_file(&file)
        .overwrite(true)
        .clear_metadata()
        .metadata("format", "pt")
        .with_to_adapter(ToHuggingFace(layout));
    store
        .collect_from(model)
        .map_err(|error| SaveError::Weights {
            file,
            reason: error.to_string(),
        })
}

/// Checks that a configuration reads back as it is.
fn check_config<B: Backend, M: Family<B>>(json: &str, config: &M::Config) -> Result<(), SaveError> {
    let read = Fields::parse(json, &[]).and_then(|mut fields| M::read_config(&mut fields));
    match read {
        Ok(read) if read == *config => Ok(()),
        Ok(_) => Err(SaveError::Unrepresentable {
            reason: "it would read back as another one".to_owned(),
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
        let transposed = (self.0.is_transposed)(&path);
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
