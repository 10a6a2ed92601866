//! What can go wrong with a model on the hub.

use std::io;
use std::path::PathBuf;

/// Why a model or a file could not be had from the hub or from its cache.
#[derive(Debug, thiserror::Error)]
#[error("hub: {id} ({revision}): {problem}")]
#[non_exhaustive]
pub struct HubError {
    /// The hub id.
    pub id: String,
    /// Branch, tag or commit, as it was asked for.
    pub revision: String,
    /// What went wrong.
    pub problem: HubProblem,
}

/// What went wrong with a model on the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// The id, the revision or the file's name can be none.
    #[error("`{found}` cannot be {what}: expected {expected}")]
    BadName {
        /// What it was to be.
        what: &'static str,
        /// The name.
        found: String,
        /// What such a name is like.
        expected: &'static str,
    },
    /// The hub has no such model, or does not show it.
    #[error(
        "{file}: no such model, or a private one: check the name (a local folder of that name is not \
         there); for a private model, give a token that can read it (HF_TOKEN); token: {token}"
    )]
    NoSuchModel {
        /// The file that was asked for.
        file: String,
        /// Where the token is from, or was looked for.
        token: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("{file}: the model has no such branch, tag or commit: see {url}")]
    NoSuchRevision {
        /// The file that was asked for.
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
    /// The owner of the model grants access.
    #[error(
        "{file}: access to this model is restricted: accept its terms at {url} and give your \
         account's token (HF_TOKEN, or `hf auth login`); token: {token}"
    )]
    Gated {
        /// The file that was asked for.
        file: String,
        /// The model's page.
        url: String,
        /// Where the token is from, or was looked for.
        token: String,
    },
    /// The token is not valid, or does not allow to read this model.
    #[error(
        "{file}: access refused ({status}: {message}): give a token that is valid and can read \
         this model (HF_TOKEN); token: {token}"
    )]
    Refused {
        /// The file that was asked for.
        file: String,
        /// Status of the answer.
        status: u16,
        /// What the hub says.
        message: String,
        /// Where the token is from, or was looked for.
        token: String,
    },
    /// Files are not in the cache, and nothing may be asked.
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
        /// What the connection says.
        cause: String,
    },
    /// The hub answers, but not as it should.
    #[error(
        "{file}: unexpected answer from {url}: {reason}; try again later, or check HF_ENDPOINT"
    )]
    BadAnswer {
        /// The file that was asked for.
        file: String,
        /// What was asked.
        url: String,
        /// What the answer was.
        reason: String,
    },
    /// A download ended before the file did.
    #[error(
        "{file}: the download broke off after {received} of {expected} bytes ({cause}): load \
         again to continue it"
    )]
    BrokenOff {
        /// The file.
        file: String,
        /// Bytes that are there.
        received: u64,
        /// The file's size.
        expected: u64,
        /// What the connection says.
        cause: String,
    },
    /// A download is not what the hub has announced; it is not kept.
    #[error("{file}: damaged on the way: expected {expected}, found {found}; load again")]
    Damaged {
        /// The file.
        file: String,
        /// Size or hash, as announced.
        expected: String,
        /// Size or hash of what came.
        found: String,
    },
    /// The cache cannot be written to.
    #[error(
        "{file}: cannot be kept in the cache {}: {cause}; set HF_HUB_CACHE to a folder that can \
         be written to",
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
