//! Results of methods in folders: a description in JSON, and tensors in f32.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn_align_models::files::{Replacement, WriteError, cut_off};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::de::DeserializeOwned;

/// Why a result of a method could not be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveResultError {
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A result that would read back as another one, or not at all.
    #[error("the {what} cannot be saved: {reason}")]
    NotReadable {
        /// What was to be saved.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl From<WriteError> for SaveResultError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

/// Why a saved result of a method could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadResultError {
    /// A folder without the description of such a result.
    #[error("{}: no {description}; expected a folder written by {writer}", folder.display())]
    NoResult {
        /// The folder.
        folder: PathBuf,
        /// The file that is missing.
        description: &'static str,
        /// What writes such a folder.
        writer: &'static str,
    },
    /// A folder in which saving was interrupted.
    #[error(
        "{}: saving a {what} here was interrupted, {description} is missing; the new files are \
         complete: remove .part from the names that end with it",
        folder.display()
    )]
    CutOff {
        /// The folder.
        folder: PathBuf,
        /// What was saved.
        what: &'static str,
        /// The file that is missing.
        description: &'static str,
    },
    /// A file could not be read.
    #[error("{}: cannot be read: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A file that is damaged or belongs to something else.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong, what was expected and what was found.
        reason: String,
    },
}

/// A tensor to write: its name, its shape and its values.
pub(super) type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// The files of a kind of result.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResultFiles {
    /// What it is, such as "direction".
    pub(super) what: &'static str,
    /// The function that writes them.
    pub(super) writer: &'static str,
    /// The file with the description.
    pub(super) description: &'static str,
    /// The file with the tensors.
    pub(super) tensors: &'static str,
}

impl ResultFiles {
    /// The error of a result that would not read back.
    pub(super) fn not_readable(&self, reason: String) -> SaveResultError {
        SaveResultError::NotReadable {
            what: self.what,
            reason,
        }
    }

    /// Writes both files into a folder, which is created if it does not exist. Older files are
    /// replaced once everything is written.
    pub(super) fn save(
        &self,
        folder: &Path,
        json: &str,
        tensors: &[NamedTensor],
    ) -> Result<(), SaveResultError> {
        let bytes = tensors.iter().map(|(_, _, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            bytes.collect::<Vec<u8>>()
        });
        let bytes: Vec<Vec<u8>> = bytes.collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view))
        });
        let bytes = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| serialize(views, None))
            .map_err(|error| self.not_readable(error.to_string()))?;
        let mut files = Replacement::new(folder)?;
        files.write(self.tensors, &bytes)?;
        files.write(self.description, format!("{json}\n").as_bytes())?;
        Ok(files.finish()?)
    }

    /// Reads the description of a folder.
    pub(super) fn description<T: DeserializeOwned>(
        &self,
        folder: &Path,
    ) -> Result<T, LoadResultError> {
        let file = folder.join(self.description);
        let json = fs::read(&file).map_err(|cause| {
            let folder = folder.to_owned();
            match cause.kind() {
                io::ErrorKind::NotFound if cut_off(&folder, self.description) => {
                    LoadResultError::CutOff {
                        folder,
                        what: self.what,
                        description: self.description,
                    }
                }
                io::ErrorKind::NotFound => LoadResultError::NoResult {
                    folder,
                    description: self.description,
                    writer: self.writer,
                },
                _ => LoadResultError::Io { file, cause },
            }
        })?;
        let description = serde_json::from_slice(&json);
        description.map_err(|error| {
            let what = self.what;
            self.wrong_description(
                folder,
                format!("expected the description of a {what}: {error}"),
            )
        })
    }

    /// The error of a description that says something else than it should.
    pub(super) fn wrong_description(&self, folder: &Path, reason: String) -> LoadResultError {
        LoadResultError::File {
            file: folder.join(self.description),
            reason,
        }
    }

    /// Reads the tensors of a folder with a function that says what is wrong with them.
    pub(super) fn tensors<T>(
        &self,
        folder: &Path,
        read: impl FnOnce(&SafeTensors<'_>) -> Result<T, String>,
    ) -> Result<T, LoadResultError> {
        let file = folder.join(self.tensors);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(cause) => return Err(LoadResultError::Io { file, cause }),
        };
        SafeTensors::deserialize(&bytes)
            .map_err(|error| format!("expected safetensors: {error}"))
            .and_then(|tensors| read(&tensors))
            .map_err(|reason| LoadResultError::File { file, reason })
    }
}
