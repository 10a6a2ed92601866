//! One safetensors file: its header, and its tensors, read one at a time.
//!
//! A tensor is read straight from its place in the file into its final memory. Nothing is mapped,
//! so pages that have been read do not add up to a second copy of the weights.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::CheckpointError;

/// Where the bytes of a safetensors file come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bytes {
    /// A file on disk, opened again for each tensor.
    OnDisk,
    /// Bytes in this program.
    Bundled(&'static [u8]),
}

/// A safetensors file whose header has been read.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    pub(super) path: PathBuf,
    bytes: Bytes,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

/// Maximum header length, as in the `safetensors` crate.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH: u64 = 8;

impl SafetensorsFile {
    /// Reads the header.
    pub(super) fn open(path: PathBuf, bytes: Bytes) -> Result<Self, CheckpointError> {
        let unreadable = |reason: String| CheckpointError::Unreadable {
            file: path.clone(),
            reason,
        };
        let io = |error: io::Error| unreadable(error.to_string());
        let length = match bytes {
            Bytes::OnDisk => File::open(&path)
                .and_then(|file| file.metadata())
                .map_err(io)?
                .len(),
            Bytes::Bundled(bytes) => bytes.len() as u64,
        };
        let too_short = || unreadable(format!("{length} bytes are too few for its header"));
        if length < LENGTH {
            return Err(too_short());
        }
        let prefix = read_at(&path, bytes, 0, LENGTH as usize).map_err(io)?;
        let header_length =
            u64::from_le_bytes(prefix.try_into().expect("the requested number of bytes"));
        if header_length > MAX_HEADER || header_length > length - LENGTH {
            return Err(too_short());
        }
        let header = read_at(&path, bytes, LENGTH, header_length as usize).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| unreadable(format!("its header: {error}")))?;
        let start = LENGTH + header_length;
        let end = start + header.data_len() as u64;
        if end != length {
            return Err(unreadable(format!(
                "expected {end} bytes according to its header, found {length}: it may have been \
                 cut off"
            )));
        }
        Ok(Self {
            path,
            bytes,
            header,
            start,
        })
    }

    /// The names of the tensors, with their header entries.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.header.tensors().into_iter()
    }

    /// The bytes of one tensor.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let unreadable = |reason: String| CheckpointError::Unreadable {
            file: self.path.clone(),
            reason,
        };
        let info = self.header.info(name);
        let info = info.ok_or_else(|| unreadable(format!("tensor `{name}` is missing")))?;
        let (from, to) = info.data_offsets;
        read_at(&self.path, self.bytes, self.start + from as u64, to - from)
            .map_err(|error| unreadable(error.to_string()))
    }
}

fn read_at(path: &Path, bytes: Bytes, from: u64, length: usize) -> io::Result<Vec<u8>> {
    match bytes {
        Bytes::OnDisk => {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut read = vec![0; length];
            file.read_exact(&mut read)?;
            Ok(read)
        }
        Bytes::Bundled(bytes) => {
            let from = from as usize;
            Ok(bytes[from..from + length].to_vec())
        }
    }
}

/// A dtype's name in errors, as in the header.
pub(super) fn dtype_name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}
