//! What can go wrong with a model on the hub.

use std::io;
use std::path::PathBuf;

/// Why a model or a file could not be obtained from the hub or from its cache.
#[derive(Debug, thiserror::Error)]
#[error("hub: {id} ({revision}): {problem}")]
#[non_exhaustive]
pub struct HubError {
    /// The hub id.
    pub id: String,
    /// Branch, tag or commit, as requested.
    pub revision: String,
    /// What went wrong.
    pub problem: HubProblem,
}

/// What went wrong with a model on the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// The id, the revision or the file name is invalid.
    #[error("`{found}` is not {what}: expected {expected}")]
    BadName {
        /// What it should be.
        what: &'static str,
        /// The name.
        found: String,
        /// The form of such a name.
        expected: &'static str,
    },
    /// The hub has no such model, or does not reveal it.
    #[error(
        "{file}: no such model, or a private one: check the name (there is no local folder of \
         that name either); for a private model, give a token that can read it (HF_TOKEN); token: \
         {token}"
    )]
    NoSuchModel {
        /// The requested file.
        file: String,
        /// Where the token came from, or was looked for.
        token: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("{file}: the model has no such branch, tag or commit: see {url}")]
    NoSuchRevision {
        /// The requested file.
        file: String,
        /// Where the model's commits are listed.
        url: String,
    },
    /// The commit has no such file.
    #[error("{file}: no such file: see {url}{hint}")]
    NoSuchFile {
        /// The file.
        file: String,
        /// Where the commit's files are listed.
        url: String,
        /// What else can be done.
        hint: &'static str,
    },
    /// Access requires the consent of the model's owner.
    #[error(
        "{file}: access to this model is restricted: accept its terms at {url} and give your \
         account's token (HF_TOKEN, or `hf auth login`); token: {token}"
    )]
    Gated {
        /// The requested file.
        file: String,
        /// The model's page.
        url: String,
        /// Where the token came from, or was looked for.
        token: String,
    },
    /// The token is invalid, or not allowed to read this model.
    #[error(
        "{file}: access refused ({status}: {message}): give a valid token that can read this \
         model (HF_TOKEN); token: {token}"
    )]
    Refused {
        /// The requested file.
        file: String,
        /// The response's status.
        status: u16,
        /// The hub's message.
        message: String,
        /// Where the token came from, or was looked for.
        token: String,
    },
    /// Files are not in the cache, and the hub must not be contacted.
    #[error(
        "{}: not in the cache, and offline: load once without HF_HUB_OFFLINE, or copy the files \
         to {}",
        files.join(", "),
        folder.display()
    )]
    Offline {
        /// The missing files.
        files: Vec<String>,
        /// The model's folder in the cache.
        folder: PathBuf,
    },
    /// The hub cannot be reached, and files are not in the cache.
    #[error(
        "{}: not in the cache ({}), and the hub cannot be reached: {cause}; check the network, \
         or set HF_ENDPOINT to a mirror",
        files.join(", "),
        folder.display()
    )]
    Unreachable {
        /// The missing files.
        files: Vec<String>,
        /// The model's folder in the cache.
        folder: PathBuf,
        /// The cause.
        cause: String,
    },
    /// An unexpected response from the hub.
    #[error(
        "{file}: unexpected response from {url}: {reason}; try again later, or check HF_ENDPOINT"
    )]
    BadAnswer {
        /// The requested file.
        file: String,
        /// The URL.
        url: String,
        /// What was unexpected.
        reason: String,
    },
    /// A download that ended early.
    #[error(
        "{file}: the download broke off after {received} of {expected} bytes ({cause}): load \
         again to resume it"
    )]
    BrokenOff {
        /// The file.
        file: String,
        /// Bytes received so far.
        received: u64,
        /// The file's size.
        expected: u64,
        /// The cause.
        cause: String,
    },
    /// A download that does not match what the hub announced; it is not kept.
    #[error("{file}: damaged in transit: expected {expected}, found {found}; load again")]
    Damaged {
        /// The file.
        file: String,
        /// Size or hash, as announced.
        expected: String,
        /// Size or hash of the download.
        found: String,
    },
    /// The cache is not writable.
    #[error(
        "{file}: cannot be stored in the cache {}: {cause}; set HF_HUB_CACHE to a writable folder",
        folder.display()
    )]
    Io {
        /// The file.
        file: String,
        /// The model's folder in the cache.
        folder: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}
