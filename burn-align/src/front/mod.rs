//! The words of align-transformers and pyvene, turned into plans.

mod config;
mod error;
mod locations;
mod model;

pub use config::{
    AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, RepresentationSite,
    Unit,
};
pub use error::AlignError;
pub use locations::{Locations, RepresentationLocations, UnitLocations};
pub use model::{AlignableModel, AlignableOutput};
