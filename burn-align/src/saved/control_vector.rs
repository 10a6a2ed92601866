//! Directions as a control vector of llama.cpp.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use burn_align_models::files::{Replacement, WriteError};
use burn_align_models::pretrained::gguf::{GgmlType, Gguf, GgufError, GgufTensor};
use burn_align_models::{ModelDims, Site};

/// A vector for each of some layers, which llama.cpp adds to the residual stream at every position:
/// of the prompt and of generated tokens.
///
/// The file is GGUF, with tensors `direction.1`, `direction.2`, … in f32. `direction.N` is added
/// after block N, blocks being counted from 0 as here: at
/// `Site::Block(N, Component::BlockOutput)`. Block 0 has no vector. Use it with `--control-vector
/// FILE` or `--control-vector-scaled FILE:SCALE`. llama.cpp checks the width, but not whether the
/// model has the layers: see [`check`](Self::check).
///
/// ```
/// use burn_align::saved::ControlVector;
///
/// let vector = ControlVector::new("llama", [(4, vec![0.5, -1.0]), (5, vec![0.25, 0.0])])?;
/// let file = std::env::temp_dir().join("burn-align-control-vector.gguf");
/// vector.save(&file)?;
/// assert_eq!(ControlVector::load(&file)?, vector);
/// # std::fs::remove_file(file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ControlVector {
    model_hint: String,
    /// By layer. At least one, and all of one width.
    directions: BTreeMap<usize, Vec<f32>>,
}

/// Why a control vector could not be made, saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlVectorError {
    /// No vectors, or vectors without features.
    #[error("expected a vector with at least one feature for at least one layer, found none")]
    Empty,
    /// A vector for the first block.
    #[error(
        "layer 0: expected layers from 1 on, since llama.cpp adds nothing after its first block \
         and refuses such a file; leave this layer out"
    )]
    LayerZero,
    /// A vector for a block that the model does not have.
    #[error(
        "layer {found}: expected layers below {layers}, the number of the model's blocks; \
         llama.cpp would ignore this one"
    )]
    NoSuchLayer {
        /// The layer.
        found: usize,
        /// Number of the model's blocks.
        layers: usize,
    },
    /// Two vectors for one layer.
    #[error("layer {layer}: expected one vector, found two; add them up first")]
    SameLayer {
        /// The layer.
        layer: usize,
    },
    /// A direction elsewhere than after a block.
    #[error(
        "{found}: expected a direction after a block (block_output), the only place where \
         llama.cpp adds control vectors"
    )]
    WrongSite {
        /// Where the direction is from.
        found: Site,
    },
    /// A vector of another width.
    #[error("layer {layer}: expected {expected} features, found {found}")]
    Width {
        /// The layer.
        layer: usize,
        /// Width of the others, or of the model.
        expected: usize,
        /// Its width.
        found: usize,
    },
    /// A number that is not finite.
    #[error("layer {layer}, feature {feature}: expected a finite number, found {found}")]
    NotFinite {
        /// The layer.
        layer: usize,
        /// Index of the feature.
        feature: usize,
        /// The number.
        found: f32,
    },
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A file that is missing, damaged or not GGUF.
    #[error("{}: {cause}", file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: GgufError,
    },
    /// A GGUF file of something else.
    #[error(
        "{}: expected a control vector (general.architecture `{ARCHITECTURE}`), found `{found}`",
        file.display()
    )]
    Architecture {
        /// The file.
        file: PathBuf,
        /// The architecture, empty if there is none.
        found: String,
    },
    /// A tensor that is not a direction.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

const ARCHITECTURE: &str = "controlvector";
const PREFIX: &str = "direction.";
const ARCHITECTURE_KEY: &str = "general.architecture";
const HINT_KEY: &str = "controlvector.model_hint";
const COUNT_KEY: &str = "controlvector.layer_count";

impl ControlVector {
    /// Vectors by layer, which llama.cpp will add after that block.
    ///
    /// - `model_hint`: llama.cpp's name of the architecture, such as `llama` or `qwen2`; for people
    ///   to read
    ///
    /// # Errors
    /// If there are none, or they differ in width; for layer 0, or several for one layer; if a
    /// number is not finite.
    pub fn new(
        model_hint: impl Into<String>,
        directions: impl IntoIterator<Item = (usize, Vec<f32>)>,
    ) -> Result<Self, ControlVectorError> {
        let mut by_layer = BTreeMap::new();
        let mut width = None;
        for (layer, vector) in directions {
            if layer == 0 {
                return Err(ControlVectorError::LayerZero);
            }
            let found = vector.len();
            let expected = *width.get_or_insert(found);
            if found != expected {
                return Err(ControlVectorError::Width {
                    layer,
                    expected,
                    found,
                });
            }
            if let Some(feature) = vector.iter().position(|value| !value.is_finite()) {
                return Err(ControlVectorError::NotFinite {
                    layer,
                    feature,
                    found: vector[feature],
                });
            }
            match by_layer.entry(layer) {
                Entry::Vacant(entry) => entry.insert(vector),
                Entry::Occupied(_) => return Err(ControlVectorError::SameLayer { layer }),
            };
        }
        if width.is_none_or(|width| width == 0) {
            return Err(ControlVectorError::Empty);
        }
        Ok(Self {
            model_hint: model_hint.into(),
            directions: by_layer,
        })
    }

