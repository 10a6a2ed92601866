//! Causal interventions on the internals of language models.
//!
//! Axis names are those of [`burn_align_models`].

pub mod engine;
pub mod interventions;

pub use burn_align_models as models;
