//! Models on the Hugging Face hub, in the cache that Python's `huggingface_hub` uses, too.
//!
//! A revision is resolved to one commit when loading begins, and every file is of that commit. What
//! a branch was when it was last loaded completely stays loadable until all files of its next commit
//! are there. Layout, variables and requests are those of `huggingface_hub` 0.36, whose releases 1
//! and 2 read and write the same.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod download;
mod error;
#[cfg(feature = "hub")]
mod files;
#[cfg(feature = "hub")]
mod pinned;
#[cfg(feature = "hub")]
mod remote;
#[cfg(all(test, feature = "hub"))]
mod tests;
// Without the hub, only `offline` is asked for.
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
mod variables;

pub use error::{HubError, HubProblem};
#[cfg(feature = "hub")]
pub(super) use files::fetch;
#[cfg(feature = "hub")]
pub use files::fetch_file;

/// Whether the environment says that the hub is not to be asked.
pub(super) fn offline() -> bool {
    variables::offline(&variables::of_process)
}
