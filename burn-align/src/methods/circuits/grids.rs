//! Scores and circuits as tables of numbers, layers by heads: what a heat map is drawn from.

use super::{Circuit, CircuitError, Edge, EdgeGraph, EdgeScores};
use crate::methods::Grid;
use crate::paths::Node;

impl EdgeScores {
    /// The score of each node: the sum over all edges that it writes to, in the order of
    /// [`EdgeGraph::writers`]. Under [`eap`](super::eap) this is attribution patching of the node.
    ///
    /// # When it misleads
    /// Edges of opposite signs cancel out.
    pub fn node_scores(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.graph().writers().len()];
        for (edge, score) in self.graph().edges().zip(self.values()) {
            sums[edge.writer] += score;
        }
        sums
    }

    /// The [scores of the nodes](Self::node_scores), with a row for each layer and a column for
    /// each head and the MLP. The embedding is in no layer, and left out.
    pub fn node_grid(&self) -> Grid {
        let sums = self.node_scores();
        grid(self.graph(), |writer| sums[writer])
    }

    /// The score of the edge from each node to a reader, with a row for each layer and a column
    /// for each head and the MLP. Nodes that come after the reader have NaN. The embedding is in
    /// no layer, and left out.
    ///
    /// - reader: its index in [`EdgeGraph::readers`]
    ///
    /// # Errors
    /// If there is no such reader.
    pub fn reader_grid(&self, reader: usize) -> Result<Grid, CircuitError> {
        self.graph().check(Edge { writer: 0, reader })?;
        let scores = self.by_reader(reader);
        let score = |writer: usize| scores.get(writer).copied().unwrap_or(f64::NAN);
        Ok(grid(self.graph(), score))
    }
}

impl Circuit {
    /// How many edges of the circuit each node writes to, with a row for each layer and a column
    /// for each head and the MLP. The embedding is in no layer, and left out.
    ///
    /// ```
    /// use burn_align::methods::circuits::{Circuit, EdgeGraph};
    ///
    /// let graph = EdgeGraph::new(2, 1, false, 8);
    /// let names = ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a0.h0->logits", "a1.h0->logits"];
    /// let edges = names.map(|name| graph.parse(name).unwrap());
    /// let grid = Circuit::of(graph, edges).unwrap().node_grid();
    /// assert_eq!(grid.columns, ["head 0", "MLP"]);
    /// assert_eq!(grid.values, [[2.0, 0.0], [1.0, 0.0]]);
    /// ```
    pub fn node_grid(&self) -> Grid {
        let mut counts = vec![0_usize; self.graph().writers().len()];
        for edge in self.edges() {
            counts[edge.writer] += 1;
        }
        grid(self.graph(), |writer| counts[writer] as f64)
    }
}

/// A number for each head and MLP, by its index among the writers.
fn grid(graph: &EdgeGraph, value: impl Fn(usize) -> f64) -> Grid {
    let layers = 0..graph.layers();
    let heads = 0..graph.heads();
    let of_layer = |layer: usize| -> Vec<f64> {
        let heads = heads.clone().map(|head| Node::Head { layer, head });
        let nodes = heads.chain([Node::Mlp { layer }]);
        let values = nodes.map(|node| graph.writer(node).map_or(f64::NAN, &value));
        values.collect()
    };
    let columns = heads.clone().map(|head| format!("head {head}"));
    Grid {
        rows: layers
            .clone()
            .map(|layer| format!("layer {layer}"))
            .collect(),
        columns: columns.chain(["MLP".to_owned()]).collect(),
        values: layers.map(of_layer).collect(),
    }
}
