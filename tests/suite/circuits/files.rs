//! Circuits in MIB's files.

use std::fs;

use burn_align::methods::circuits::{
    Circuit, CircuitFile, CircuitFileError, EdgeGraph, EdgeProvenance, EdgeScores, GraphNode,
    MIB_SIZES, MibCell, MibCircuits, MibModel, MibSubmission, MibTask,
};

use super::evaluate::random_circuits;
use crate::support::message;

/// As `Graph.to_json` of the reference code writes a graph of one layer with one head.
const PUBLISHED: &str = concat!(
    r#"{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 2}, "#,
    r#""nodes": {"input": {"in_graph": true, "score": NaN, "neurons": [true, false], "#,
    r#""neurons_scores": [0.5, NaN]}, "a0.h0": {"in_graph": true, "score": -1e-05}, "#,
    r#""m0": {"in_graph": false, "score": 2.0}, "logits": {"in_graph": true}}, "#,
    r#""edges": {"input->a0.h0<q>": {"score": 0.016900015994906425, "in_graph": true}, "#,
    r#""input->a0.h0<k>": {"score": -0.0005101770511828363, "in_graph": false}, "#,
    r#""input->a0.h0<v>": {"score": 5.101770511828363e-05, "in_graph": true}, "#,
    r#""input->m0": {"score": 0.0, "in_graph": false}, "#,
    r#""a0.h0->m0": {"score": -0.0, "in_graph": false}, "#,
    r#""input->logits": {"score": 1e+16, "in_graph": false}, "#,
    r#""a0.h0->logits": {"score": 1.0, "in_graph": true}, "#,
    r#""m0->logits": {"score": NaN, "in_graph": false}}}"#,
);

#[test]
fn a_published_file_is_written_as_it_was() {
    let file = CircuitFile::parse(PUBLISHED).expect("valid");
    assert_eq!(file.to_json(), PUBLISHED);
    let circuit = file.circuit();
    let graph = circuit.graph().clone();
    let names: Vec<String> = circuit.edges().map(|edge| graph.name(edge)).collect();
    assert_eq!(
        names,
        ["input->a0.h0<q>", "input->a0.h0<v>", "a0.h0->logits"]
    );
    let scores = file.scores().expect("it has scores");
    let edge = graph.parse("input->a0.h0<v>").expect("an edge");
    assert_eq!(scores.of(edge), Some(5.101770511828363e-05));
    let input = &file.nodes()[0];
    assert_eq!(input.node, GraphNode::Writer(0));
    assert_eq!(input.neurons, Some(vec![true, false]));
    assert!(input.score.is_some_and(f64::is_nan));
    assert_eq!(file.nodes()[1].score, Some(-1e-05));
    // A new file of the same scores has the same order and numbers.
    let without_nodes = |json: &str| json.split("\"edges\"").nth(1).map(str::to_owned);
    let new = CircuitFile::new(circuit).to_json();
    assert_eq!(without_nodes(&new), without_nodes(PUBLISHED));
}

#[test]
fn files_of_scores_and_of_circuits_alone_are_read() {
    for parallel in [false, true] {
        let graph = EdgeGraph::new(3, 2, parallel, 8);
        let circuit = random_circuits(&graph, 2).remove(0);
        let file = CircuitFile::new(&circuit);
        let read = CircuitFile::parse(&file.to_json()).expect("valid");
        assert_eq!(read.circuit(), &circuit);
        assert!(read.scores().is_none());
        let values = (0..graph.edge_count())
            .map(|edge| edge as f64 / 7.0)
            .collect();
        let scores = EdgeScores::new(graph, values, EdgeProvenance::GIVEN).expect("all edges");
        let file = CircuitFile::of_scores(&scores);
        let read = CircuitFile::parse(&file.to_json()).expect("valid");
        assert_eq!(read.scores(), Some(&scores));
        assert_eq!(read.circuit().edge_count(), 0);
    }
}

