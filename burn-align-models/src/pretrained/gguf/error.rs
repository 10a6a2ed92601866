//! What can be wrong with a GGUF file.

use std::io;
use std::path::PathBuf;

/// What is wrong with a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("cannot be read: {cause}")]
    Io {
        /// The cause.
        cause: io::Error,
    },
    /// Another kind of file.
    #[error("not a GGUF file: expected the bytes `GGUF` at its start, found {found}")]
    NotGguf {
        /// What was found.
        found: String,
    },
    /// An unsupported version of the format.
    #[error(
        "GGUF version {found}: expected 2 or 3; convert the model again with llama.cpp's \
         convert_hf_to_gguf.py"
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// A big-endian file.
    #[error(
        "a big-endian GGUF file: expected little-endian; convert the model again with \
         convert_hf_to_gguf.py, without --bigendian"
    )]
    BigEndian,
    /// The file ends too early.
    #[error(
        "cut off: expected {expected} bytes at byte {at} for {what}, found {found}; fetch the file \
         again"
    )]
    CutOff {
        /// What was to be read.
        what: &'static str,
        /// The offset in the file, in bytes.
        at: usize,
        /// Bytes needed.
        expected: u64,
        /// Bytes left.
        found: u64,
    },
    /// Contents that are not valid in a GGUF file.
    #[error("damaged: {what}: expected {expected}, found {found}; fetch the file again")]
    Damaged {
        /// What was read.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A metadata key that occurs twice.
    #[error("metadata key `{key}`: expected once, found twice; the file is damaged")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// An array of arrays, which llama.cpp does not support either.
    #[error("metadata key `{key}`: expected an array of plain values, found an array of arrays")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A required metadata key that is absent.
    #[error("metadata key `{key}` is missing; convert the model again with a newer llama.cpp")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of the wrong type or out of range.
    #[error("metadata key `{key}`: expected {expected}, found {found}")]
    WrongValue {
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// The value.
        found: String,
    },
    /// A tensor of a type that ggml does not have, or no longer has.
    #[error(
        "tensor `{tensor}`: expected a storage type of ggml, found {found}; quantise the model \
         again, to Q4_K_M or Q8_0 for example"
    )]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The type, by name if ggml ever had it, or by number.
        found: String,
    },
    /// Two tensors with the same name.
    #[error("tensor `{tensor}`: expected once, found twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A vocabulary that no tokenizer can be built from.
    #[error(
        "metadata key `{key}`: expected {expected}, found `{found}`; load the folder that the file \
         was converted from, with its tokenizer.json"
    )]
    UnsupportedVocabulary {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
    /// One of several parts is absent.
    #[error("part {} is missing: expected all {count} parts in one folder", file.display())]
    MissingPart {
        /// The part.
        file: PathBuf,
        /// Number of parts.
        count: usize,
    },
    /// One of several parts, with an unexpected name.
    #[error(
        "one of {count} parts: expected a name such as {expected}, found {found}; give the parts \
         their published names"
    )]
    PartName {
        /// Number of parts.
        count: usize,
        /// The form of the name.
        expected: String,
        /// The name.
        found: String,
    },
    /// A tensor that does not fit the model of this architecture.
    #[error("tensor `{tensor}`: expected {expected}, found {found}")]
    WrongTensor {
        /// Its name.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A part other than the one that was opened cannot be used.
    #[error("part {}: {cause}", file.display())]
    Part {
        /// The part.
        file: PathBuf,
        /// What is wrong with it.
        cause: Box<GgufError>,
    },
}

impl GgufError {
    /// The error for an impossible count, size or offset.
    pub(super) fn damaged(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Damaged {
            what: what.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}
