//! Submissions in folders, as the track's evaluation reads them.

mod cell;
mod error;
mod read;
mod submission;
mod write;

pub use cell::{TrackModel, TrackTask, UnknownCell, VariableCell};
pub use error::{LoadSubmissionError, SaveSubmissionError};
pub use submission::{Submission, SubmittedFeatures};

/// What a file of a unit is, by the end of its name.
const INVERSE: &str = "_inverse_featurizer";
const FEATURIZER: &str = "_featurizer";
const INDICES: &str = "_indices";

/// Classes of the track's library.
const IDENTITY: [&str; 2] = [
    "IdentityFeaturizerModule",
    "IdentityInverseFeaturizerModule",
];
const SUBSPACE: [&str; 2] = [
    "SubspaceFeaturizerModule",
    "SubspaceInverseFeaturizerModule",
];

/// The tensors of a subspace: what PyTorch's `parametrizations.orthogonal` trains, and its base.
const STATE: [&str; 2] = [
    "rotate.parametrizations.weight.original",
    "rotate.parametrizations.weight.0.base",
];