#[test]
fn damaged_files_are_refused() {
    for (from, to, place) in [
        ("\"edges\"", "\"vertices\"", "the file"),
        ("\"n_layers\": 1", "\"n_layers\": -1", "cfg.n_layers"),
        ("\"n_layers\": 1", "\"n_layers\": 4000000000", "edges"),
        ("\"n_heads\": 1", "\"n_heads\": 2", "edges"),
        (
            "false, \"d_model\"",
            "0, \"d_model\"",
            "cfg.parallel_attn_mlp",
        ),
        ("\"a0.h0->m0\"", "\"a0.h1->m0\"", "edges"),
        ("\"a0.h0->m0\"", "\"input->m0\"", "edges"),
        ("\"m0\": {", "\"m1\": {", "nodes"),
        ("[true, false]", "[true]", "nodes.input.neurons"),
        ("[true, false]", "[true, 1]", "nodes.input.neurons"),
        (
            "\"score\": 1.0",
            "\"score\": \"1\"",
            "edges.a0.h0->logits.score",
        ),
    ] {
        assert!(PUBLISHED.contains(from), "{from}");
        let damaged = PUBLISHED.replacen(from, to, 1);
        let error = CircuitFile::parse(&damaged).expect_err(to);
        assert!(message(&error).starts_with(place), "{to}: {error}");
    }
    for cut in [0, 1, 50, PUBLISHED.len() - 1] {
        let error = CircuitFile::parse(&PUBLISHED[..cut]).expect_err("cut off");
        assert!(matches!(error, CircuitFileError::Json { .. }), "{error}");
    }
}

#[test]
fn files_are_replaced_or_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("circuit.json");
    let file = CircuitFile::parse(PUBLISHED).expect("valid");
    file.save(&path).expect("writable");
    assert_eq!(fs::read_to_string(&path).expect("written"), PUBLISHED);
    assert_eq!(
        CircuitFile::load(&path).expect("valid").to_json(),
        PUBLISHED
    );
    fs::write(&path, "{").expect("writable");
    let error = CircuitFile::load(&path).expect_err("damaged");
    assert!(message(&error).contains("circuit.json"), "{error}");
    let error = CircuitFile::load(folder.path().join("none.json")).expect_err("missing");
    assert!(matches!(error, CircuitFileError::Io { .. }), "{error}");
}

#[test]
fn submissions_are_folders_of_cells() {
    let graph = EdgeGraph::new(2, 2, false, 8);
    let scores = vec![1.0; graph.edge_count()];
    let scores = EdgeScores::new(graph.clone(), scores, EdgeProvenance::GIVEN);
    let importances = MibCircuits::Importances(scores.expect("one for each edge"));
    let none = vec![Circuit::empty(graph.clone()); MIB_SIZES.len() - 1];
    let cell = |task, model| MibCell { task, model };
    let ioi = cell(MibTask::Ioi, MibModel::Gpt2);
    let arc = cell(MibTask::ArcEasy, MibModel::Llama3);
    let submission = |cells: Vec<(MibCell, MibCircuits)>| MibSubmission { cells };
    let folder = tempfile::tempdir().expect("a folder");
    let whole = submission(vec![
        (ioi, importances.clone()),
        (arc, MibCircuits::Circuits(none.clone())),
    ]);
    whole.save(folder.path()).expect("writable");
    let read = CircuitFile::load(folder.path().join("ioi_gpt2/importances.json"));
    assert_eq!(
        read.expect("valid").scores().map(|it| it.values()[0]),
        Some(1.0)
    );
    for size in &MIB_SIZES[..MIB_SIZES.len() - 1] {
        let file = format!("arc-easy_llama3/{size}.json");
        CircuitFile::load(folder.path().join(file)).expect("valid");
    }
    let mut large = none.clone();
    large[0] = Circuit::full(graph);
    for (cells, expected) in [
        (vec![(ioi, importances.clone())], "at least 2 models"),
        (
            vec![(ioi, importances.clone()), (ioi, importances.clone())],
            "each cell once",
        ),
        (vec![(arc, MibCircuits::Circuits(large))], "at most 0"),
        (
            vec![(arc, MibCircuits::Circuits(none[1..].to_vec()))],
            "9 circuits",
        ),
        (
            vec![(cell(MibTask::Mcqa, MibModel::Gpt2), importances.clone())],
            "mcqa_gpt2",
        ),
    ] {
        let error = submission(cells).check().expect_err(expected);
        assert!(message(&error).contains(expected), "{error}");
    }
}
