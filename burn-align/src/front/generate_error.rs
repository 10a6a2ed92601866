//! Why a text could not be generated under the interventions of a configuration.

use super::AlignError;
use crate::engine::PlanError;
use crate::generate::GenerateError;

/// Why a text could not be generated under the interventions of a configuration. Detected before
/// anything is computed, except for what sampling and the device report.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AlignGenerateError {
    /// The inputs do not fit together or do not fit the model.
    #[error(transparent)]
    Align(AlignError),
    /// The options are wrong, or generation fails.
    #[error(transparent)]
    Generate(GenerateError),
    /// A step that is never computed.
    #[error(
        "expected a step below {steps}: of {} new tokens the last one is chosen and not computed; \
         found {found}",
        *steps + 1
    )]
    NoSuchStep {
        /// The step.
        found: usize,
        /// Number of steps.
        steps: usize,
    },
    /// A location of the base that a step does not have.
    #[error(
        "unit locations of representation {representation}: a step has one position, that of the \
         new token; expected position 0 of the base, or no locations, found {found}"
    )]
    StepLocation {
        /// Index of the representation.
        representation: usize,
        /// The positions of an example.
        found: String,
    },
    /// A source that gives a step more than one unit.
    #[error(
        "representation {representation}: a step takes one unit of the source for each example, \
         found {found}; name one position of the source, or give a constant of one unit"
    )]
    StepSource {
        /// Index of the representation.
        representation: usize,
        /// Number of units.
        found: usize,
    },
    /// Activations to collect at steps before a later intervention changes them.
    #[error(
        "representation {representation} cannot be collected at steps before representation \
         {later} changes it at the same site; list it after that one"
    )]
    CollectedBeforeChange {
        /// Index of the representation that is collected.
        representation: usize,
        /// Index of the one that changes it.
        later: usize,
    },
}

impl From<AlignError> for AlignGenerateError {
    fn from(error: AlignError) -> Self {
        Self::Align(error)
    }
}

impl From<PlanError> for AlignGenerateError {
    fn from(error: PlanError) -> Self {
        Self::Align(error.into())
    }
}

impl From<GenerateError> for AlignGenerateError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Plan(error) => error.into(),
            error => Self::Generate(error),
        }
    }
}
