//! Where a model comes from, and its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bundled::Bundled;
use super::gguf::architecture::Architecture;
use super::gguf::{Gguf, GgufError, vocabulary};
use super::{CONFIG, ConfigError, LoadError, LoadOptions};
use crate::files::cut_off;
use crate::tokens::TokenizerFiles;

/// Where a model comes from.
///
/// From a string: `bundled:NAME`; a GGUF file, `path/to/model.gguf`; a folder, if one of that name
/// exists; otherwise a hub id, with `#file.gguf` for a GGUF file in that repository.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file, or any part of one that was split.
    Gguf(PathBuf),
    /// A model on the Hugging Face hub, such as `gpt2` or `meta-llama/Llama-2-7b-hf`.
    Hub(String),
    /// A GGUF file in a repository on the Hugging Face hub.
    HubFile {
        /// The repository.
        id: String,
        /// The file's name in it.
        file: String,
    },
    /// A model that ships with this crate.
    Bundled(String),
}

impl From<&str> for ModelSource {
    fn from(text: &str) -> Self {
        if let Some(name) = text.strip_prefix("bundled:") {
            return Self::Bundled(name.to_owned());
        }
        if is_gguf(Path::new(text)) && Path::new(text).is_file() {
            return Self::Gguf(PathBuf::from(text));
        }
        if let Some((id, file)) = text.split_once('#')
            && is_hub_id(id)
            && is_gguf(Path::new(file))
        {
            return Self::HubFile {
                id: id.to_owned(),
                file: file.to_owned(),
            };
        }
        if Path::new(text).is_dir() || !is_hub_id(text) || is_gguf(Path::new(text)) {
            return Self::from(Path::new(text));
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
    fn from(path: &Path) -> Self {
        match is_gguf(path) && !path.is_dir() {
            true => Self::Gguf(path.to_owned()),
            false => Self::Folder(path.to_owned()),
        }
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether the text is `name` or `owner/name`, with the characters that the hub allows.
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

/// Whether a file is a part of a split GGUF file, but not the first one.
fn is_later_part(path: &Path) -> bool {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("");
    let Some((rest, _count)) = stem.rsplit_once("-of-") else {
        return false;
    };
    let number = rest
        .rsplit('-')
        .next()
        .and_then(|number| number.parse::<u32>().ok());
    number.is_some_and(|number| number > 1)
}

/// The files of one model, as found by [`FromPretrained::from_pretrained`](super::FromPretrained).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Repository {
    /// A folder; also used for files from the hub.
    Folder(PathBuf),
    /// A model that ships with this crate.
    Bundled(Bundled),
    /// A GGUF file, with all its parts.
    Gguf(GgufModel),
}

/// An open GGUF file that holds a model.
#[derive(Clone, Debug)]
pub struct GgufModel {
    file: PathBuf,
    gguf: Arc<Gguf>,
}

impl GgufModel {
    /// The weights.
    pub(super) fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The configuration, as a `config.json`.
    fn config(&self) -> Result<String, LoadError> {
        let config =
            Architecture::of(&self.gguf).and_then(|architecture| architecture.config(&self.gguf));
        config
            .map(|config| config.to_string())
            .map_err(|cause| self.error(cause))
    }

    /// The tokenizer's files; `None` if the file has no vocabulary. They are made anew each time,
    /// so that a vocabulary's text is not in memory beside the tokenizer.
    pub(super) fn tokenizer_files(&self) -> Result<Option<TokenizerFiles>, LoadError> {
        let texts = vocabulary(&self.gguf).map_err(|cause| self.error(cause))?;
        let Some(texts) = texts else {
            return Ok(None);
        };
        // A GGUF file has no rules beyond those its tokenizer is built from.
        let files = TokenizerFiles::default()
            .with_deciding_tokenizer(texts.tokenizer_json)
            .with_config(texts.tokenizer_config_json)
            .with_model_config(self.config()?);
        Ok(Some(files))
    }

    fn error(&self, cause: GgufError) -> LoadError {
        LoadError::Gguf {
            file: self.file.clone(),
            cause,
        }
    }
}

impl Repository {
    pub(super) fn open(source: &ModelSource, options: &LoadOptions) -> Result<Self, LoadError> {
        match source {
            ModelSource::Folder(folder) if folder.is_dir() => Self::open_folder(folder, options),
            ModelSource::Folder(folder) => Err(LoadError::NoSuchModel {
                source_text: folder.display().to_string(),
            }),
            ModelSource::Bundled(name) => name.parse().map(Self::Bundled),
            ModelSource::Gguf(file) => Self::open_gguf(file),
            #[cfg(feature = "hub")]
            ModelSource::Hub(id) => match &options.file {
                Some(file) => Self::open_gguf(&super::hub::fetch_file(id, file, options)?),
                None => super::hub::fetch(id, options).map(Self::Folder),
            },
            #[cfg(feature = "hub")]
            ModelSource::HubFile { id, file } => {
                Self::open_gguf(&super::hub::fetch_file(id, file, options)?)
            }
            #[cfg(not(feature = "hub"))]
            ModelSource::Hub(id) | ModelSource::HubFile { id, .. } => {
                Err(LoadError::HubDisabled { id: id.clone() })
            }
        }
    }

    /// Opens a folder in the Hugging Face layout, or one with a GGUF file.
    fn open_folder(folder: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        if let Some(file) = &options.file {
            return Self::open_gguf(&folder.join(file));
        }
        if folder.join(CONFIG).exists() {
            return Ok(Self::Folder(folder.to_owned()));
        }
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| is_gguf(path) && !is_later_part(path))
            .collect();
        files.sort();
        match &files[..] {
            [] => Ok(Self::Folder(folder.to_owned())),
            [file] => Self::open_gguf(file),
            _ => Err(LoadError::SeveralGguf {
                folder: folder.to_owned(),
                files: files
                    .iter()
                    .filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()))
                    .collect(),
            }),
        }
    }

    fn open_gguf(file: &Path) -> Result<Self, LoadError> {
        if !file.is_file() {
            return Err(LoadError::NoSuchModel {
                source_text: file.display().to_string(),
            });
        }
        let gguf = Gguf::open(file).map_err(|cause| LoadError::Gguf {
            file: file.to_owned(),
            cause,
        })?;
        Ok(Self::Gguf(GgufModel {
            file: file.to_owned(),
            gguf: Arc::new(gguf),
        }))
    }

    /// The file's name for messages.
    pub(super) fn describe(&self, file: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(file),
            Self::Bundled(bundled) => PathBuf::from(format!("bundled:{bundled}/{file}")),
            Self::Gguf(model) => model.file.clone(),
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
            Self::Gguf(model) if file == CONFIG => model.config().map(Some),
            Self::Gguf(_) => Ok(None),
        }
    }

    pub(super) fn gguf_error(&self, cause: GgufError) -> LoadError {
        LoadError::Gguf {
            file: self.describe(""),
            cause,
        }
    }

    pub(crate) fn config_error(&self, cause: ConfigError) -> LoadError {
        LoadError::Config {
            file: self.describe(CONFIG),
            cause,
        }
    }
}
