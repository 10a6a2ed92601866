//! What can go wrong when effects are attributed.

use burn_align_models::Site;

use crate::engine::PlanError;

/// Why effects could not be attributed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttributionError {
    /// Nothing to attribute to.
    #[error("expected at least one {what}, found none")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },
    /// Base and source of different sizes.
    #[error(
        "expected as many examples in base and source, found {base} and {source_batch}; give a \
         source for each example"
    )]
    Batches {
        /// Number of examples of the base.
        base: usize,
        /// Number of examples of the source.
        source_batch: usize,
    },
    /// Prompts of different lengths.
    #[error(
        "example {example}: the base has {base} positions, the source {source_length}; nodes are \
         compared position by position: use prompts with equally many tokens"
    )]
    Lengths {
        /// Index of the example.
        example: usize,
        /// Number of positions of the base.
        base: usize,
        /// Number of positions of the source.
        source_length: usize,
    },
    /// A memory budget too small for one example.
    #[error(
        "memory_budget: expected at least {needed} bytes, for the activations of one example that \
         are kept for gradients, found {budget}; raise RunOptions::memory_budget, use shorter \
         prompts, or ask for fewer sites"
    )]
    MemoryBudget {
        /// Bytes needed by one example.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// A metric that does not fit the examples or the model.
    #[error("metric: {what}: expected {expected}, found {found}")]
    Metric {
        /// What does not fit.
        what: &'static str,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An option out of range.
    #[error("{what}: expected {expected}, found {found}")]
    Option {
        /// The option.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// A layer whose output cannot be cut off.
    #[error(
        "GradDrop: layer {layer} replaces the residual stream instead of adding to it, so its part \
         of the gradient cannot be dropped; use AtpOptions without grad_drop"
    )]
    NotResidual {
        /// The layer.
        layer: usize,
    },
    /// A dictionary that does not fit its site.
    #[error("{site}: the dictionary has width {expected}, the activation {found}")]
    DictionaryWidth {
        /// The site.
        site: Site,
        /// Width of the dictionary.
        expected: usize,
        /// Width of a unit.
        found: usize,
    },
    /// Effects of different nodes.
    #[error("expected effects of the same nodes, found {approximate} and {exact} of them")]
    Nodes {
        /// Number of nodes of the estimate.
        approximate: usize,
        /// Number of nodes that were patched.
        exact: usize,
    },
    /// An effect that is not finite although the runs are.
    #[error(
        "{what} of example {example} is not finite, although base and source are: the metric or \
         its gradient overflows; load the model in f32, or choose a metric that does not saturate"
    )]
    NotFinite {
        /// What is not finite.
        what: String,
        /// Index of the example.
        example: usize,
    },
    /// The runs do not fit the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
