//! Experiments, each one plan.

mod causal_trace;
mod grid;
mod metric;
mod sweep;

pub use causal_trace::{CausalTrace, CausalTraceConfig, CausalTraceError, causal_trace};
pub use grid::Grid;
pub use metric::{logit_difference, probability};
pub use sweep::{SweepGrid, sweep};
