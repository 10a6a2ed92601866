//! What can go wrong when a dictionary is trained.

use burn_align_models::{Site, TokensError};

use crate::dictionaries::DictionaryError;
use crate::engine::PlanError;
use crate::training::TrainingError;

/// Why a dictionary could not be trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryTrainingError {
    /// A setting that is out of range, or does not go with the others.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Fewer activations than a training step needs.
    #[error(
        "the text has {found} tokens to train on, after the first {skipped} of each example are \
         left out: expected at least {expected}; give more text, longer examples, or a smaller \
         batch"
    )]
    TooFewTokens {
        /// What was expected: the tokens of a batch.
        expected: usize,
        /// What was found.
        found: usize,
        /// The positions at the beginning of each example that are left out.
        skipped: usize,
    },
    /// A site whose activation is no vector.
    #[error(
        "site {site}: expected an activation that is a vector, found attention scores or weights, \
         which have a number for each key position"
    )]
    NoVector {
        /// The site.
        site: Site,
    },
    /// Activations of another width than the dictionary reads.
    #[error(
        "activations: expected {expected} features, the width of the dictionary, found {found}"
    )]
    Width {
        /// The width of the dictionary.
        expected: usize,
        /// What was found.
        found: usize,
    },
    /// A loss that is not a finite number.
    #[error(
        "the loss is {loss} at step {step}, although the activations are finite: lower the \
         learning rate, or start from another dictionary"
    )]
    Diverged {
        /// The step, from 0.
        step: usize,
        /// The loss.
        loss: String,
    },
    /// Activations that are not finite.
    #[error("the activations of step {step} are not finite: check where they come from")]
    NotFinite {
        /// The step, from 0.
        step: usize,
    },
    /// A checkpoint that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] TrainingError),
    /// Parts of a dictionary that do not fit.
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
    /// A site or a text that does not fit the model, or a run that is not finite.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A text without tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}
