//! MIB's causal-variable track: where in a model is a variable of a causal model?
//!
//! A [task](VariableTask) is a hypothesis: a causal model that answers prompts, and sets of
//! counterfactuals, which differ from their bases in one way. Features of a unit carry a variable
//! if swapping them, from the counterfactual into the base, changes what the model says as swapping
//! the variable changes what the causal model says (Mueller et al. 2025, arXiv 2504.13151, §4).
//!
//! | step | here |
//! | --- | --- |
//! | a task of the track, or one of your own | [`tasks`], [`VariableTask::new`] |
//! | the examples that the model answers rightly | [`VariableTask::filter`] |
//! | features that are trained on a set | [`VariableTask::interchange_data`] and [`train`] |
//! | features at a unit: those, a dictionary's, whole vectors | [`Submission`] |
//! | scores of units in sets | [`score_variables`] |
//! | best position of each layer, mean over layers, best layer | [`VariableResults::summary`] |
//! | files for the leaderboard | [`VariableCell`], [`Submission::save`] |
//!
//! [`train`]: crate::training::train
//!
//! For indirect objects, heads are scored by the squared error of a logit difference that
//! [`LinearParameters`] predict; [`measure_logit_differences`] and [`LinearParameters::fit`] find
//! them.
//!
//! # When it misleads
//! A score is of one hypothesis on examples that the model gets right. Features that are found with
//! much freedom, such as a large rank or a nonlinear featurizer, can do what a variable does and
//! not be what the model uses: compare with whole vectors, and with a random model of the same
//! shape. The best layer is the best of many.

mod answers;
mod error;
mod files;
mod filter;
mod linear;
mod located;
mod names;
mod position;
mod results;
mod score;
mod task;
pub mod tasks;
mod unit;
mod value;

pub use answers::{AnswerOptions, answer_prompts};
pub use error::CausalVariableError;
pub use files::{
    LoadSubmissionError, SaveSubmissionError, Submission, SubmittedFeatures, TrackModel, TrackTask,
    UnknownCell, VariableCell,
};
pub use filter::Filtered;
pub use linear::{LinearParameters, LogitMeasurement};
pub use names::NameTokens;
pub use position::TaskPosition;
pub use results::{ResultsError, VariableResults, VariableSummary};
pub use score::{GroupScores, Measure, measure_logit_differences, score_variables};
pub use task::{CounterfactualSet, TaskExample, TaskInput, VariableTask};
pub use unit::{SubmissionUnit, UnknownUnit};
pub use value::TaskValue;
