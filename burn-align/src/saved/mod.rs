//! Interventions in a folder: train once, use often.
//!
//! ```
//! use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
//! use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
//! # type B = burn::backend::Flex;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let gpt2 = Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
//! let representation = AlignableRepresentationConfig::new(2, Component::BlockOutput);
//! let config = AlignableConfig::new([representation.with_low_rank(4)]);
//! let alignable = AlignableModel::new(config, gpt2.model.clone())?;
//! // … training …
//! let folder = std::env::temp_dir().join("burn-align-capitals");
//! alignable.save_interventions(&folder)?;
//! let alignable = AlignableModel::load(&folder, gpt2.model)?;
//! # assert_eq!(alignable.config().representations[0].low_rank_dimension, Some(4));
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Format
//! `config.json` is that of an [`AlignableConfig`] with one more field, `interventions`: the
//! description of each of them, apart from its tensors. `interventions.safetensors` holds the
//! tensors, in f32, as `INDEX.PARAMETER`, for instance `0.rotation.parameter`. Loaded interventions
//! compute the same results, to the bit. Linked representations share an intervention, which is
//! stored once. Interventions that came from a pyvene folder also have a field `changed_features`,
//! if only a model can tell whether these are all features.
//!
//! Your own interventions are not [`BuiltinIntervention`]s and cannot be saved this way: save them
//! as Burn modules, and put them into a model with [`AlignableModel::with_interventions`].
//!
//! # Folders by pyvene and pyreft
//! [`load`](SavedInterventions::load) also reads these, from all releases (`config.json` and
//! `intkey_*.bin`). Their pickles are parsed, not run: one that names anything but tensors is
//! rejected. Anything that would compute a different result here is an error, with these
//! exceptions:
//! - an autoencoder whose `interchange_dim` is the default, `embed_dim`, swaps all of its hidden
//!   features: pyvene swaps one, or the first `embed_dim`;
//! - pyreft does not save which function follows the learned map: the identity is assumed;
//! - parameters in bf16 and f16 become f32; nothing is rounded.
//!
//! Weights of the model next to them (`pytorch_model.bin`, from pyvene's `include_model=True`) are
//! an error: they are not loaded, and the interventions may depend on them.
//!
//! pyvene does not save noise and principal components, so they cannot be loaded.

mod control_vector;
mod error;
mod format;
mod pickle;
mod pyvene;
mod pyvene_config;
mod tensors;
mod torch;
mod torch_save;

use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use burn_align_models::files::cut_off;
use serde_json::{Map, Value};

pub use control_vector::{ControlVector, ControlVectorError};
pub use error::{FileError, LoadInterventionsError, SaveInterventionsError};
pub(crate) use tensors::{Array, Stored, Tensors, Values, of_safetensors};
pub(crate) use torch::{nested, state_dict};
pub(crate) use torch_save::{Floats, TorchValue, torch_file};

use crate::front::{AlignableConfig, AlignableModel};
use crate::interventions::BuiltinIntervention;

const CONFIG: &str = "config.json";

/// Interventions, and the representations they are for, without a model.
#[derive(Debug)]
#[non_exhaustive]
pub struct SavedInterventions<B: Backend> {
    /// Which representations they are for.
    pub config: AlignableConfig,
    /// One for each representation that is not collected, and one for all representations with
    /// the same link key. Put them into a model with [`with_model`](Self::with_model), which also
    /// checks the widths given by a pyvene folder.
    pub interventions: Vec<BuiltinIntervention<B>>,
    /// How many features of each representation are changed, if a pyvene folder gives the number
    /// and only a model can tell whether these are all. Saved with the interventions, and checked
    /// by [`with_model`](Self::with_model).
    widths: Vec<Option<usize>>,
}

impl<B: Backend> SavedInterventions<B> {
    /// Interventions to save.
    pub fn new(config: AlignableConfig, interventions: Vec<BuiltinIntervention<B>>) -> Self {
        Self {
            widths: vec![None; config.representations.len()],
            config,
            interventions,
        }
    }

    /// Writes `config.json` and `interventions.safetensors` into a folder, which is created if it
    /// does not exist. Existing interventions are replaced once everything is written, and left
    /// unchanged if writing fails; a killed program never leaves files of two saves.
    ///
    /// # Errors
    /// If the configuration and the interventions do not match, or the files cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveInterventionsError> {
        format::save(
            folder.as_ref(),
            &self.config,
            &self.interventions,
            &self.widths,
        )
    }

    /// Reads a folder written by [`save`](Self::save) or by pyvene.
    ///
    /// # Errors
    /// If the folder cannot be read, or its contents cannot be reproduced exactly.
    pub fn load(
        folder: impl AsRef<Path>,
        device: &B::Device,
    ) -> Result<Self, LoadInterventionsError> {
        let folder = folder.as_ref();
        let file = folder.join(CONFIG);
        let json = match fs::read(&file) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = folder.to_owned();
                return Err(if cut_off(&folder, CONFIG) {
                    LoadInterventionsError::CutOff { folder }
                } else {
                    LoadInterventionsError::NoConfig { folder }
                });
            }
            Err(cause) => return Err(FileError::Io { file, cause }.into()),
        };
        let bad = |reason| LoadInterventionsError::Config {
            file: file.clone(),
            reason,
        };
        let fields: Map<String, Value> = serde_json::from_slice(&json)
            .map_err(|error| bad(format!("expected a JSON object: {error}")))?;
        if fields.contains_key("alignable_representations") {
            format::load(folder, &file, fields, device)
        } else if fields.contains_key("representations")
            || fields.contains_key("intervenable_representations")
        {
            pyvene::load(folder, &file, fields, device)
        } else {
            Err(bad(
                "expected alignable_representations, or in pyvene's folders representations or \
                 intervenable_representations, found none of them"
                    .to_owned(),
            ))
        }
    }

    /// Puts the interventions into a model.
    ///
    /// # Errors
    /// If they do not fit the model.
    pub fn with_model<M: AlignableTransformer<B>>(
        self,
        model: M,
    ) -> Result<AlignableModel<B, M>, LoadInterventionsError> {
        let representations = self.config.representations.iter();
        for (index, (representation, width)) in representations.zip(&self.widths).enumerate() {
            let dims = model.site(representation.place());
            if let (Some(found), Some(dims)) = (*width, dims)
                && let Some(expected) = representation.stored_width(dims)
                && found < expected
            {
                return Err(LoadInterventionsError::Width {
                    representation: index,
                    expected,
                    found,
                });
            }
        }
        let model = AlignableModel::with_interventions(self.config, model, self.interventions)?;
        Ok(model)
    }
}

impl<B: Backend, M: AlignableTransformer<B>> AlignableModel<B, M> {
    /// Writes the interventions and their configuration into a folder; see [`saved`](crate::saved).
    /// The model is not saved.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn save_interventions(
        &self,
        folder: impl AsRef<Path>,
    ) -> Result<(), SaveInterventionsError> {
        // Checked with the model: all interventions are on all features.
        format::save(folder.as_ref(), self.config(), self.interventions(), &[])
    }

    /// Puts the interventions of a folder into a model; the folder was written by
    /// [`save_interventions`](Self::save_interventions) or by pyvene.
    ///
    /// # Errors
    /// If the folder cannot be read, or its contents do not fit the model.
    pub fn load(folder: impl AsRef<Path>, model: M) -> Result<Self, LoadInterventionsError> {
        SavedInterventions::load(folder, &model.device())?.with_model(model)
    }
}
