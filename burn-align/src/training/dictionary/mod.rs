//! Training a dictionary: a sparse autoencoder on a model's activations.
//!
//! [`train_dictionary`] runs a model on a text, up to the site, and trains TopK or JumpReLU
//! features ([`Sparsity`]) on what it finds there. The result is a
//! [`Dictionary`](crate::dictionaries::Dictionary) like a published one: splice it, edit its
//! features, save it for SAELens. [`DictionaryTrainer`] takes activations from anywhere.
//!
//! It needs no autodiff backend: the gradients of this loss are written out, because products with
//! features of which few are active need not compute the others ([`Products`]).
//!
//! How good a dictionary is, and on which tokens its features are active, is measured by
//! [`evaluate_dictionary`](crate::methods::evaluate_dictionary) and
//! [`top_activations`](crate::methods::top_activations), for published ones too.

mod activations;
mod checkpoint;
mod config;
mod error;
mod history;
mod optimizer;
mod parallel;
mod parameters;
mod pass;
mod revive;
mod run;
mod sparse;
mod sparsity;
mod trainer;

pub(crate) use activations::{activation_rows, is_vector};
pub use config::{DictionaryTrainingConfig, Products};
pub use error::DictionaryTrainingError;
pub use history::{DictionaryHistory, DictionaryStep, DictionaryTrainingEvent};
pub use run::{TrainedDictionary, train_dictionary};
pub use sparsity::{JumpReluSparsity, L0Penalty, Sparsity, TopKSparsity};
pub use trainer::DictionaryTrainer;
