//! What can go wrong when a direction is trained on texts.

use super::super::DirectionError;
use crate::training::TrainingError;

/// Why a direction could not be trained.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReftR1Error {
    /// A text without a prompt or without a response.
    #[error("{class} text {text}: expected at least one token of its {part}, found none")]
    EmptyText {
        /// Whether it has the concept: `positive` or `negative`.
        class: &'static str,
        /// Index of the text among those of its class.
        text: usize,
        /// `prompt` or `response`.
        part: &'static str,
    },
    /// A setting out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// Activations that no direction can be measured with.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// Training failed, or a text does not fit the model.
    #[error(transparent)]
    Training(#[from] TrainingError),
}
