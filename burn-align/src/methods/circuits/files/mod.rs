//! Circuits in files: the JSON of the Mechanistic Interpretability Benchmark (MIB), folders of
//! submissions to it, and the graphs of circuit-tracer.

mod error;
mod json;
mod mib;
mod submission;
mod tracer;

pub use error::CircuitFileError;
pub use mib::{CircuitFile, CircuitFileNode};
pub use submission::{MibCell, MibCircuits, MibModel, MibSubmission, MibTask};
pub use tracer::{TracerGraph, TracerPrompt, TracerTarget};
