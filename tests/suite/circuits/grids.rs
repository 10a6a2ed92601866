//! Scores and circuits as tables, layers by heads.

use burn_align::methods::circuits::{
    Circuit, CircuitError, Edge, EdgeGraph, EdgeProvenance, EdgeScores, Reader,
};
use burn_align::paths::Node;

const LAYERS: usize = 3;
const HEADS: usize = 2;

fn graph() -> EdgeGraph {
    EdgeGraph::new(LAYERS, HEADS, false, 8)
}

/// Scores of which no two sums are alike.
fn scores() -> EdgeScores {
    let graph = graph();
    let values = (0..graph.edge_count()).map(|edge| (edge * edge) as f64 - 700.0);
    let values = values.collect();
    EdgeScores::new(graph, values, EdgeProvenance::GIVEN).expect("one for each edge")
}

/// The cells of a table with their nodes.
fn cells() -> impl Iterator<Item = (usize, usize, usize)> {
    let graph = graph();
    (0..LAYERS).flat_map(move |layer| {
        let graph = graph.clone();
        (0..=HEADS).map(move |column| {
            let node = match column {
                HEADS => Node::Mlp { layer },
                head => Node::Head { layer, head },
            };
            (layer, column, graph.writer(node).expect("a writer"))
        })
    })
}

#[test]
fn a_node_has_the_sum_of_its_edges() {
    let scores = scores();
    let grid = scores.node_grid();
    assert_eq!(grid.rows, ["layer 0", "layer 1", "layer 2"]);
    assert_eq!(grid.columns, ["head 0", "head 1", "MLP"]);
    for (row, column, writer) in cells() {
        let readers = 0..scores.graph().readers().len();
        let own = readers.filter_map(|reader| scores.of(Edge { writer, reader }));
        let expected: f64 = own.sum();
        assert_eq!(grid.values[row][column], expected, "{row}, {column}");
        assert_eq!(scores.node_scores()[writer], expected, "{row}, {column}");
    }
}

#[test]
fn a_reader_has_edges_from_the_nodes_before_it() {
    let scores = scores();
    let graph = scores.graph();
    for reader in [
        Reader::Logits,
        Reader::Mlp { layer: 1 },
        Reader::Key { layer: 1, head: 1 },
    ] {
        let index = graph.reader(reader).expect("a reader");
        let grid = scores.reader_grid(index).expect("a reader");
        for (row, column, writer) in cells() {
            let edge = Edge {
                writer,
                reader: index,
            };
            let found = grid.values[row][column];
            match scores.of(edge) {
                Some(expected) => assert_eq!(found, expected, "{reader}: {row}, {column}"),
                None => assert!(found.is_nan(), "{reader}: {row}, {column}"),
            }
        }
    }
    let missing = scores.reader_grid(graph.readers().len());
    assert!(matches!(missing, Err(CircuitError::NoSuchEdge { .. })));
}

#[test]
fn a_circuit_counts_edges() {
    let all = Circuit::full(graph()).node_grid();
    let of_edges: f64 = all.values.iter().flatten().sum();
    let graph = graph();
    let from_input = graph.edges().filter(|edge| edge.writer == 0).count();
    assert_eq!(of_edges as usize + from_input, graph.edge_count());
    // The last MLP is read by the logits only.
    assert_eq!(all.values[LAYERS - 1][HEADS], 1.0);
    let none = Circuit::empty(graph).node_grid();
    assert_eq!(none.range(), Some((0.0, 0.0)));
}
