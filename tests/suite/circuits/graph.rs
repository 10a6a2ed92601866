//! The residual graph: sizes, order and names.

use burn::tensor::backend::Backend;
use burn_align::methods::circuits::{
    Edge, EdgeGraph, EdgeProvenance, EdgeRanking, EdgeScores, GraphNode, Reader,
};
use burn_align::paths::Node;
use burn_align_models::AlignableTransformer;

use crate::support::{FAMILIES, load, message};

on_every_backend!(models_have_their_graphs);

#[test]
fn gpt2_small_has_32491_edges() {
    let graph = EdgeGraph::new(12, 12, false, 768);
    assert_eq!(graph.nodes().count(), 158);
    assert_eq!(graph.writers().len(), 1 + 12 * 13);
    assert_eq!(graph.readers().len(), 12 * 37 + 1);
    assert_eq!(graph.edge_count(), 32_491);
    assert_eq!(graph.edges().count(), 32_491);
    // As published for this model: one edge of each kind.
    for name in [
        "input->a0.h0<q>",
        "input->m0",
        "a0.h0->m0",
        "a9.h9->a10.h7<k>",
        "m3->a11.h11<v>",
        "m11->logits",
    ] {
        let edge = graph.parse(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(graph.name(edge), name);
    }
}

#[test]
fn names_indices_and_nodes_go_both_ways() {
    for parallel in [false, true] {
        let graph = EdgeGraph::new(3, 2, parallel, 8);
        for (index, edge) in graph.edges().enumerate() {
            assert_eq!(graph.parse(&graph.name(edge)), Some(edge));
            assert_eq!(graph.index(edge), Some(index));
            assert_eq!(graph.edge(index), Some(edge));
            assert!(edge.writer < graph.before(edge.reader));
        }
        assert_eq!(graph.edge(graph.edge_count()), None);
        for (index, writer) in graph.writers().iter().enumerate() {
            assert_eq!(graph.writer(*writer), Some(index));
        }
        for (index, reader) in graph.readers().iter().enumerate() {
            assert_eq!(graph.reader(*reader), Some(index));
            let node = graph.reading_node(index);
            assert!(reader.to_string().starts_with(&graph.node_name(node)));
        }
        for node in graph.nodes() {
            assert_eq!(graph.parse_node(&graph.node_name(node)), Some(node));
        }
        let from_head = graph.parse("a1.h0->m1");
        assert_eq!(from_head.is_none(), parallel, "{from_head:?}");
        let to_mlps = if parallel { 1 + 4 + 7 } else { 3 + 6 + 9 };
        assert_eq!(graph.edge_count(), 6 * (1 + 4 + 7) + to_mlps + 10);
    }
    let graph = EdgeGraph::new(3, 2, false, 8);
    assert_eq!(graph.parse_node("logits"), Some(GraphNode::Logits));
    for name in [
        "",
        "input",
        "input->",
        "input->input",
        "logits->m0",
        "input->a0.h0",
        "input->a0.h0<o>",
        "input->a0.h2<q>",
        "input->a3.h0<q>",
        "input->m0<q>",
        "input->m00",
        "m0->m0",
        "a0.h0->a0.h1<q>",
        "m1->a1.h0<q>",
        "a0->m0",
    ] {
        assert_eq!(graph.parse(name), None, "{name}");
    }
}

#[test]
fn scores_are_ranked_as_asked() {
    let graph = EdgeGraph::new(1, 1, false, 8);
    let names: Vec<String> = graph.edges().map(|edge| graph.name(edge)).collect();
    assert_eq!(
        names,
        [
            "input->a0.h0<q>",
            "input->a0.h0<k>",
            "input->a0.h0<v>",
            "input->m0",
            "a0.h0->m0",
            "input->logits",
            "a0.h0->logits",
            "m0->logits",
        ]
    );
    let values = vec![0.5, -3.0, 2.0, f64::NAN, 0.0, 1.0, -1.0, 0.25];
    let scores = EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN).expect("it fits");
    let ranked = |by| {
        let ranked = scores.ranked(by).into_iter();
        ranked
            .map(|(edge, _)| graph.index(edge).expect("an edge"))
            .collect::<Vec<_>>()
    };
    assert_eq!(ranked(EdgeRanking::Signed), [2, 5, 0, 7, 4, 6, 1, 3]);
    assert_eq!(ranked(EdgeRanking::Absolute), [1, 2, 5, 6, 0, 7, 4, 3]);
    let logits = graph.reader(Reader::Logits).expect("always");
    assert_eq!(scores.by_reader(logits), [1.0, -1.0, 0.25]);
    let edge = graph.parse("m0->logits").expect("an edge");
    assert_eq!(scores.of(edge), Some(0.25));
    let other = Edge {
        writer: 2,
        reader: 0,
    };
    assert_eq!(scores.of(other), None);
    let fewer = EdgeScores::new(graph, vec![0.0; 7], EdgeProvenance::GIVEN);
    assert_eq!(
        message(&fewer.expect_err("refused")),
        "expected a score for each of the graph's 8 edges, found 7 scores"
    );
}

fn models_have_their_graphs<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).unwrap_or_else(|error| panic!("{name}: {error}"));
        let is_parallel = ["gpt_neox_plain", "phi_plain", "phi_qk_layernorm"].contains(&name);
        assert_eq!(graph.parallel(), is_parallel, "{name}");
        let dims = model.dims();
        assert_eq!(graph.layers(), dims.layers, "{name}");
        assert_eq!(graph.heads(), dims.heads, "{name}");
        assert_eq!(graph.d_model(), dims.d_model, "{name}");
        assert_eq!(graph.writers()[0], Node::Embedding);
    }
}
