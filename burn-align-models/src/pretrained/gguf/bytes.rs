//! Bytes that remain in the file.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use mmap_io::{MemoryMappedFile, MmapAdvice, MmapIoError};

use super::GgufError;

/// A part of a mapped file: cheap to clone and to send to other threads. The file stays mapped as
/// long as any of them exists.
///
/// As with all mapped files, truncating the file meanwhile kills the process that reads it.
#[derive(Clone)]
pub struct TensorBytes {
    source: Arc<dyn Source>,
    range: Range<usize>,
}

/// What holds bytes.
trait Source: AsRef<[u8]> + Send + Sync {
    /// See [`TensorBytes::release`].
    fn release(&self, _range: Range<usize>) {}
}

impl TensorBytes {
    /// Maps a file.
    pub(super) fn map(file: &Path) -> Result<Self, GgufError> {
        let io = |cause| GgufError::Io { cause };
        // A folder cannot be mapped; the system's own error for that is misleading.
        if fs::metadata(file).map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let mapped = MemoryMappedFile::open_ro(file).map_err(|error| match error {
            MmapIoError::Io(cause) => io(cause),
            other => io(std::io::Error::other(other.to_string())),
        })?;
        Ok(Self::new(Mapped(mapped)))
    }

    /// From something that owns bytes.
    fn new(source: impl Source + 'static) -> Self {
        let range = 0..source.as_ref().len();
        Self {
            source: Arc::new(source),
            range,
        }
    }

    /// Tells the system that this process is done with these bytes for now: where they are in a
    /// mapped file, they stop taking memory of the process. They are read again when they are used.
    pub(in crate::pretrained) fn release(&self) {
        self.source.release(self.range.clone());
    }

    /// A part of these bytes, which must be in range.
    pub(super) fn slice(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end).then(|| Self {
            source: self.source.clone(),
            range: start..end,
        })
    }
}

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        let all: &[u8] = self.source.as_ref().as_ref();
        &all[self.range.clone()]
    }
}

impl From<Vec<u8>> for TensorBytes {
    /// From bytes in memory.
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for TensorBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorBytes")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

struct Mapped(MemoryMappedFile);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // A read-only mapping of the whole file never fails here.
        self.0.as_slice_bytes(0, self.0.len()).unwrap_or_default()
    }
}

impl Source for Mapped {
    fn release(&self, range: Range<usize>) {
        let [start, length] = [range.start, range.len()].map(|bytes| bytes as u64);
        // Only a hint: without it, the bytes take memory as long as the file is mapped.
        let _ = self.0.advise(start, length, MmapAdvice::DontNeed);
    }
}

impl Source for Vec<u8> {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::TensorBytes;

    /// KiB of a mapped file that are in memory, as the kernel counts them.
    fn resident_kib(file: &Path) -> usize {
        let file = file.to_str().expect("a name of letters");
        let maps = fs::read_to_string("/proc/self/smaps").expect("Linux has it");
        let own = maps.lines().skip_while(|line| !line.ends_with(file));
        let resident = own.clone().find_map(|line| line.strip_prefix("Rss:"));
        let resident = resident.expect("the file is mapped").trim();
        let number = resident.strip_suffix(" kB").expect("in KiB");
        number.parse().expect("a number")
    }

    #[test]
    fn released_bytes_take_no_memory_until_they_are_read_again() {
        let name = format!("burn-align-released-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        let written: Vec<u8> = (0..4_usize << 20)
            .map(|index| (index % 251) as u8)
            .collect();
        fs::write(&file, &written).expect("there is room");
        let mapped = TensorBytes::map(&file).expect("just written");
        let half = mapped.slice(0..2 << 20).expect("in range");

        assert_eq!(mapped.as_ref(), written);
        assert!(resident_kib(&file) > 3 << 10);
        half.release();
        assert!(resident_kib(&file) <= 2 << 10);
        assert_eq!(half.as_ref(), &written[..2 << 20]);
        assert!(resident_kib(&file) > 2 << 10);
        fs::remove_file(&file).expect("still there");
    }
}
