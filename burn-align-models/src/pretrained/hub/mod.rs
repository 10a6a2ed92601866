//! Models on the Hugging Face hub, in the cache shared with Python's `huggingface_hub`.
//!
//! A revision is resolved to one commit when loading begins, and every file is from that commit.
//! The last completely loaded commit of a branch stays loadable until all files of the next one are
//! there. Layout, variables and requests are those of `huggingface_hub` 0.36; releases 1 and 2 are
//! compatible.

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
// Without the hub, only `offline` is used.
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
mod variables;

pub use error::{HubError, HubProblem};
#[cfg(feature = "hub")]
pub(super) use files::fetch;
#[cfg(feature = "hub")]
pub use files::fetch_file;

/// Whether the environment forbids contacting the hub.
pub(super) fn offline() -> bool {
    variables::offline(&variables::of_process)
}
