//! Checkpoints that a test may damage.

// Rejections are tested on one backend.
#![cfg_attr(not(feature = "flex"), allow(dead_code))]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoints;

/// A checkpoint in its own folder.
pub(crate) struct Scratch {
    folder: TempDir,
}

/// One tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl RawTensor {
    /// Zeros in f32.
    pub(crate) fn zeros(shape: &[usize]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: vec![0; 4 * shape.iter().product::<usize>()],
        }
    }
}

impl Scratch {
    pub(crate) fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder for temporary files"),
        }
    }

    /// A copy of a fixture, as `save_pretrained` of `transformers` wrote it.
    pub(crate) fn copy(fixture: &str) -> Self {
        let scratch = Self::empty();
        for entry in checkpoints()[fixture].read_dir().expect("the fixture") {
            let entry = entry.expect("the folder can be read");
            if entry.file_name() != "expected.safetensors" {
                fs::copy(entry.path(), scratch.file(entry.file_name())).expect("a copy");
            }
        }
        scratch
    }

    /// A folder with nothing but a fixture's `config.json` with these keys set.
    pub(crate) fn config(fixture: &str, changes: Value) -> Self {
        let scratch = Self::empty();
        let file = checkpoints()[fixture].join("config.json");
        fs::copy(file, scratch.file("config.json")).expect("a copy");
        scratch.set_config(changes);
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).expect("the file can be written");
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("the file can be removed");
    }

    /// Sets keys of `config.json`.
    pub(crate) fn set_config(&self, changes: Value) {
        let json = fs::read_to_string(self.file("config.json")).expect("config.json");
        let mut config: Value = serde_json::from_str(&json).expect("JSON");
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        self.write("config.json", config.to_string());
    }

    /// The tensors of `model.safetensors`.
    pub(crate) fn tensors(&self) -> BTreeMap<String, RawTensor> {
        raw_tensors(&self.file("model.safetensors"))
    }

    /// Changes `model.safetensors`.
    pub(crate) fn edit_tensors(&self, edit: impl FnOnce(&mut BTreeMap<String, RawTensor>)) {
        self.edit_file("model.safetensors", edit);
    }

    /// Changes a safetensors file.
    pub(crate) fn edit_file(
        &self,
        file: &str,
        edit: impl FnOnce(&mut BTreeMap<String, RawTensor>),
    ) {
        let mut tensors = raw_tensors(&self.file(file));
        edit(&mut tensors);
        let views = tensors.iter().map(|(name, tensor)| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data);
            (name, view.expect("as many bytes as the shape says"))
        });
        let bytes = safetensors::serialize(views, None).expect("safetensors");
        self.write(file, bytes);
    }
}

/// The tensors of a safetensors file, as they lie there.
pub(crate) fn raw_tensors(file: &Path) -> BTreeMap<String, RawTensor> {
    let bytes = fs::read(file).expect("the file can be read");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors
        .iter()
        .map(|(name, view)| {
            let tensor = RawTensor {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            (name.to_owned(), tensor)
        })
        .collect()
}
