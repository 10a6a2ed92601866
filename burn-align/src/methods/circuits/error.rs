//! What can go wrong with circuits.

use burn_align_models::Site;

use crate::engine::PlanError;
use crate::methods::attribution::AttributionError;

/// Why edges could not be scored, or a circuit not be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CircuitError {
    /// A model whose heads cannot be told apart.
    #[error(
        "the model's heads cannot be told apart; implement ByHead for it and return it from \
         AlignableTransformer::by_head"
    )]
    NoHeads,
    /// A norm after the attention that is not known.
    #[error(
        "the model has norms after its attention and does not say which; implement Readout for it \
         and return it from AlignableTransformer::readout"
    )]
    NoPostNorm,
    /// A model whose residual stream is not the sum of heads and MLPs.
    #[error(
        "layer {layer}: expected attention and then an MLP, {expected}, found {found}; edges are \
         defined for transformers whose residual stream is the sum of heads and MLPs"
    )]
    NotResidual {
        /// The layer.
        layer: usize,
        /// What its sublayers should do.
        expected: &'static str,
        /// What the layer has.
        found: String,
    },
    /// An activation that edges are read from.
    #[error(
        "the model has no site {site}, from which outputs or inputs of its nodes are read; add it \
         to the model's layout, as ModelLayout::transformer does"
    )]
    NoSite {
        /// The site.
        site: Site,
    },
    /// Scores that do not fit the graph.
    #[error("expected a score for each of the graph's {expected} edges, found {found} scores")]
    ScoreCount {
        /// Number of edges.
        expected: usize,
        /// Number of scores.
        found: usize,
    },
    /// An edge that the graph does not have.
    #[error(
        "writer {writer}, reader {reader}: the graph has {writers} writers and {readers} readers, \
         and a reader has edges from the writers before it only; see EdgeGraph::before"
    )]
    NoSuchEdge {
        /// Index of the writer.
        writer: usize,
        /// Index of the reader.
        reader: usize,
        /// Number of writers.
        writers: usize,
        /// Number of readers.
        readers: usize,
    },
    /// Nothing to compute with.
    #[error("expected at least one {what}, found none")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },
    /// A score that is not finite although the runs are.
    #[error(
        "the score of {edge} is not finite, although base and source are: the metric or its \
         gradient overflows; load the model in f32, or choose a metric that does not saturate"
    )]
    NotFinite {
        /// Name of the edge.
        edge: String,
    },
    /// Graphs that differ.
    #[error("expected edges of a graph of {expected}, found those of {found}")]
    OtherGraph {
        /// Its sizes.
        expected: String,
        /// Sizes of the other one.
        found: String,
    },
    /// A writer that the graph does not have.
    #[error("expected the index of a writer, below {writers}, found {writer}")]
    NoSuchWriter {
        /// The index.
        writer: usize,
        /// Number of writers.
        writers: usize,
    },
    /// A circuit of more edges than there are.
    #[error("expected at most {all} edges, as many as the graph has, found {edges}")]
    TooManyEdges {
        /// Number of edges asked for.
        edges: usize,
        /// Number of edges of the graph.
        all: usize,
    },
    /// A setting out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// A memory budget too small for one circuit on one example.
    #[error(
        "memory_budget: expected at least {needed} bytes, for one circuit on one example, found \
         {budget}; raise RunOptions::memory_budget, or use shorter prompts"
    )]
    CircuitMemory {
        /// Bytes needed.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// An example without another one of its length.
    #[error(
        "example {example} has {length} tokens, and no other example has as many: expected at \
         least two of each length to resample from"
    )]
    NoDonor {
        /// Index of the example.
        example: usize,
        /// Its number of tokens.
        length: usize,
    },
    /// An input that begins in the middle of a run.
    #[error(
        "expected token ids or vectors to embed, found the rest of an earlier run; circuits are \
         evaluated from the embedding on"
    )]
    NotWhole,
    /// A metric that does not tell the model from nothing.
    #[error(
        "the mean metric is {value} with all edges and with none: faithfulness would divide by \
         zero; choose prompts or a metric that differ between base and source"
    )]
    NoDifference {
        /// The metric.
        value: f64,
    },
    /// Weights of edges or a circuit whose predictions are not finite.
    #[error(
        "step {step}: the predictions or their gradients are not finite; load the model in f32, or \
         lower the learning rate"
    )]
    Diverged {
        /// The step, or the number of circuits that were run.
        step: usize,
    },
    /// The prompts or the metric do not fit, or the budget is too small.
    #[error(transparent)]
    Attribution(#[from] AttributionError),
    /// The runs do not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
