//! Circuits: the edges of the residual graph, and how much each of them matters.
//!
//! A transformer's residual stream is a sum: the embedding, and what each head and each MLP adds.
//! So the input of a head or an MLP is a sum over all writers before it, and each term of this sum
//! is an edge that can be patched by itself: the reader then sees another output of the writer, and
//! nobody else does. [`EdgeGraph`] names these edges.
//!
//! | function | what it computes | passes |
//! | --- | --- | --- |
//! | [`eap`] | edge attribution patching | 2 forward, 1 backward |
//! | [`eap_ig_inputs`] | the same along a path of inputs | 2 forward, a backward per step |
//! | [`eap_ig_activations`] | the same along paths of activations | a backward per node and step |
//! | [`clean_corrupted`] | the same at both ends | 2 backward |
//! | [`information_flow_routes`] | how close each writer is to what is read | 1 forward |
//! | [`patch_all_edges`], [`patch_edges`] | the exact effect of each edge | a patched run per edge |
//!
//! A [`Circuit`] is some of these edges. It is [chosen](Circuit::choose) by scores, or learned:
//!
//! | function | what it computes |
//! | --- | --- |
//! | [`evaluate_circuits`] | the metric if all edges outside of a circuit are ablated at once |
//! | [`faithfulness_curves`] | the same for circuits of several sizes; CPR and CMD |
//! | [`completeness`], [`minimality`] | the same without some nodes |
//! | [`circuit_stability`], [`auroc`] | circuits of resampled examples; scores and a known circuit |
//! | [`acdc`], [`acdc_by_metric`] | a circuit, by taking out edge after edge |
//! | [`edge_pruning`], [`uniform_gradient_sampling`] | weights of edges, by gradients |
//! | [`CircuitFile`], [`MibSubmission`] | the files of the benchmark MIB |
//! | [`TracerGraph`] | the file of circuit-tracer's viewer |
//! | [`Circuit::diagram`], [`Circuit::node_grid`] | pictures: a graph, layers by heads |
//!
//! # When it misleads
//! An edge is a direct connection. What a writer does to a reader through other nodes is on other
//! edges, and a circuit that contains the one need not work without the others. Scores are for one
//! pair of prompt distributions: they say which edges carry their *difference*, not which ones the
//! model needs. And all but the last method are estimates: compare with [`patch_edges`].

mod ablation;
mod changes;
mod circuit;
mod criteria;
mod curve;
mod diagram;
mod eap;
mod error;
mod evaluate;
mod exact;
mod files;
mod gradients;
mod graph;
mod grids;
mod ifr;
mod learn;
mod memory;
mod options;
mod readers;
mod runs;
mod scores;
mod select;
mod stability;
mod sums;

pub use circuit::Circuit;
pub use criteria::{Completeness, Minimality, alone, completeness, minimality, random_node_sets};
pub use curve::{
    CurveArea, CurveOptions, FaithfulnessCurve, Interval, MIB_SIZES, faithfulness_curves,
};
pub use eap::{clean_corrupted, eap, eap_ig_activations, eap_ig_inputs};
pub use error::CircuitError;
pub use evaluate::{CircuitAblation, CircuitValues, EdgeMasking, evaluate_circuits};
pub use exact::{patch_all_edges, patch_edges};
pub use files::{
    CircuitFile, CircuitFileError, CircuitFileNode, MibCell, MibCircuits, MibModel, MibSubmission,
    MibTask, TracerGraph, TracerPrompt, TracerTarget,
};
pub use graph::{Edge, EdgeGraph, GraphNode, Reader};
pub use ifr::information_flow_routes;
pub use learn::{
    Acdc, AcdcOptions, EdgePruningOptions, LearnedEdges, LearningStep, MetricLoss,
    UniformSamplingOptions, acdc, acdc_by_metric, edge_pruning, uniform_gradient_sampling,
};
pub use options::EdgeOptions;
pub use scores::{EdgeAblation, EdgeMethod, EdgeProvenance, EdgeRanking, EdgeScores};
pub use select::EdgeChoice;
pub use stability::{CircuitStability, auroc, bootstrap_resamples, circuit_stability};
