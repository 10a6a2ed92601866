//! The tensors of a checkpoint, and which file each is read from.
//!
//! If there is an index, it decides: a file may hold superseded copies of tensors that the index
//! maps to another file. Without an index, a name that occurs twice is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use burn::tensor::{Bytes as TensorBytes, DType, Shape, TensorData};
use safetensors::tensor::Dtype;
use serde::Deserialize;

use super::gguf::Gguf;
use super::gguf_weights::GgufWeight;
use super::note::LoadNote;
use super::repository::Repository;
use super::safetensors_file::{Bytes, SafetensorsFile, dtype_name};
use super::{CheckpointError, LoadError};
use crate::quants::QuantizedMatrix;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, in one file or several.
pub(super) struct Checkpoint {
    files: Vec<SafetensorsFile>,
    /// Every tensor by name.
    pub(super) tensors: BTreeMap<String, Stored>,
    /// Notes on what was ignored.
    pub(super) notes: Vec<LoadNote>,
}

/// What is known of a tensor without reading it.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    /// `None` if it is of a type that parameters can't have.
    pub(super) dtype: Option<DType>,
    pub(super) dtype_name: String,
    pub(super) bytes: usize,
    place: Place,
}

/// Where a tensor is.
enum Place {
    /// In a safetensors file, by its number.
    File(usize),
    /// In a GGUF file.
    Gguf(GgufWeight),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    pub(super) fn open(repository: &Repository) -> Result<Self, LoadError> {
        let mut checkpoint = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            notes: Vec::new(),
        };
        match repository {
            Repository::Bundled(bundled) => {
                let path = repository.describe(SINGLE);
                checkpoint.add_whole(path, Bytes::Bundled(bundled.weights()))?;
            }
            Repository::Folder(folder) => {
                let single = folder.join(SINGLE);
                if single.is_file() {
                    checkpoint.add_whole(single, Bytes::OnDisk)?;
                } else if let Some(json) = repository.optional_text(INDEX)? {
                    checkpoint.add_indexed(folder, &json)?;
                } else {
                    for shard in numbered_shards(folder)? {
                        checkpoint.add_whole(shard, Bytes::OnDisk)?;
                    }
                }
            }
            Repository::Gguf(model) => checkpoint.add_gguf(repository, model.gguf())?,
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of a GGUF file under their Hugging Face names.
    fn add_gguf(&mut self, repository: &Repository, gguf: &Gguf) -> Result<(), LoadError> {
        let weights = GgufWeight::all(gguf).map_err(|cause| repository.gguf_error(cause))?;
        for (name, weight) in weights {
            let stored = Stored {
                shape: weight.shape(),
                dtype: weight.is_readable().then_some(DType::F32),
                dtype_name: weight.type_name().to_owned(),
                bytes: weight.bytes(),
                place: Place::Gguf(weight),
            };
            if self.tensors.insert(name.clone(), stored).is_some() {
                let tensors = [name.clone(), name];
                return Err(CheckpointError::SameParameter { tensors }.into());
            }
        }
        Ok(())
    }

    /// Adds all tensors of a file.
    fn add_whole(&mut self, path: PathBuf, bytes: Bytes) -> Result<(), CheckpointError> {
        let file = SafetensorsFile::open(path, bytes)?;
        let names: Vec<String> = file.tensors().map(|(name, _)| name).collect();
        if let Some(name) = names.iter().find(|name| self.tensors.contains_key(*name)) {
            let first = match self.tensors[name].place {
                Place::File(first) => self.files[first].path.clone(),
                Place::Gguf(_) => file.path.clone(),
            };
            return Err(CheckpointError::StoredTwice {
                tensor: name.clone(),
                files: vec![first, file.path],
            });
        }
        self.add(file, |_| true);
        Ok(())
    }

    /// Adds the files that an index names, each with the tensors that the index maps to it.
    fn add_indexed(&mut self, folder: &Path, json: &str) -> Result<(), CheckpointError> {
        let index = folder.join(INDEX);
        let map = weight_map(&index, json)?;
        let mut passed_over = Vec::new();
        for name in map.values().collect::<BTreeSet<_>>() {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(CheckpointError::MissingShard { file: path });
            }
            let file = SafetensorsFile::open(path, Bytes::OnDisk)?;
            self.add(file, |tensor| {
                let wanted = map.get(tensor) == Some(name);
                if !wanted {
                    passed_over.push(format!("{tensor} ({name})"));
                }
                wanted
            });
        }
        if let Some((tensor, file)) = map
            .iter()
            .find(|(name, _)| !self.tensors.contains_key(*name))
        {
            return Err(CheckpointError::BadIndex {
                file: index,
                reason: format!("it maps tensor `{tensor}` to {file}, which does not contain it"),
            });
        }
        if !passed_over.is_empty() {
            passed_over.sort();
            let tensors = passed_over;
            self.notes.push(LoadNote::NotInIndex { tensors });
        }
        Ok(())
    }

