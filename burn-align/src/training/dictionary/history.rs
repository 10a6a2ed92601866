//! Progress and history of the training of a dictionary.

use serde::{Deserialize, Serialize};

/// One step of the training of a dictionary, measured on its batch before the weights change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DictionaryStep {
    /// Number of this step, from 0.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// What is minimised: the error and the penalties.
    pub loss: f64,
    /// `‖x − y‖²`, averaged over tokens, of the scaled activation.
    #[doc(alias = "mse")]
    pub error: f64,
    /// `1 − Σ‖x − y‖² / Σ‖x − mean‖²` over the tokens of the batch.
    pub explained_variance: f64,
    /// Mean number of active features of a token.
    pub l0: f64,
    /// Number of dead features before this step.
    pub dead: usize,
    /// The learning rate.
    pub learning_rate: f64,
}

/// How the training of a dictionary went: every step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DictionaryHistory {
    /// Every step.
    pub steps: Vec<DictionaryStep>,
}

impl DictionaryHistory {
    /// The history as JSON, which serde can read back.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are text")
    }
}

/// Progress of the training of a dictionary.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum DictionaryTrainingEvent<'a> {
    /// The run resumes after this history, from a checkpoint. Its events are not repeated.
    Resumed(&'a DictionaryHistory),
    /// The model has been run on the next part of the text, which has this many tokens to train on.
    Activations {
        /// Number of tokens.
        tokens: usize,
    },
    /// A step is done.
    Step(&'a DictionaryStep),
}

impl DictionaryStep {
    /// The numbers of a step in a checkpoint, without those that follow from the configuration.
    pub(super) fn numbers(&self) -> [f64; 6] {
        [
            self.loss,
            self.error,
            self.explained_variance,
            self.l0,
            self.dead as f64,
            self.learning_rate,
        ]
    }

    /// The inverse of [`numbers`](Self::numbers).
    pub(super) fn of_numbers(
        [step, steps]: [usize; 2],
        [loss, error, explained_variance, l0, dead, learning_rate]: [f64; 6],
    ) -> Self {
        Self {
            step,
            steps,
            loss,
            error,
            explained_variance,
            l0,
            dead: dead as usize,
            learning_rate,
        }
    }
}
