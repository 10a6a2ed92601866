//! How much memory a workload takes.

use std::fs;

use workbench::BackendChoice;

/// What a [`Peak`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The process's resident memory.
    Resident,
    /// What the backend's allocator holds of the device's memory.
    Pool,
}

impl Kind {
    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Pool => "pool",
        }
    }
}

/// The most memory that was held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    pub(crate) kind: Kind,
    pub(crate) mib: u64,
}

/// Starts a new measurement of the peak, and tells the MiB of resident memory that the process has
/// before it, with the model; `None` if they are not known. The peak stays that since the process
/// began if the system does not allow another one.
pub(crate) fn begin_peak() -> Option<u64> {
    // Linux, `man proc_pid_clear_refs`: 5 resets the peak to the current size.
    let _ = fs::write("/proc/self/clear_refs", "5");
    status_mib("VmRSS:")
}

/// The peak on a backend: of its allocator, which keeps its memory until it is told to free it, or
/// else of the process. `None` if neither is known.
pub(crate) fn peak(backend: BackendChoice) -> Option<Peak> {
    if let Some(bytes) = backend.held_memory() {
        return Some(Peak {
            kind: Kind::Pool,
            mib: bytes >> 20,
        });
    }
    Some(Peak {
        kind: Kind::Resident,
        mib: status_mib("VmHWM:")?,
    })
}

/// A size in `/proc/self/status`.
fn status_mib(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib >> 10)
}
