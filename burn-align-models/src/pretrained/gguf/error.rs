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
        /// What is there.
        found: String,
    },
    /// A version of the format that is not read.
    #[error(
        "GGUF version {found}: expected 2 or 3; convert the model again with llama.cpp's \
         convert_hf_to_gguf.py"
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// A file for machines that store the high byte first.
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
        /// Where in the file, in bytes.
        at: usize,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that are left.
        found: u64,
    },
    /// Something that no GGUF file says.
    #[error("damaged: {what}: expected {expected}, found {found}; fetch the file again")]
    Damaged {
        /// What was read.
        what: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A metadata key that stands in the file twice.
    #[error("metadata key `{key}`: expected once, found twice; the file is damaged")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// An array of arrays, which llama.cpp does not read either.
    #[error("metadata key `{key}`: expected an array of plain values, found an array of arrays")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A metadata key that is needed and absent.
    #[error("metadata key `{key}` is missing; convert the model again with a newer llama.cpp")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of the wrong kind or out of range.
    #[error("metadata key `{key}`: expected {expected}, found {found}")]
    WrongValue {
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// The value.
        found: String,
    },
    /// A tensor of a type that has no number in ggml, or no longer.
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
    /// Two tensors of one name.
    #[error("tensor `{tensor}`: expected once, found twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A vocabulary that no tokenizer is made of.
    #[error(
        "metadata key `{key}`: expected {expected}, found `{found}`; load the folder that the file \
         was converted from, with its tokenizer.json"
    )]
    UnsupportedVocabulary {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is known.
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
    /// A file that is one of several parts, by another name.
    #[error(
        "one of {count} parts: expected a name such as {expected}, found {found}; name the parts \
         as they were published"
    )]
    PartName {
        /// Number of parts.
        count: usize,
        /// The form of the name.
        expected: String,
        /// The name.
        found: String,
    },
    /// A tensor that is not what the model of this architecture has under its name.
    #[error("tensor `{tensor}`: expected {expected}, found {found}")]
    WrongTensor {
        /// Its name.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Another part than the first that was opened cannot be used.
    #[error("part {}: {cause}", file.display())]
    Part {
        /// The part.
        file: PathBuf,
        /// What is wrong with it.
        cause: Box<GgufError>,
    },
}

impl GgufError {
    /// A count, a size or an offset that cannot be.
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
