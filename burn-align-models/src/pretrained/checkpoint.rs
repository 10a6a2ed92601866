//! The tensors of a safetensors checkpoint, in one file or in shards.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use burn::tensor::{DType, TensorData};
use burn_store::{ModuleStore, SafetensorsStore};
use serde::Deserialize;

use super::repository::Repository;
use super::{CheckpointError, LoadError};

/// The tensors of a checkpoint, in one file or several.
pub(super) struct Checkpoint {
    shards: Vec<Shard>,
    /// Every tensor by name.
    pub(super) tensors: BTreeMap<String, Stored>,
}

/// What a checkpoint says of a tensor without reading it.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) bytes: usize,
    shard: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    pub(super) fn open(repository: &Repository) -> Result<Self, LoadError> {
        let mut checkpoint = Self {
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        match repository {
            Repository::Bundled(bundled) => {
                let file = repository.describe("model.safetensors");
                checkpoint.add(Shard::new(file, Some(bundled.weights())))?;
            }
            Repository::Folder(folder) => {
                let single = folder.join("model.safetensors");
                if single.is_file() {
                    checkpoint.add(Shard::new(single, None))?;
                } else {
                    for file in Self::shard_files(repository, folder)? {
                        checkpoint.add(Shard::new(file, None))?;
                    }
                }
            }
        }
        Ok(checkpoint)
    }

    /// The files that the index names.
    fn shard_files(repository: &Repository, folder: &Path) -> Result<BTreeSet<PathBuf>, LoadError> {
        const INDEX: &str = "model.safetensors.index.json";
        let Some(json) = repository.optional_text(INDEX)? else {
            return Err(CheckpointError::NoWeights {
                folder: folder.to_owned(),
            }
            .into());
        };
        let mut files = BTreeSet::new();
        for name in shard_names(&folder.join(INDEX), &json)? {
            let file = folder.join(name);
            if !file.is_file() {
                return Err(CheckpointError::MissingShard { file }.into());
            }
            files.insert(file);
        }
        Ok(files)
    }

    fn add(&mut self, shard: Shard) -> Result<(), CheckpointError> {
        let number = self.shards.len();
        for (name, dtype, shape) in shard.tensors()? {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            let stored = Stored {
                shape,
                dtype,
                bytes,
                shard: number,
            };
            self.tensors.insert(name, stored);
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Reads one tensor.
    pub(super) fn read(&self, name: &str) -> Result<TensorData, CheckpointError> {
        let stored = &self.tensors[name];
        self.shards[stored.shard].read(name)
    }
}

/// The names of the files in an index of shards; none of them leads out of the index's folder.
pub(super) fn shard_names(file: &Path, json: &str) -> Result<BTreeSet<String>, CheckpointError> {
    let bad = |reason| CheckpointError::BadIndex {
        file: file.to_owned(),
        reason,
    };
    let index: Index =
        serde_json::from_str(json).map_err(|error| bad(format!("not an index: {error}")))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    for name in &names {
        let mut components = Path::new(name).components();
        if !matches!(
            (components.next(), components.next()),
            (Some(Component::Normal(_)), None)
        ) {
            return Err(bad(format!("expected a file name, found `{name}`")));
        }
    }
    Ok(names)
}

/// One safetensors file.
///
/// The file is mapped while it is read. The mapping is renewed every so often, so that the pages
/// already copied into tensors do not add up to a second copy of the weights in memory.
struct Shard {
    file: PathBuf,
    bundled: Option<&'static [u8]>,
    mapping: RefCell<Mapping>,
}

#[derive(Default)]
struct Mapping {
    store: Option<SafetensorsStore>,
    bytes_read: usize,
}

/// Bytes read before a file is mapped anew.
const MAPPING_BUDGET: usize = 64 << 20;

impl Shard {
    fn new(file: PathBuf, bundled: Option<&'static [u8]>) -> Self {
        Self {
            file,
            bundled,
            mapping: RefCell::default(),
        }
    }

    fn open(&self) -> SafetensorsStore {
        match self.bundled {
            Some(bytes) => SafetensorsStore::from_bytes(Some(bytes.to_vec())),
            None => SafetensorsStore::from_file(&self.file),
        }
    }

    fn tensors(&self) -> Result<Vec<(String, DType, Vec<usize>)>, CheckpointError> {
        let mut store = self.open();
        let snapshots = store.get_all_snapshots().map_err(|e| self.unreadable(&e))?;
        Ok(snapshots
            .iter()
            .map(|(name, snapshot)| (name.clone(), snapshot.dtype, snapshot.shape.to_vec()))
            .collect())
    }

    fn read(&self, name: &str) -> Result<TensorData, CheckpointError> {
        let mapping = &mut *self.mapping.borrow_mut();
        if mapping.bytes_read > MAPPING_BUDGET {
            *mapping = Mapping::default();
        }
        let store = mapping.store.get_or_insert_with(|| self.open());
        let snapshot = store
            .get_snapshot(name)
            .map_err(|e| self.unreadable(&e))?
            .ok_or_else(|| self.unreadable(&format!("tensor `{name}` has gone")))?;
        let data = snapshot.to_data().map_err(|e| self.unreadable(&e))?;
        mapping.bytes_read += data.bytes.len();
        Ok(data)
    }

    fn unreadable(&self, reason: &dyn std::fmt::Display) -> CheckpointError {
        CheckpointError::Unreadable {
            file: self.file.clone(),
            reason: reason.to_string(),
        }
    }
}
