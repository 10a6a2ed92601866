//! A circuit: some of the edges of a residual graph.

use super::{CircuitError, Edge, EdgeGraph, EdgeScores, GraphNode};

/// Some of the edges of a graph. The other edges carry something else when the circuit is
/// [evaluated](super::evaluate_circuits): the outputs of another prompt, means, or zeros.
///
/// ```
/// use burn_align::methods::circuits::{Circuit, EdgeGraph};
///
/// let graph = EdgeGraph::new(2, 1, false, 8);
/// let names = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits", "input->m0"];
/// let edges = names.map(|name| graph.parse(name).unwrap());
/// let circuit = Circuit::of(graph, edges).unwrap();
/// // Nobody reads the first MLP.
/// assert_eq!(circuit.edge_count(), 4);
/// assert_eq!(circuit.pruned().edge_count(), 3);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Circuit {
    graph: EdgeGraph,
    members: Vec<bool>,
    scores: Option<Vec<f64>>,
}

impl Circuit {
    /// Without any edge.
    pub fn empty(graph: EdgeGraph) -> Self {
        let members = vec![false; graph.edge_count()];
        Self::new(graph, members)
    }

    /// With all edges: the whole model.
    pub fn full(graph: EdgeGraph) -> Self {
        let members = vec![true; graph.edge_count()];
        Self::new(graph, members)
    }

    /// With these edges.
    ///
    /// # Errors
    /// If the graph does not have one of them.
    pub fn of(
        graph: EdgeGraph,
        edges: impl IntoIterator<Item = Edge>,
    ) -> Result<Self, CircuitError> {
        let mut circuit = Self::empty(graph);
        for edge in edges {
            let index = circuit.graph.check(edge)?;
            circuit.members[index] = true;
        }
        Ok(circuit)
    }

    /// With the edges that are marked, in the order of [`EdgeGraph::edges`].
    ///
    /// # Errors
    /// If there are more or fewer marks than edges.
    pub fn from_members(graph: EdgeGraph, members: Vec<bool>) -> Result<Self, CircuitError> {
        if members.len() != graph.edge_count() {
            return Err(CircuitError::ScoreCount {
                expected: graph.edge_count(),
                found: members.len(),
            });
        }
        Ok(Self::new(graph, members))
    }

    pub(super) fn new(graph: EdgeGraph, members: Vec<bool>) -> Self {
        Self {
            graph,
            members,
            scores: None,
        }
    }

    /// The same circuit, which keeps the scores that it was chosen by.
    ///
    /// # Errors
    /// If they are scores of another graph.
    pub fn with_scores(mut self, scores: &EdgeScores) -> Result<Self, CircuitError> {
        check_graph(&self.graph, scores.graph())?;
        self.scores = Some(scores.values().to_vec());
        Ok(self)
    }

    /// The graph.
    pub fn graph(&self) -> &EdgeGraph {
        &self.graph
    }

    /// Whether each edge is in the circuit, in the order of [`EdgeGraph::edges`].
    pub fn members(&self) -> &[bool] {
        &self.members
    }

    /// The scores that it was chosen by, if it has any, in the same order.
    pub fn scores(&self) -> Option<&[f64]> {
        self.scores.as_deref()
    }

    /// Whether an edge is in the circuit. No circuit has an edge that its graph does not have.
    pub fn contains(&self, edge: Edge) -> bool {
        let index = self.graph.index(edge);
        index.is_some_and(|index| self.members[index])
    }

    /// The same circuit, with or without an edge.
    ///
    /// # Errors
    /// If the graph does not have it.
    pub fn with_edge(mut self, edge: Edge, is_member: bool) -> Result<Self, CircuitError> {
        let index = self.graph.check(edge)?;
        self.members[index] = is_member;
        Ok(self)
    }

    /// The edges of the circuit, in the order of the graph.
    pub fn edges(&self) -> impl Iterator<Item = Edge> {
        let edges = self.graph.edges().zip(&self.members);
        edges.filter(|(_, member)| **member).map(|(edge, _)| edge)
    }

    /// Number of edges of the circuit.
    pub fn edge_count(&self) -> usize {
        self.members.iter().filter(|member| **member).count()
    }

