//! The state of a run in a file, so that an interrupted run ends with the same numbers.
//!
//! `training.safetensors` holds the parameters of the interventions, the moments of both
//! optimizers, the losses so far, and the best epoch, each tensor in its own dtype; everything else
//! is JSON in its metadata. Parameters are numbered in the order in which Burn visits them, so a
//! new run may have new ids. The order of the examples follows from seed and epoch, so no state of
//! a random number generator is needed. Burn's recorders are not used, because they round to the
//! float type of the backend when they load, which may be bf16.

mod tensors;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;

use burn::module::{AutodiffModule, Module};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn_align_models::files::Replacement;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::tensors::{Collect, Restore, Stored};
use super::{Checkpoints, EpochReport, TrainingError};

/// The name of the file.
const NAME: &str = "training.safetensors";
/// The metadata key.
const STATE: &str = "burn_align_training";
/// The version of the format.
const FORMAT: u32 = 1;

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
    format: u32,
    run: Value,
    epochs: Vec<EpochReport>,
    /// Accuracy and epoch.
    best: Option<(f64, usize)>,
    ended: bool,
    /// How many steps the moments of a parameter have seen.
    times: BTreeMap<String, usize>,
}

/// The file that a run writes and reads.
pub(super) struct CheckpointFile {
    folder: PathBuf,
    file: PathBuf,
    /// What identifies the run.
    run: Value,
}

impl CheckpointFile {
    /// - run: everything that the numbers depend on
    pub(super) fn new(checkpoints: &Checkpoints, run: Value) -> Self {
        Self {
            folder: checkpoints.folder.clone(),
            file: checkpoints.folder.join(NAME),
            run,
        }
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
            return Err(self.io(
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
            format: FORMAT,
            run: self.run.clone(),
            epochs: state.epochs.clone(),
            best: state.best.as_ref().map(|best| (best.accuracy, best.epoch)),
            ended: state.ended,
            times: collect.times,
        };
        let header = serde_json::to_string(&header).expect("names are text");
        let views = collect.tensors.iter().map(|(name, it)| {
            let view = TensorView::new(it.dtype, it.shape.clone(), &it.bytes);
            (name, view.expect("as many bytes as the shape says"))
        });
        let metadata = HashMap::from([(STATE.to_owned(), header)]);
        let bytes = serialize(views, Some(metadata)).map_err(|error| self.damaged(error))?;
        let written = Replacement::new(&self.folder).and_then(|mut file| {
            file.write(NAME, &bytes)?;
            file.finish()
        });
        written.map_err(|error| self.io("written", &error.cause))
    }

    /// Reads the checkpoint, if there is one, into the interventions and optimizers of a new run.
    pub(super) fn load<A: AutodiffBackend, I: AutodiffModule<A>>(
        &self,
        interventions: &[I],
        optimizers: [AdamOf<A, I>; 2],
    ) -> Result<Option<Restored<A, I>>, TrainingError> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read", &error)),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| self.damaged(e))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| self.damaged(e))?;
        let header = metadata.metadata().as_ref().and_then(|it| it.get(STATE));
        let header = header.ok_or_else(|| self.damaged("it has no state of a run"))?;
        let header: Value = serde_json::from_str(header).map_err(|e| self.damaged(e))?;
        if header["format"] != FORMAT {
            let found = &header["format"];
            return Err(self.damaged(format!("expected format {FORMAT}, found {found}")));
        }
        if let Some((what, expected, found)) = difference("", &self.run, &header["run"]) {
            let file = self.file.clone();
            return Err(TrainingError::OtherRun {
                file,
                what,
                expected,
                found,
            });
        }
        let header: Header = serde_json::from_value(header).map_err(|e| self.damaged(e))?;
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
            return Err(self.damaged(reason));
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

    fn io(&self, doing: &'static str, error: &io::Error) -> TrainingError {
        TrainingError::CheckpointIo {
            file: self.file.clone(),
            doing,
            kind: error.kind(),
            reason: error.to_string(),
        }
    }

    fn damaged(&self, reason: impl ToString) -> TrainingError {
        TrainingError::CheckpointDamaged {
            file: self.file.clone(),
            reason: reason.to_string(),
        }
    }
}

/// The first place at which two values differ, and both values there.
fn difference(at: &str, expected: &Value, found: &Value) -> Option<(String, String, String)> {
    if expected == found {
        return None;
    }
    if let (Value::Object(expected), Value::Object(found)) = (expected, found) {
        let keys = expected.keys().chain(found.keys());
        let mut inside = keys.filter_map(|key| {
            let none = Value::Null;
            let at = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            let side =
                |side: &'_ serde_json::Map<String, Value>| side.get(key).unwrap_or(&none).clone();
            difference(&at, &side(expected), &side(found))
        });
        return inside.next();
    }
    Some((at.to_owned(), expected.to_string(), found.to_string()))
}
