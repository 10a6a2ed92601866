//! The result of a cell of a grid in a file, beside the checkpoint of its training.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use serde::{Deserialize, Serialize};

use super::checkpoint_file::{RunFile, RunKind};
use super::fingerprint::fingerprint;
use super::{Checkpoints, Controlled, InterchangeData, TrainingConfig, TrainingError};
use crate::front::AlignableModel;
use crate::interventions::Intervention;

const KIND: RunKind = RunKind {
    name: "cell.safetensors",
    key: "burn_align_alignment_cell",
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    found: Controlled,
}

/// The file of a cell.
pub(crate) struct CellFile(RunFile);

impl CellFile {
    /// - config, model, data: of the training; the held-out data come second
    pub(crate) fn new<B, D, M, I>(
        checkpoints: &Checkpoints,
        config: &TrainingConfig,
        model: &AlignableModel<B, M, I>,
        data: [&[InterchangeData<D>]; 2],
    ) -> Self
    where
        B: Backend,
        D: Backend,
        M: AlignableTransformer<B>,
        I: Intervention<B>,
    {
        let (alignment, dims) = (model.config(), model.model().dims());
        let run = fingerprint(config, alignment, dims, model.interventions(), data);
        Self(RunFile::new(KIND, checkpoints, run))
    }

    pub(crate) fn save(&self, found: &Controlled) -> Result<(), TrainingError> {
        self.0.write(&Header { found: *found }, &BTreeMap::new())
    }

    pub(crate) fn load(&self) -> Result<Option<Controlled>, TrainingError> {
        let found = self.0.read::<Header>()?;
        Ok(found.map(|(header, _bytes)| header.found))
    }
}