    fn add(&mut self, file: SafetensorsFile, mut wanted: impl FnMut(&str) -> bool) {
        let number = self.files.len();
        for (name, info) in file.tensors() {
            if wanted(&name) {
                let (from, to) = info.data_offsets;
                let stored = Stored {
                    shape: info.shape.clone(),
                    dtype: float(info.dtype),
                    dtype_name: dtype_name(info.dtype),
                    bytes: to - from,
                    place: Place::File(number),
                };
                self.tensors.insert(name, stored);
            }
        }
        self.files.push(file);
    }

    /// Reads one tensor of floats.
    pub(super) fn read(&self, name: &str) -> Result<TensorData, CheckpointError> {
        let stored = &self.tensors[name];
        let dtype = stored.dtype.ok_or_else(|| CheckpointError::WrongDType {
            tensor: name.to_owned(),
            found: stored.dtype_name.clone(),
        })?;
        let file = match &stored.place {
            Place::File(file) => &self.files[*file],
            Place::Gguf(weight) => {
                let numbers = weight.read();
                weight.release();
                return Ok(TensorData::new(numbers, stored.shape.clone()));
            }
        };
        let bytes = file.read(name)?;
        Ok(TensorData {
            bytes: TensorBytes::from_bytes_vec(bytes),
            shape: Shape::from(stored.shape.clone()),
            dtype,
        })
    }

    /// A matrix in its stored form, if that is in blocks.
    pub(super) fn quantized(&self, name: &str) -> Option<QuantizedMatrix> {
        match &self.tensors[name].place {
            Place::File(_) => None,
            Place::Gguf(weight) => weight.matrix(),
        }
    }

    /// Tells the system that the bytes of a mapped file that a matrix was made from are not needed
    /// for now: it may have its own.
    pub(super) fn release(&self, name: &str) {
        if let Place::Gguf(weight) = &self.tensors[name].place {
            weight.release();
        }
    }

    /// Whether two tensors hold the same numbers.
    pub(super) fn equal(&self, one: &str, other: &str) -> Result<bool, CheckpointError> {
        let [a, b] = [one, other].map(|name| &self.tensors[name]);
        if a.shape != b.shape {
            return Ok(false);
        }
        let (one, other) = (self.read(one)?, self.read(other)?);
        if a.dtype == b.dtype && one.bytes[..] == other.bytes[..] {
            return Ok(true);
        }
        Ok(one.iter::<f64>().eq(other.iter::<f64>()))
    }
}

/// The dtype, if parameters can have it.
fn float(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return None,
    })
}

/// All files `model-00001-of-0000N.safetensors` of a folder without an index.
fn numbered_shards(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let names = folder.read_dir().into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let counts: BTreeSet<usize> = names.filter_map(|name| count_of_shards(&name)).collect();
    let Some(count) = counts.first() else {
        return Err(CheckpointError::NoWeights {
            folder: folder.to_owned(),
        });
    };
    let shards = (1..=*count).map(|number| {
        let file = folder.join(format!("model-{number:05}-of-{count:05}.safetensors"));
        match file.is_file() {
            true => Ok(file),
            false => Err(CheckpointError::MissingShard { file }),
        }
    });
    shards.collect()
}

/// N of `model-00001-of-0000N.safetensors`.
fn count_of_shards(name: &str) -> Option<usize> {
    let name = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
    let (number, count) = name.split_once("-of-")?;
    number.parse::<usize>().ok()?;
    count.parse().ok()
}

/// The file of each tensor according to an index; no file is outside the index's folder.
fn weight_map(file: &Path, json: &str) -> Result<BTreeMap<String, String>, CheckpointError> {
    let bad = |reason| CheckpointError::BadIndex {
        file: file.to_owned(),
        reason,
    };
    let index: Index =
        serde_json::from_str(json).map_err(|error| bad(format!("not an index: {error}")))?;
    for name in index.weight_map.values() {
        let mut components = Path::new(name).components();
        if !matches!(
            (components.next(), components.next()),
            (Some(Component::Normal(_)), None)
        ) {
            return Err(bad(format!("expected a file name, found `{name}`")));
        }
    }
    Ok(index.weight_map)
}

/// The names of the files in an index of shards.
#[cfg(feature = "hub")]
pub(super) fn shard_names(file: &Path, json: &str) -> Result<BTreeSet<String>, CheckpointError> {
    Ok(weight_map(file, json)?.into_values().collect())
}
