//! A score for each edge, and where it comes from.

use super::select::rank;
use super::{CircuitError, Edge, EdgeGraph};
use crate::methods::attribution::PatchDirection;

/// How edges were scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EdgeMethod {
    /// Edge attribution patching.
    Eap,
    /// EAP with gradients along a path of inputs.
    EapIgInputs {
        /// Number of steps.
        steps: usize,
    },
    /// EAP with gradients along a path of each node's activation.
    EapIgActivations {
        /// Number of steps.
        steps: usize,
        /// Whether the passes of a node score the edges of this node only.
        own_edges: bool,
    },
    /// EAP with the mean of the gradients at both prompts.
    CleanCorrupted,
    /// Information flow routes.
    InformationFlowRoutes,
    /// Each edge patched alone.
    Exact,
    /// Given by the caller, or read from a file.
    Given,
}

/// What a writer's output is replaced by when an edge is ablated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EdgeAblation {
    /// Its output on the source prompt.
    #[default]
    Counterfactual,
    /// Its mean output over the base prompts, position by position.
    Mean,
    /// Zero.
    Zero,
}

/// Where scores come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeProvenance {
    /// How edges were scored.
    pub method: EdgeMethod,
    /// What was patched into what; `None` if nothing was, or it is not known.
    pub direction: Option<PatchDirection>,
    /// What writers' outputs were replaced by; `None` if they were not, or it is not known.
    pub ablation: Option<EdgeAblation>,
    /// Number of examples; 0 if it is not known.
    pub examples: usize,
}

impl EdgeProvenance {
    /// Scores of which nothing is known.
    pub const GIVEN: Self = Self {
        method: EdgeMethod::Given,
        direction: None,
        ablation: None,
        examples: 0,
    };
}

/// What edges are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EdgeRanking {
    /// The score, the highest first. Edges that work against the metric come last.
    Signed,
    /// The magnitude of the score, the largest first.
    Absolute,
}

/// A number for each edge of a graph.
///
/// # Sign
/// Except for [information flow routes](EdgeMethod::InformationFlowRoutes), which have no sign, a
/// score is (an estimate of) `m(base) − m(base with the edge patched)`, averaged over examples: the
/// change in the loss `−m`. Under [noising](PatchDirection::Noising), corrupting an edge with a
/// positive score hurts. This is the sign of the reference code of EAP-IG, whose metric is a loss.
/// It is the opposite of that of [`NodeEffects`](crate::methods::attribution::NodeEffects).
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeScores {
    graph: EdgeGraph,
    values: Vec<f64>,
    provenance: EdgeProvenance,
}

impl EdgeScores {
    /// Scores in the order of [`EdgeGraph::edges`].
    ///
    /// # Errors
    /// If there are more or fewer scores than edges.
    pub fn new(
        graph: EdgeGraph,
        values: Vec<f64>,
        provenance: EdgeProvenance,
    ) -> Result<Self, CircuitError> {
        if values.len() != graph.edge_count() {
            return Err(CircuitError::ScoreCount {
                expected: graph.edge_count(),
                found: values.len(),
            });
        }
        Ok(Self {
            graph,
            values,
            provenance,
        })
    }

    /// The graph.
    pub fn graph(&self) -> &EdgeGraph {
        &self.graph
    }

    /// The scores, in the order of [`EdgeGraph::edges`].
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Where they come from.
    pub fn provenance(&self) -> &EdgeProvenance {
        &self.provenance
    }

    /// The score of an edge; `None` if the graph does not have it.
    pub fn of(&self, edge: Edge) -> Option<f64> {
        self.graph.index(edge).map(|index| self.values[index])
    }

    /// The scores of a reader's edges, in the order of the writers.
    ///
    /// # Panics
    /// If there is no such reader.
    pub fn by_reader(&self, reader: usize) -> &[f64] {
        match self.graph.index(Edge { writer: 0, reader }) {
            Some(start) => &self.values[start..start + self.graph.before(reader)],
            None => panic!("reader {reader} of {}", self.graph.readers().len()),
        }
    }

    /// All edges with their scores, the first in the ranking first; edges of equal rank in the
    /// order of the graph. NaN (an edge without a score, in a file) comes last.
    pub fn ranked(&self, by: EdgeRanking) -> Vec<(Edge, f64)> {
        let mut ranked: Vec<(Edge, f64)> = (self.graph.edges())
            .zip(self.values.iter().copied())
            .collect();
        ranked.sort_by(|a, b| rank(b.1, by).total_cmp(&rank(a.1, by)));
        ranked
    }
}
