//! Finding variables in a model: interventions are trained, then evaluated.
//!
//! A [dataset](InterchangeData) states what the model should predict under an interchange, for
//! example according to a [causal model](crate::causal_models). [`train`] fits the parameters of
//! the interventions of an [`AlignableModel`](crate::front::AlignableModel) while the model itself
//! stays frozen; [`train_on_devices`] does so on several devices. A run with [`Checkpoints`] can be
//! interrupted and resumed.
//!
//! [`evaluate`] gives the interchange intervention accuracy. That number means little by itself: a
//! large enough subspace, or one fitted to few examples, can be right although the model does not
//! keep the variable there. [`evaluate_with_controls`] puts it next to a random rotation of the
//! same size, the whole vector swapped, and no swap.
//!
//! [`dictionary`] trains sparse autoencoders instead of interventions: on a model's activations,
//! with the same checkpoints and schedules.

mod cell_file;
mod checkpoint;
mod checkpoint_file;
mod config;
mod data;
mod devices;
pub mod dictionary;
mod error;
mod evaluate;
mod fingerprint;
mod history;
mod kept;
pub mod losses;
mod prepared;
mod run;
mod track;
mod train;

pub(crate) use cell_file::CellFile;
pub use config::{CheckpointInterval, Checkpoints, RateSchedule, TrainingConfig};
pub use data::{InterchangeData, InterchangeExample, Targets};
pub(crate) use devices::number;
pub use error::TrainingError;
pub use evaluate::{Controlled, Evaluation, Mean, evaluate, evaluate_with_controls};
pub use history::{EpochReport, History, StepReport, TrainingEvent};
pub(crate) use kept::Kept;
pub(crate) use prepared::{CleanRuns, PreparedData, evaluate_prepared};
pub(crate) use run::Run;
pub(crate) use track::track;
pub(crate) use train::{LossBatch, Trained, own_penalties, train_prepared, train_together};
pub use train::{train, train_on_devices};
