use crate::engine::PlanError;
use crate::front::AlignError;

/// Why interventions could not be trained or judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// Labels for another number of examples, or of another number of positions.
    #[error("labels: expected {expected}, found {found}")]
    Labels {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A label that is no class of the model.
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
    /// A setting that makes no sense.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A loss that is no number.
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
    /// Inputs that do not fit the model.
    #[error(transparent)]
    Align(#[from] AlignError),
    /// A plan that does not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
