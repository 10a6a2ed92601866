//! Where a model comes from, and the files that belong to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::bundled::Bundled;
use super::{CONFIG, ConfigError, LoadError, LoadOptions};
use crate::files::cut_off;

/// Where a model comes from.
///
/// From text: `bundled:NAME`, else a folder if there is one of that name, else a hub id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// A model on the Hugging Face hub, such as `gpt2` or `meta-llama/Llama-2-7b-hf`.
    Hub(String),
    /// A model that is part of this crate.
    Bundled(String),
}

impl From<&str> for ModelSource {
    fn from(text: &str) -> Self {
        if let Some(name) = text.strip_prefix("bundled:") {
            return Self::Bundled(name.to_owned());
        }
        if Path::new(text).is_dir() || !is_hub_id(text) {
            return Self::Folder(PathBuf::from(text));
        }
        Self::Hub(text.to_owned())
    }
}

impl From<String> for ModelSource {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Path> for ModelSource {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

/// `name` or `owner/name`, of the characters that the hub allows.
fn is_hub_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() <= 2
        && parts.iter().all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        })
}

/// The files of one model: what [`FromPretrained::from_pretrained`](super::FromPretrained) has found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Repository {
    /// A folder; files from the hub are in one, too.
    Folder(PathBuf),
    /// Part of this crate.
    Bundled(Bundled),
}

impl Repository {
    pub(super) fn open(source: &ModelSource, options: &LoadOptions) -> Result<Self, LoadError> {
        match source {
            ModelSource::Folder(folder) if folder.is_dir() => Ok(Self::Folder(folder.clone())),
            ModelSource::Folder(folder) => Err(LoadError::NoSuchModel {
                source_text: folder.display().to_string(),
            }),
            ModelSource::Bundled(name) => name.parse().map(Self::Bundled),
            #[cfg(feature = "hub")]
            ModelSource::Hub(id) => super::hub::fetch(id, options).map(Self::Folder),
            #[cfg(not(feature = "hub"))]
            ModelSource::Hub(id) => {
                let _ = options;
                Err(LoadError::HubDisabled { id: id.clone() })
            }
        }
    }

    /// The file's name for messages.
    pub(super) fn describe(&self, file: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(file),
            Self::Bundled(bundled) => PathBuf::from(format!("bundled:{bundled}/{file}")),
        }
    }

    pub(super) fn config(&self) -> Result<String, LoadError> {
        let config = self.optional_text(CONFIG)?;
        config.ok_or_else(|| match self {
            Self::Folder(folder) if cut_off(folder, CONFIG) => LoadError::CutOff {
                folder: folder.clone(),
            },
            _ => LoadError::NoConfig {
                folder: self.describe(""),
            },
        })
    }

    pub(super) fn optional_text(&self, file: &str) -> Result<Option<String>, LoadError> {
        match self {
            Self::Folder(folder) => match fs::read_to_string(folder.join(file)) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(cause) => Err(LoadError::Io {
                    file: folder.join(file),
                    cause,
                }),
            },
            Self::Bundled(bundled) => Ok(bundled.text(file).map(str::to_owned)),
        }
    }

    pub(crate) fn config_error(&self, cause: ConfigError) -> LoadError {
        LoadError::Config {
            file: self.describe(CONFIG),
            cause,
        }
    }
}
