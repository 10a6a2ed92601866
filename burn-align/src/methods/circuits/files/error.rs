//! What can go wrong with files of circuits.

use std::io;
use std::path::PathBuf;

use burn_align_models::files::WriteError;

/// Why a circuit could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CircuitFileError {
    /// A file that cannot be read or written.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// What is wrong in a file.
    #[error("{}: {cause}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: Box<CircuitFileError>,
    },
    /// Text that is no JSON.
    #[error("expected a circuit as JSON: {reason}")]
    Json {
        /// What is expected, and where.
        reason: String,
    },
    /// JSON that is no circuit.
    #[error("{place}: expected {expected}, found {found}")]
    Content {
        /// The keys of the value.
        place: String,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A cell that MIB does not have.
    #[error(
        "{cell}: expected a task and a model that MIB combines; see the table of its circuit \
         localisation track"
    )]
    NoSuchCell {
        /// Name of the folder.
        cell: String,
    },
    /// A submission that MIB does not accept.
    #[error("a submission to MIB: expected {expected}, found {found}")]
    Submission {
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
}

impl From<WriteError> for CircuitFileError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}
