//! The state of a run in a file, so that an interrupted run ends with the same numbers.
//!
//! `training.safetensors` holds the parameters of the interventions, the moments of both
//! optimizers, the losses so far, and the best epoch. Parameters are numbered in the order in which
//! Burn visits them, so a new run may have new ids. The order of the examples follows from seed and
//! epoch, so no state of a random number generator is needed.

mod tensors;

use std::collections::BTreeMap;
use std::io;

use burn::module::{AutodiffModule, Module};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::tensors::{Collect, Restore};
use super::checkpoint_file::{RunFile, RunKind, Stored};
use super::{Checkpoints, EpochReport, TrainingError};

/// The file.
const KIND: RunKind = RunKind {
    name: "training.safetensors",
    key: "burn_align_training",
};

/// The state of a run.
pub(super) struct State<I> {
    pub(super) interventions: Vec<I>,
    /// The loss of every step.
    pub(super) losses: Vec<f64>,
    pub(super) epochs: Vec<EpochReport>,
    pub(super) best: Option<Best<I>>,
    /// Whether the run has ended.
    pub(super) ended: bool,
}

/// The best epoch so far.
pub(super) struct Best<I> {
    pub(super) accuracy: f64,
    pub(super) epoch: usize,
    pub(super) interventions: Vec<I>,
}

/// An optimizer for all interventions.
pub(super) type AdamOf<A, I> = OptimizerAdaptor<Adam, Vec<I>, A>;
/// What a checkpoint restores: the state of the run, and its optimizers.
type Restored<A, I> = (State<I>, [AdamOf<A, I>; 2]);
type Records<A, I> = <AdamOf<A, I> as Optimizer<Vec<I>, A>>::Record;

/// Everything that is not a tensor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    epochs: Vec<EpochReport>,
    /// Accuracy and epoch.
    best: Option<(f64, usize)>,
    ended: bool,
    /// How many steps the moments of a parameter have seen.
    times: BTreeMap<String, usize>,
}

/// The file that a run writes and reads.
pub(super) struct CheckpointFile(RunFile);

impl CheckpointFile {
    /// - run: everything that the numbers depend on
    pub(super) fn new(checkpoints: &Checkpoints, run: Value) -> Self {
        Self(RunFile::new(KIND, checkpoints, run))
    }

    /// Replaces the previous checkpoint atomically.
    pub(super) fn save<A: AutodiffBackend, I: AutodiffModule<A>>(
        &self,
        state: &State<I>,
        optimizers: [&AdamOf<A, I>; 2],
    ) -> Result<(), TrainingError> {
        let mut collect = Collect::<A, I> {
            what: "parameter",
            index: 0,
            records: optimizers.map(Optimizer::to_record),
            tensors: BTreeMap::new(),
            times: BTreeMap::new(),
            failed: None,
        };
        state.interventions.visit(&mut collect);
        if let Some(best) = &state.best {
            (collect.what, collect.index) = ("best", 0);
            best.interventions.visit(&mut collect);
        }
        if let Some(reason) = collect.failed {
            return Err(self.0.io(
                "written",
                &io::Error::new(io::ErrorKind::Unsupported, reason),
            ));
        }
        let losses = Stored {
            dtype: Dtype::F64,
            shape: vec![state.losses.len()],
            bytes: state
                .losses
                .iter()
                .flat_map(|it| it.to_le_bytes())
                .collect(),
        };
        collect.tensors.insert("losses".to_owned(), losses);
        let header = Header {
            epochs: state.epochs.clone(),
            best: state.best.as_ref().map(|best| (best.accuracy, best.epoch)),
            ended: state.ended,
            times: collect.times,
        };
        self.0.write(&header, &collect.tensors)
    }

    /// Reads the checkpoint, if there is one, into the interventions and optimizers of a new run.
    pub(super) fn load<A: AutodiffBackend, I: AutodiffModule<A>>(
        &self,
        interventions: &[I],
        optimizers: [AdamOf<A, I>; 2],
    ) -> Result<Option<Restored<A, I>>, TrainingError> {
        let Some((header, bytes)) = self.0.read::<Header>()? else {
            return Ok(None);
        };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| self.0.damaged(e))?;
        let mut restore = Restore::<A, I> {
            what: "parameter",
            index: 0,
            records: optimizers.each_ref().map(Optimizer::to_record),
            tensors: &tensors,
            times: &header.times,
            failed: None,
        };
        let restored = interventions.to_vec().map(&mut restore);
        let best = header.best.map(|(accuracy, epoch)| {
            (restore.what, restore.index) = ("best", 0);
            Best {
                accuracy,
                epoch,
                interventions: interventions.to_vec().map(&mut restore),
            }
        });
        let losses = restore.bytes("losses", Dtype::F64).to_vec();
        if let Some(reason) = restore.failed {
            return Err(self.0.damaged(reason));
        }
        let (losses, _) = losses.as_chunks::<8>();
        let state = State {
            interventions: restored,
            losses: losses.iter().map(|it| f64::from_le_bytes(*it)).collect(),
            epochs: header.epochs,
            best,
            ended: header.ended,
        };
        let [rest, masks] = optimizers;
        let [of_rest, of_masks] = restore.records;
        Ok(Some((
            state,
            [rest.load_record(of_rest), masks.load_record(of_masks)],
        )))
    }
}
