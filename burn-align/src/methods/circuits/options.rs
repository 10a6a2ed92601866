//! How edges are scored.

use super::EdgeAblation;
use crate::engine::RunOptions;

/// How edges are scored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EdgeOptions {
    /// What writers' outputs are replaced by. Default: their outputs on the source.
    pub ablation: EdgeAblation,
    /// Number of points at which gradients are integrated, where they are. Default: 5, as in MIB.
    pub steps: usize,
    /// For [`eap_ig_activations`](super::eap_ig_activations): whether the passes in which a node's
    /// output moves score only the edges from this node, instead of all edges. Default: no, as in
    /// the reference code.
    pub own_edges: bool,
    /// Budgets. The memory of gradients and of widened outputs is estimated from the sizes of the
    /// model. Without a budget, examples of 256 positions together are differentiated at a time.
    pub run: RunOptions,
}

impl Default for EdgeOptions {
    fn default() -> Self {
        Self {
            ablation: EdgeAblation::default(),
            steps: 5,
            own_edges: false,
            run: RunOptions::default(),
        }
    }
}

impl EdgeOptions {
    /// Sets what writers' outputs are replaced by.
    pub fn with_ablation(mut self, ablation: EdgeAblation) -> Self {
        self.ablation = ablation;
        self
    }

    /// Sets the number of points at which gradients are integrated.
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets whether the passes in which a node's output moves score the edges from this node only.
    pub fn with_own_edges(mut self, own_edges: bool) -> Self {
        self.own_edges = own_edges;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}
