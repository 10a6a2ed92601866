//! What can go wrong with tasks, their scores, and linear predictions.

use burn_align_models::TokensError;

use crate::causal_models::CausalModelError;
use crate::engine::PlanError;
use crate::training::TrainingError;

/// Why a task could not be made, filtered or scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CausalVariableError {
    /// Nothing to score.
    #[error("expected {expected}, found none")]
    Nothing {
        /// What is missing.
        expected: &'static str,
    },
    /// A prompt that is not as the task's prompts are.
    #[error("prompt {prompt:?}: expected {expected}")]
    Prompt {
        /// The prompt.
        prompt: String,
        /// What it should have.
        expected: String,
    },
    /// A number that does not fit the task.
    #[error("{what}: expected {expected}, found {found}")]
    Number {
        /// What it is.
        what: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A unit at a position that the task does not have.
    #[error("{unit}: the task has no position `{position}`; it has {known}")]
    UnknownPosition {
        /// The unit.
        unit: String,
        /// The position.
        position: String,
        /// The names of the task's positions.
        known: String,
    },
    /// A base and a counterfactual with different numbers of positions.
    #[error(
        "set {set}, example {example}: expected as many tokens in base and counterfactual to swap \
         {position}, found {base} and {counterfactual}; use prompts of equal lengths, or another \
         position"
    )]
    Lengths {
        /// The set.
        set: String,
        /// Index of the example.
        example: usize,
        /// The position.
        position: String,
        /// Number of tokens of the base.
        base: usize,
        /// Number of tokens of the counterfactual.
        counterfactual: usize,
    },
    /// A unit whose features come from a dictionary that is not there.
    #[error(
        "{unit}: its features are those of a dictionary, which a submission does not contain; add \
         it with Submission::with_dictionary"
    )]
    NoDictionary {
        /// The unit.
        unit: String,
    },
    /// A setting from which no logit difference follows.
    #[error(
        "set {set}, example {example}: the counterfactual value of {variable} is {found}, which is \
         neither that of the base nor its opposite, so no logit difference is predicted; use \
         counterfactuals with the names of their bases"
    )]
    NoSignal {
        /// The set.
        set: String,
        /// Index of the example.
        example: usize,
        /// The variable.
        variable: &'static str,
        /// Its value.
        found: String,
    },
    /// Measurements that do not determine the parameters.
    #[error(
        "linear parameters: expected measurements of at least 3 of the 4 combinations of token and \
         position, found {found}"
    )]
    Undetermined {
        /// Number of combinations.
        found: usize,
    },
    /// The causal model does not fit.
    #[error(transparent)]
    Model(#[from] CausalModelError),
    /// A text without tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// Units or prompts that do not fit the model, or a run that is not finite.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Data that do not fit.
    #[error(transparent)]
    Training(#[from] TrainingError),
}
