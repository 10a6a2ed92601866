//! What can go wrong in training and evaluation.

use std::io;
use std::path::PathBuf;

use burn_align_models::TokensError;

use crate::engine::PlanError;
use crate::front::AlignError;

/// Why interventions could not be trained or evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// Labels for the wrong number of examples or positions.
    #[error("labels: expected {expected}, found {found}")]
    Labels {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Examples with different numbers of sources.
    #[error("example {example}: expected {expected} sources, as the first one has, found {found}")]
    Sources {
        /// Index of the example.
        example: usize,
        /// Number of sources of the first example.
        expected: usize,
        /// Number of sources of this one.
        found: usize,
    },
    /// A label that is not a class of the model.
    #[error("labels: example {example}: expected a class below {classes}, found {found}")]
    UnknownLabel {
        /// Index of the example.
        example: usize,
        /// The label.
        found: u32,
        /// Number of the model's classes: its vocabulary.
        classes: usize,
    },
    /// No examples, or no intervention with parameters.
    #[error("expected {expected}, found none")]
    Nothing {
        /// What is missing.
        expected: &'static str,
    },
    /// An invalid setting.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A loss that is not a finite number.
    #[error(
        "the loss is {loss} at step {step}; lower the learning rate, or clip gradients in \
         TrainingConfig::optimizer"
    )]
    Diverged {
        /// The optimizer's step.
        step: usize,
        /// The loss.
        loss: String,
    },
    /// A checkpoint that could not be written or read. The previous one, if any, is untouched.
    #[error(
        "{}: the checkpoint could not be {doing}: {reason}; the one before it, if any, is \
         untouched, and the run resumes from there when it is started again",
        file.display()
    )]
    CheckpointIo {
        /// The file.
        file: PathBuf,
        /// What was attempted.
        doing: &'static str,
        /// The kind of failure, for example a full disk.
        kind: io::ErrorKind,
        /// The system's message.
        reason: String,
    },
    /// A file that is not a checkpoint of this version, or is incomplete.
    #[error(
        "{}: expected a checkpoint: {reason}; remove it to start over",
        file.display()
    )]
    CheckpointDamaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint of a run with another configuration or other data.
    #[error(
        "{}: the checkpoint belongs to another run: {what}: expected {expected}, found {found}; \
         give each run its own folder, or remove the checkpoint to start over",
        file.display()
    )]
    OtherRun {
        /// The file.
        file: PathBuf,
        /// What differs.
        what: String,
        /// What this run has.
        expected: String,
        /// What the checkpoint has.
        found: String,
    },
    /// Examples that are not valid prompts.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// Inputs that do not fit the model.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// A plan that does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
