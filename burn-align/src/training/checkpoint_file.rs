//! The file of a checkpoint: tensors by name, and everything else as JSON in its metadata.
//!
//! Each tensor is stored in its own dtype. Burn's recorders are not used, because they round to the
//! float type of the backend when they load, which may be bf16.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;

use burn_align_models::files::Replacement;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Checkpoints, TrainingError};

/// The version of the format.
const FORMAT: u32 = 1;

/// The names of Adam's moments, the last of which only AMSGrad has.
pub(super) const MOMENTS: [&str; 3] = ["moment_1", "moment_2", "max_moment_2"];

/// A tensor in its stored form.
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// What kind of run a file belongs to.
pub(super) struct RunKind {
    /// The name of the file.
    pub(super) name: &'static str,
    /// The key of the metadata.
    pub(super) key: &'static str,
}

/// The file that a run writes and reads.
pub(super) struct RunFile {
    kind: RunKind,
    folder: PathBuf,
    file: PathBuf,
    /// What identifies the run.
    run: Value,
}

impl RunFile {
    /// - run: everything that the numbers depend on
    pub(super) fn new(kind: RunKind, checkpoints: &Checkpoints, run: Value) -> Self {
        Self {
            folder: checkpoints.folder.clone(),
            file: checkpoints.folder.join(kind.name),
            kind,
            run,
        }
    }

    /// Replaces the previous checkpoint atomically.
    ///
    /// - state: a struct; everything that is not a tensor
    pub(super) fn write(
        &self,
        state: &impl Serialize,
        tensors: &BTreeMap<String, Stored>,
    ) -> Result<(), TrainingError> {
        let mut header = serde_json::to_value(state).expect("names are text");
        header["format"] = FORMAT.into();
        header["run"] = self.run.clone();
        let views = tensors.iter().map(|(name, it)| {
            let view = TensorView::new(it.dtype, it.shape.clone(), &it.bytes);
            (name, view.expect("as many bytes as the shape says"))
        });
        let metadata = HashMap::from([(self.kind.key.to_owned(), header.to_string())]);
        let bytes = serialize(views, Some(metadata)).map_err(|error| self.damaged(error))?;
        let written = Replacement::new(&self.folder).and_then(|mut file| {
            file.write(self.kind.name, &bytes)?;
            file.finish()
        });
        written.map_err(|error| self.io("written", &error.cause))
    }

    /// Reads the checkpoint, if there is one and it belongs to this run: the state, and the bytes
    /// of the file, which are safetensors.
    pub(super) fn read<S: DeserializeOwned>(&self) -> Result<Option<(S, Vec<u8>)>, TrainingError> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read", &error)),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| self.damaged(e))?;
        SafeTensors::deserialize(&bytes).map_err(|e| self.damaged(e))?;
        let header = metadata.metadata().as_ref();
        let header = header.and_then(|it| it.get(self.kind.key));
        let header = header.ok_or_else(|| self.damaged("it has no state of a run"))?;
        let mut header: Value = serde_json::from_str(header).map_err(|e| self.damaged(e))?;
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
        if let Some(header) = header.as_object_mut() {
            header.remove("format");
            header.remove("run");
        }
        let state = serde_json::from_value(header).map_err(|e| self.damaged(e))?;
        Ok(Some((state, bytes)))
    }

    pub(super) fn io(&self, doing: &'static str, error: &io::Error) -> TrainingError {
        TrainingError::CheckpointIo {
            file: self.file.clone(),
            doing,
            kind: error.kind(),
            reason: error.to_string(),
        }
    }

    pub(super) fn damaged(&self, reason: impl ToString) -> TrainingError {
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