    /// The architecture of the model that it is for.
    pub fn model_hint(&self) -> &str {
        &self.model_hint
    }

    /// The vectors by layer, each `[d_model]`.
    pub fn directions(&self) -> &BTreeMap<usize, Vec<f32>> {
        &self.directions
    }

    /// Checks that a model has all layers, and is as wide as the vectors.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, dims: &ModelDims) -> Result<(), ControlVectorError> {
        for (layer, vector) in &self.directions {
            if *layer >= dims.layers {
                return Err(ControlVectorError::NoSuchLayer {
                    found: *layer,
                    layers: dims.layers,
                });
            }
            if vector.len() != dims.d_model {
                return Err(ControlVectorError::Width {
                    layer: *layer,
                    expected: dims.d_model,
                    found: vector.len(),
                });
            }
        }
        Ok(())
    }

    /// Writes a GGUF file. The folder is created if it does not exist. An existing file is replaced
    /// once everything is written.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<(), ControlVectorError> {
        let file = file.as_ref();
        let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(OsStr::to_str))
        else {
            return Err(ControlVectorError::Io {
                file: file.to_owned(),
                cause: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "expected a path that ends in a file's name, in UTF-8",
                ),
            });
        };
        let mut files = Replacement::new(folder)?;
        files.write(name, &self.to_gguf())?;
        Ok(files.finish()?)
    }

    /// The bytes of the file.
    pub fn to_gguf(&self) -> Vec<u8> {
        let mut gguf = Writer::default();
        gguf.bytes.extend_from_slice(b"GGUF");
        gguf.u32(VERSION);
        gguf.u64(self.directions.len());
        gguf.u64(3); // metadata keys
        gguf.text_value(ARCHITECTURE_KEY, ARCHITECTURE);
        gguf.text_value(HINT_KEY, &self.model_hint);
        gguf.text(COUNT_KEY);
        gguf.u32(UINT32);
        gguf.u32(self.directions.len() as u32);
        let mut offset = 0;
        for (layer, vector) in &self.directions {
            gguf.text(&format!("{PREFIX}{layer}"));
            gguf.u32(1); // axis
            gguf.u64(vector.len());
            gguf.u32(GgmlType::F32.id());
            gguf.u64(offset);
            offset += (4 * vector.len()).next_multiple_of(ALIGNMENT);
        }
        gguf.pad();
        for vector in self.directions.values() {
            let bytes = vector.iter().flat_map(|value| value.to_le_bytes());
            gguf.bytes.extend(bytes);
            gguf.pad();
        }
        gguf.bytes
    }

    /// Reads a control vector written by [`save`](Self::save), repeng or llama.cpp.
    ///
    /// # Errors
    /// If the file is missing, damaged or something else, or would be refused by llama.cpp.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, ControlVectorError> {
        let file = file.as_ref();
        let in_file = |cause| ControlVectorError::Gguf {
            file: file.to_owned(),
            cause,
        };
        let gguf = Gguf::open(file).map_err(in_file)?;
        let text = |key| gguf.metadata().text(key).map_err(in_file);
        let architecture = text(ARCHITECTURE_KEY)?.unwrap_or_default();
        if architecture != ARCHITECTURE {
            return Err(ControlVectorError::Architecture {
                file: file.to_owned(),
                found: architecture.to_owned(),
            });
        }
        let mut directions = Vec::new();
        for tensor in gguf.tensors() {
            directions.push(read_direction(file, tensor)?);
        }
        Self::new(text(HINT_KEY)?.unwrap_or_default(), directions)
    }
}

impl From<WriteError> for ControlVectorError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

/// The layer and the vector of a tensor.
fn read_direction(
    file: &Path,
    tensor: &GgufTensor,
) -> Result<(usize, Vec<f32>), ControlVectorError> {
    let wrong = |expected, found: String| ControlVectorError::Tensor {
        file: file.to_owned(),
        tensor: tensor.name.clone(),
        expected,
        found,
    };
    let layer = tensor.name.strip_prefix(PREFIX);
    let layer = layer.and_then(|layer| layer.parse::<usize>().ok());
    let layer = layer.ok_or_else(|| wrong("the name `direction.LAYER`", "another".to_owned()))?;
    if tensor.ggml_type != GgmlType::F32 {
        return Err(wrong("F32", tensor.ggml_type.to_string()));
    }
    if tensor.shape.len() != 1 {
        return Err(wrong("a vector", format!("shape {:?}", tensor.shape)));
    }
    let bytes: &[u8] = tensor.bytes.as_ref();
    let (values, _) = bytes.as_chunks::<4>();
    let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Ok((layer, values.collect()))
}

/// The version of the format.
const VERSION: u32 = 3;
/// The default alignment of tensors, in bytes.
const ALIGNMENT: usize = 32;
/// Type numbers of metadata values.
const UINT32: u32 = 4;
const STRING: u32 = 8;

/// Writes the parts of a GGUF file (`docs/gguf.md` in ggml's repository), little-endian.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn u64(&mut self, number: usize) {
        self.bytes.extend_from_slice(&(number as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn text_value(&mut self, key: &str, value: &str) {
        self.text(key);
        self.u32(STRING);
        self.text(value);
    }

    /// Zeros up to the next multiple of the alignment.
    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(padded, 0);
    }
}
