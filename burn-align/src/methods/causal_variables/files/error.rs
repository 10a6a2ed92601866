//! What can go wrong with folders of submissions.

use std::io;
use std::path::PathBuf;

use burn_align_models::files::WriteError;

use crate::engine::PlanError;
use crate::methods::causal_variables::UnknownUnit;
use crate::saved::FileError;

/// Why a submission could not be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveSubmissionError {
    /// A submission without units.
    #[error("expected at least one unit, found none")]
    Nothing,
    /// A unit without a file name.
    #[error(
        "{unit}: expected a position whose name has only letters, digits and `_-.`; it is part of \
         the names of files"
    )]
    Name {
        /// The unit.
        unit: String,
    },
    /// An intervention that the track cannot express.
    #[error("{unit}: expected {expected}, found {found}; {remedy}")]
    Unsupported {
        /// The unit.
        unit: String,
        /// What a submission can have.
        expected: &'static str,
        /// What the intervention has.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Files of another submission that would be read with the new ones.
    #[error(
        "{}: would be read as part of the new submission, whose unit has no such file; remove it",
        file.display()
    )]
    Stale {
        /// The file.
        file: PathBuf,
    },
    /// Numbers that cannot be read from the device.
    #[error("{unit}: {cause}")]
    Device {
        /// The unit.
        unit: String,
        /// The cause.
        cause: Box<PlanError>,
    },
    /// A file could not be written.
    #[error("{}: cannot be written: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

impl From<WriteError> for SaveSubmissionError {
    fn from(WriteError { file, cause }: WriteError) -> Self {
        Self::Io { file, cause }
    }
}

/// Why a submission could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadSubmissionError {
    /// A folder without files of units.
    #[error(
        "{}: expected files of units, such as \
         `ResidualStream(Layer-0,Token-last_token)_featurizer`, found none",
        folder.display()
    )]
    Nothing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file or folder could not be read, or its tensors are others than expected.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name that names no unit.
    #[error("{}: {cause}", file.display())]
    Unit {
        /// The file.
        file: PathBuf,
        /// What is wrong with the name.
        cause: UnknownUnit,
    },
    /// A unit under two names.
    #[error("{}: expected each unit once, found {unit} under two names", folder.display())]
    Repeated {
        /// The folder.
        folder: PathBuf,
        /// The unit.
        unit: String,
    },
    /// One of two files that belong together.
    #[error("{}: expected this file next to the unit's others, found none", file.display())]
    MissingFile {
        /// The file.
        file: PathBuf,
    },
    /// A featurizer that is code.
    #[error(
        "{}: expected a featurizer of the track's library, {expected}, found {found}; classes of a \
         submission are Python code, which is not run here",
        file.display()
    )]
    UnknownClass {
        /// The file.
        file: PathBuf,
        /// The classes that are known.
        expected: &'static str,
        /// The class.
        found: String,
    },
    /// A file whose parts contradict one another, or another file of the unit.
    #[error("{}: expected {expected}, found {found}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Directions that are not orthonormal.
    #[error(
        "{}: expected orthonormal directions, found products that differ by up to {deviation} from \
         0 or 1",
        file.display()
    )]
    NotOrthonormal {
        /// The file.
        file: PathBuf,
        /// `max |WᵀW - I|`; infinite if a number is not finite.
        deviation: f64,
    },
    /// Numbers that cannot be read from the device.
    #[error("{}: {cause}", file.display())]
    Device {
        /// The file.
        file: PathBuf,
        /// The cause.
        cause: Box<PlanError>,
    },
}
