//! Learning circuits: by taking out edge after edge, and by gradients of weights of edges.

mod acdc;
mod edge_pruning;
mod objective;
mod uniform;

pub use acdc::{Acdc, AcdcOptions, MetricLoss, acdc, acdc_by_metric};
pub use edge_pruning::{EdgePruningOptions, edge_pruning};
pub use objective::{LearnedEdges, LearningStep};
pub use uniform::{UniformSamplingOptions, uniform_gradient_sampling};
