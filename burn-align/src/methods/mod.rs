//! Experiments, each a function from a model and data to plain data.

mod ablation;
mod alignment_map;
mod causal_trace;
mod grid;
mod metric;
mod sweep;

pub use ablation::{Ablation, AblationError, ablate, mean_activations, resample_donors};
pub use alignment_map::{
    AlignmentEvent, AlignmentGrid, AlignmentMap, AlignmentMapError, alignment_map,
};
pub use causal_trace::{CausalTrace, CausalTraceConfig, CausalTraceError, causal_trace};
pub use grid::Grid;
pub use metric::{logit_difference, probability};
pub use sweep::{SweepGrid, sweep};
