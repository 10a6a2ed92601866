//! Interventions in a folder, to be trained once and used often.
//!
//! ```
//! use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
//! use burn_align::models::{Component, FromPretrained, Gpt2, LoadOptions};
//! # type B = burn::backend::Flex;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Default::default();
//! let gpt2 = Gpt2::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
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
//! `config.json` is that of an [`AlignableConfig`] with one more field, `interventions`: what each
//! of them is apart from its tensors. `interventions.safetensors` holds these, in f32, as
//! `INDEX.PARAMETER`, for instance `0.rotation.parameter`. What is loaded computes the same, bit by
//! bit. Linked representations share an intervention, which is stored once. What began as a folder
//! of pyvene has a field `changed_features`, too, if only a model can tell whether they are all.
//!
//! Interventions of your own are not [`BuiltinIntervention`]s and cannot be saved so: save them as
//! what they are, Burn modules, and put them into a model with
//! [`AlignableModel::with_interventions`].
//!
//! # Folders by pyvene and pyreft
//! [`load`](SavedInterventions::load) reads them, too, of all releases (`config.json` and
//! `intkey_*.bin`). Their pickles are read, not run: one that names anything but tensors is
//! refused. What would not compute the same here is an error, with these exceptions:
//! - an autoencoder whose `interchange_dim` is the default, `embed_dim`, swaps all of its hidden
//!   features: pyvene swaps one, or the first `embed_dim`;
//! - pyreft does not save which function follows the learned map: it is taken to be the identity;
//! - parameters in bf16 and f16 become f32; nothing is rounded.
//!
//! Weights of the model beside them (`pytorch_model.bin`, of pyvene's `include_model=True`) are an
//! error: they are not loaded, and the interventions may be meant for them.
//!
//! Noise and principal components are in no file that pyvene writes, and so cannot be loaded.

mod error;
mod format;
mod pickle;
mod pyvene;
mod pyvene_config;
mod tensors;
mod torch;

use std::fs;
use std::io;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use burn_align_models::files::cut_off;
use serde_json::{Map, Value};

pub use error::{LoadInterventionsError, SaveInterventionsError};

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
    /// the same link key. Put them into a model by [`with_model`](Self::with_model), which checks
    /// what a folder of pyvene says beside them.
    pub interventions: Vec<BuiltinIntervention<B>>,
    /// How many features of each representation are changed, where a folder of pyvene says so and
    /// only a model can tell whether these are all. It is saved, and
    /// [`with_model`](Self::with_model) checks it.
    widths: Vec<Option<usize>>,
}

impl<B: Backend> SavedInterventions<B> {
    /// Interventions to be saved.
    pub fn new(config: AlignableConfig, interventions: Vec<BuiltinIntervention<B>>) -> Self {
        Self {
            widths: vec![None; config.representations.len()],
            config,
            interventions,
        }
    }

    /// Writes `config.json` and `interventions.safetensors` into a folder, which is made if it is
    /// not there. Interventions that are there are replaced when all is written, and stay as they
    /// are if something cannot be; a program that is killed never leaves files of two saves.
    ///
    /// # Errors
    /// If configuration and interventions do not belong together, or the files cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), SaveInterventionsError> {
        format::save(
            folder.as_ref(),
            &self.config,
            &self.interventions,
            &self.widths,
        )
    }

    /// Reads a folder as [`save`](Self::save) writes it, or pyvene.
    ///
    /// # Errors
    /// If the folder cannot be read, or cannot be used exactly as it is.
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
            Err(cause) => return Err(LoadInterventionsError::Io { file, cause }),
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
                "expected alignable_representations, or of pyvene's folders representations or \
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
        // The model has been asked: all interventions are on all features.
        format::save(folder.as_ref(), self.config(), self.interventions(), &[])
    }

    /// Puts the interventions of a folder into a model; the folder is as
    /// [`save_interventions`](Self::save_interventions) writes it, or pyvene.
    ///
    /// # Errors
    /// If the folder cannot be read, or what is in it does not fit the model.
    pub fn load(folder: impl AsRef<Path>, model: M) -> Result<Self, LoadInterventionsError> {
        SavedInterventions::load(folder, &model.device())?.with_model(model)
    }
}
