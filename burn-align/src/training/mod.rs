//! Finding variables in a model: interventions are trained, and then judged.
//!
//! A [dataset](InterchangeData) says what the model should predict under an interchange, for
//! instance from a [causal model](crate::causal_models). [`train`] fits the parameters of the
//! interventions of an [`AlignableModel`](crate::front::AlignableModel), with the model itself
//! frozen, and [`train_on_devices`] does so on several devices; [`evaluate`] gives the interchange intervention accuracy, and
//! [`evaluate_with_controls`] what it is worth: beside it stand a random rotation of the same
//! size, the whole vector swapped, and nothing swapped. A run with [`Checkpoints`] that is cut off
//! goes on when it is started again.

mod checkpoint;
mod config;
mod data;
mod devices;
mod error;
mod evaluate;
mod fingerprint;
mod history;
mod kept;
pub mod losses;
mod train;

pub use config::{CheckpointInterval, Checkpoints, RateSchedule, TrainingConfig};
pub use data::{InterchangeData, InterchangeExample, Targets};
pub use error::TrainingError;
pub use evaluate::{Controlled, Evaluation, Mean, evaluate, evaluate_with_controls};
pub use history::{EpochReport, History, StepReport, TrainingEvent};
pub use train::{train, train_on_devices};
