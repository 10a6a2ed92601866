//! The words of align-transformers and pyvene, turned into plans.

mod build;
mod config;
mod config_json;
mod error;
mod inputs;
mod locations;
mod model;
mod subspaces;
mod worlds;

pub use config::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, RepresentationSite,
    Unit,
};
pub use error::AlignError;
pub use inputs::{AlignableInputs, Source};
pub use locations::{Locations, RepresentationLocations, UnitLocations};
pub(crate) use model::distinct_interventions;
pub use model::{AlignableModel, AlignableOutput};
pub use subspaces::Subspaces;
pub use worlds::AddedWorlds;
