//! The vocabulary of align-transformers and pyvene, turned into plans.
//!
//! Configurations, unit locations and class names are theirs, so that experiments carry over
//! without being rewritten. The front does not compute anything itself: it validates, and adds
//! worlds to a [`Plan`](crate::engine::Plan).

mod build;
mod classes;
mod config;
mod config_json;
mod error;
mod generate;
mod generate_at;
mod generate_error;
mod inputs;
mod locations;
mod model;
mod same;
mod subspaces;
mod worlds;

pub use classes::InterventionType;
pub use config::{AlignableConfig, AlignableRepresentationConfig, Mode, RepresentationSite, Unit};
pub use error::AlignError;
pub use generate::AlignableTexts;
pub use generate_at::InterveneAt;
pub use generate_error::AlignGenerateError;
pub use inputs::{AlignableInputs, Source};
pub use locations::{Locations, RepresentationLocations, UnitLocations};
pub(crate) use model::distinct_interventions;
pub use model::{AlignableModel, AlignableOutput};
pub use same::ConfigDifference;
pub use subspaces::Subspaces;
pub use worlds::AddedWorlds;
