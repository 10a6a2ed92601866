//! Choosing a circuit by the scores of edges.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{Circuit, CircuitError, Edge, EdgeRanking, EdgeScores, GraphNode};

/// Which edges make a circuit, given their scores. Edges without a score (NaN) come last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EdgeChoice {
    /// The edges that rank highest.
    TopN {
        /// Number of edges.
        edges: usize,
        /// What they are ranked by.
        by: EdgeRanking,
    },
    /// The edges whose score, or its magnitude, is at least this.
    Threshold {
        /// The least score or magnitude.
        at_least: f64,
        /// Which of both.
        by: EdgeRanking,
    },
    /// From the logits up: at each step, the edge that ranks highest among those to the logits and
    /// to nodes that already write to the circuit. Every edge then reaches the logits
    /// (`apply_greedy` of the reference code of EAP-IG, which MIB uses for information flow
    /// routes).
    Greedy {
        /// Number of edges.
        edges: usize,
        /// What they are ranked by.
        by: EdgeRanking,
    },
}

impl Circuit {
    /// The circuit that a choice makes of scores, which it keeps. It is not
    /// [pruned](Circuit::pruned).
    ///
    /// # When it misleads
    /// By [signed](EdgeRanking::Signed) scores, edges that work against the metric are left out,
    /// so a circuit may do better than the model. By [absolute](EdgeRanking::Absolute) ones it is
    /// what resembles the model. The same scores give different circuits, so always say which was
    /// used.
    ///
    /// # Errors
    /// If more edges are asked for than there are, or the threshold is not a number.
    pub fn choose(scores: &EdgeScores, choice: EdgeChoice) -> Result<Self, CircuitError> {
        let graph = scores.graph();
        let mut members = vec![false; graph.edge_count()];
        let mut add = |edge: Edge| {
            if let Some(index) = graph.index(edge) {
                members[index] = true;
            }
        };
        match choice {
            EdgeChoice::TopN { edges, by } => {
                check_count(edges, scores)?;
                let ranked = scores.ranked(by).into_iter().take(edges);
                ranked.for_each(|(edge, _)| add(edge));
            }
            EdgeChoice::Threshold { at_least, by } => {
                if at_least.is_nan() {
                    return Err(CircuitError::Setting {
                        what: "threshold",
                        expected: "a number",
                        found: at_least.to_string(),
                    });
                }
                let all = graph.edges().zip(scores.values());
                let reached = all.filter(|(_, score)| rank(**score, by) >= at_least);
                reached.for_each(|(edge, _)| add(edge));
            }
            EdgeChoice::Greedy { edges, by } => {
                check_count(edges, scores)?;
                greedy(scores, edges, by, add);
            }
        }
        Self::new(graph.clone(), members).with_scores(scores)
    }
}

/// What an edge is ranked by, the highest first.
pub(super) fn rank(score: f64, by: EdgeRanking) -> f64 {
    match by {
        _ if score.is_nan() => f64::NEG_INFINITY,
        EdgeRanking::Signed => score,
        EdgeRanking::Absolute => score.abs(),
    }
}

fn check_count(edges: usize, scores: &EdgeScores) -> Result<(), CircuitError> {
    let all = scores.graph().edge_count();
    if edges > all {
        return Err(CircuitError::TooManyEdges { edges, all });
    }
    Ok(())
}

/// Adds edges from the logits up.
fn greedy(scores: &EdgeScores, edges: usize, by: EdgeRanking, mut add: impl FnMut(Edge)) {
    let graph = scores.graph();
    let mut open = BinaryHeap::new();
    let mut is_open = vec![false; graph.writers().len()];
    let candidates = |reader: usize| {
        let own = scores.by_reader(reader).iter().enumerate();
        own.map(move |(writer, score)| Candidate {
            rank: rank(*score, by),
            edge: Edge { writer, reader },
        })
    };
    let readers_of = |node: GraphNode| {
        let readers = 0..graph.readers().len();
        readers.filter(move |reader| graph.reading_node(*reader) == node)
    };
    for reader in readers_of(GraphNode::Logits) {
        open.extend(candidates(reader));
    }
    for _ in 0..edges {
        let Some(best) = open.pop() else {
            return;
        };
        add(best.edge);
        let writer = best.edge.writer;
        if !std::mem::replace(&mut is_open[writer], true) {
            for reader in readers_of(GraphNode::Writer(writer)) {
                open.extend(candidates(reader));
            }
        }
    }
}

/// An edge that can be added next: the highest rank first, then the order of the graph.
struct Candidate {
    rank: f64,
    edge: Edge,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |edge: Edge| (edge.reader, edge.writer);
        let by_rank = self.rank.total_cmp(&other.rank);
        by_rank.then_with(|| place(other.edge).cmp(&place(self.edge)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
