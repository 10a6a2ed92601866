//! Circuits in files: the JSON of the Mechanistic Interpretability Benchmark (MIB), and folders of
//! submissions to it.

mod error;
mod json;
mod mib;
mod submission;

pub use error::CircuitFileError;
pub use mib::{CircuitFile, CircuitFileNode};
pub use submission::{MibCell, MibCircuits, MibModel, MibSubmission, MibTask};