    /// The nodes of the circuit, in the order of the graph: writers with an edge to a reader and
    /// one from a writer, of which the embedding needs only the former; and always the logits.
    pub fn nodes(&self) -> Vec<GraphNode> {
        let is_node = connected(&self.graph, &self.members);
        let nodes = self.graph.nodes();
        let nodes = nodes.filter(|node| match node {
            GraphNode::Writer(writer) => is_node[*writer],
            GraphNode::Logits => true,
        });
        nodes.collect()
    }

    /// The circuit without the edges that are on no way from the embedding to the logits, as far
    /// as counting edges can tell: writers without an edge in or without one out lose their edges,
    /// until there is none. The embedding counts as having edges in, and the logits are always
    /// kept (`Graph.prune` of the reference code of EAP-IG, arXiv 2403.17806).
    ///
    /// Where edges outside of a circuit carry the outputs of another prompt, this changes no
    /// logit. Where they carry means or zeros it does: a node that reads nothing of the circuit
    /// then computes something that is not its own mean.
    pub fn pruned(&self) -> Self {
        let graph = &self.graph;
        let mut members = self.members.clone();
        loop {
            let is_node = connected(graph, &members);
            let mut changed = false;
            for (edge, member) in graph.edges().zip(&mut members) {
                let reads = match graph.reading_node(edge.reader) {
                    GraphNode::Writer(writer) => is_node[writer],
                    GraphNode::Logits => true,
                };
                if *member && !(is_node[edge.writer] && reads) {
                    *member = false;
                    changed = true;
                }
            }
            if !changed {
                return Self {
                    members,
                    ..self.clone()
                };
            }
        }
    }

    /// The circuit without the edges from and to these writers, by their indices in
    /// [`EdgeGraph::writers`].
    pub fn without(&self, writers: &[usize]) -> Self {
        let mut circuit = self.clone();
        for (edge, member) in self.graph.edges().zip(&mut circuit.members) {
            let reads = match self.graph.reading_node(edge.reader) {
                GraphNode::Writer(writer) => writers.contains(&writer),
                GraphNode::Logits => false,
            };
            *member &= !(reads || writers.contains(&edge.writer));
        }
        circuit
    }

    /// The Jaccard similarity of the edges of two circuits: the number of edges in both, divided
    /// by that of edges in at least one of them. 1 if both are empty.
    ///
    /// # Errors
    /// If they are circuits of different graphs.
    pub fn jaccard(&self, other: &Self) -> Result<f64, CircuitError> {
        check_graph(&self.graph, &other.graph)?;
        let pairs = self.members.iter().zip(&other.members);
        let (both, any) = pairs.fold((0_usize, 0_usize), |(both, any), (a, b)| {
            (both + usize::from(*a && *b), any + usize::from(*a || *b))
        });
        Ok(match any {
            0 => 1.0,
            any => both as f64 / any as f64,
        })
    }
}

/// Whether each writer has an edge in and one out. The embedding needs only one out.
fn connected(graph: &EdgeGraph, members: &[bool]) -> Vec<bool> {
    let writers = graph.writers().len();
    let (mut reads, mut is_read) = (vec![false; writers], vec![false; writers]);
    for (edge, _) in graph.edges().zip(members).filter(|(_, member)| **member) {
        is_read[edge.writer] = true;
        if let GraphNode::Writer(writer) = graph.reading_node(edge.reader) {
            reads[writer] = true;
        }
    }
    reads[0] = true;
    let both = reads.into_iter().zip(is_read);
    both.map(|(reads, is_read)| reads && is_read).collect()
}

/// Fails if two graphs differ.
pub(super) fn check_graph(expected: &EdgeGraph, found: &EdgeGraph) -> Result<(), CircuitError> {
    if expected == found {
        return Ok(());
    }
    let text = |graph: &EdgeGraph| {
        let kind = match graph.parallel() {
            true => "parallel",
            false => "sequential",
        };
        format!(
            "{} {kind} layers of {} heads and width {}",
            graph.layers(),
            graph.heads(),
            graph.d_model()
        )
    };
    Err(CircuitError::OtherGraph {
        expected: text(expected),
        found: text(found),
    })
}
