//! Circuits as objects: chosen, pruned, compared, drawn.

use burn_align::methods::circuits::{
    Circuit, CircuitError, EdgeChoice, EdgeGraph, EdgeProvenance, EdgeRanking, EdgeScores, auroc,
    bootstrap_resamples, circuit_stability,
};

use super::evaluate::random_circuits;
use crate::support::{fixtures, read_tensors};

fn graph() -> EdgeGraph {
    EdgeGraph::new(2, 2, false, 8)
}

fn circuit(names: &[&str]) -> Circuit {
    let graph = graph();
    let edges = names.iter().map(|name| graph.parse(name).expect("an edge"));
    Circuit::of(graph.clone(), edges.collect::<Vec<_>>()).expect("of the graph")
}

fn scores(graph: &EdgeGraph, score: impl Fn(usize) -> f64) -> EdgeScores {
    let values = (0..graph.edge_count()).map(score).collect();
    EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN).expect("one for each edge")
}

#[test]
fn pruning_ends_at_a_fixed_point() {
    // A chain that nobody reads falls link by link, and so does one that reads nothing.
    let kept = ["input->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->logits"];
    let cases: [(&[&str], usize); 5] = [
        (&["input->m0", "m0->a1.h0<q>", "a1.h0->m1"], 0),
        (&["a0.h1->m0", "m0->m1", "m1->logits"], 0),
        (&["m0->logits", "input->logits"], 1),
        (&kept, 3),
        (&[], 0),
    ];
    for (names, left) in cases {
        let found = circuit(names).pruned();
        assert_eq!(found.edge_count(), left, "{names:?}");
        assert_eq!(found.pruned(), found);
        let mut both = names.to_vec();
        both.extend(kept);
        both.sort_unstable();
        both.dedup();
        // Edges that lead nowhere do not take others with them.
        let found = circuit(&both).pruned();
        assert!(kept.iter().all(|name| {
            let edge = found.graph().parse(name).expect("an edge");
            found.contains(edge)
        }));
    }
    let names = circuit(&kept).nodes().into_iter();
    let names: Vec<String> = names.map(|node| graph().node_name(node)).collect();
    assert_eq!(names, ["input", "a0.h0", "a1.h1", "logits"]);
}

#[test]
fn choices_are_those_of_the_reference() {
    let expected = read_tensors(&fixtures().join("circuit_curves.safetensors"));
    let graph = EdgeGraph::new(2, 4, false, 16);
    for name in ["gpt2_plain", "llama_gqa"] {
        let numbers = |key: &str| -> Vec<f32> {
            let data = &expected[&format!("{name}.{key}")];
            data.to_vec().expect("f32 values")
        };
        let values = numbers("scores");
        let scores = scores(&graph, |edge| f64::from(values[edge]));
        for (ranking, by) in [
            ("signed", EdgeRanking::Signed),
            ("absolute", EdgeRanking::Absolute),
        ] {
            for (key, choice) in [
                ("top", EdgeChoice::TopN { edges: 40, by }),
                ("threshold", EdgeChoice::Threshold { at_least: 0.8, by }),
                ("greedy", EdgeChoice::Greedy { edges: 40, by }),
            ] {
                let found = Circuit::choose(&scores, choice).expect("valid");
                let pruned = found.pruned();
                let both = [found.members(), pruned.members()].concat();
                let expected = numbers(&format!("choice.{key}.{ranking}"));
                let expected: Vec<bool> = expected.iter().map(|it| *it > 0.5).collect();
                assert!(both == expected, "{name}, {key}, {ranking}");
            }
        }
    }
}

#[test]
fn choices_that_cannot_be_made_are_refused() {
    let graph = graph();
    let scores = scores(&graph, |edge| edge as f64);
    let by = EdgeRanking::Signed;
    let edges = graph.edge_count() + 1;
    for choice in [
        EdgeChoice::TopN { edges, by },
        EdgeChoice::Greedy { edges, by },
    ] {
        let error = Circuit::choose(&scores, choice).expect_err("too many");
        assert!(matches!(error, CircuitError::TooManyEdges { .. }));
    }
    let choice = EdgeChoice::Threshold {
        at_least: f64::NAN,
        by,
    };
    let error = Circuit::choose(&scores, choice).expect_err("no number");
    assert!(matches!(error, CircuitError::Setting { .. }));
    let other = Circuit::full(EdgeGraph::new(1, 2, false, 8));
    assert!(other.jaccard(&Circuit::full(graph)).is_err());
}

#[test]
fn similarity_counts_shared_edges() {
    let a = circuit(&["input->m0", "m0->logits"]);
    let b = circuit(&["input->m0", "m0->m1", "m1->logits"]);
    assert_eq!(a.jaccard(&b).expect("of one graph"), 0.25);
    assert_eq!(a.jaccard(&a).expect("of one graph"), 1.0);
    let none = circuit(&[]);
    assert_eq!(none.jaccard(&none).expect("of one graph"), 1.0);
}

#[test]
fn stability_is_the_mean_over_pairs() {
    let circuits = random_circuits(&graph(), 3);
    let mut next = circuits.iter().cloned();
    let mut seen = Vec::new();
    let found = circuit_stability(5, 3, 7, |examples| {
        seen.push(examples.to_vec());
        Ok(next.next().expect("three are asked for"))
    });
    let found = found.expect("valid");
    assert_eq!(seen, bootstrap_resamples(5, 3, 7));
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let expected = pairs.map(|(a, b)| circuits[a].jaccard(&circuits[b]).expect("of one graph"));
    assert_eq!(found.jaccard, expected);
    let mean = expected.iter().sum::<f64>() / 3.0;
    assert!((found.mean_jaccard() - mean).abs() < 1e-12);
    for (edge, frequency) in found.frequency.iter().enumerate() {
        let count = circuits
            .iter()
            .filter(|circuit| circuit.members()[edge])
            .count();
        assert!((frequency - count as f64 / 3.0).abs() < 1e-12);
    }
    let none = |_: &[usize]| Ok(Circuit::empty(graph()));
    assert!(circuit_stability(5, 1, 0, none).is_err());
    assert!(circuit_stability(0, 5, 0, none).is_err());
}

#[test]
fn the_area_under_the_curve_counts_ordered_pairs() {
    let graph = graph();
    let known = random_circuits(&graph, 2).remove(0);
    for by in [EdgeRanking::Signed, EdgeRanking::Absolute] {
        let area = |score: &dyn Fn(usize) -> f64| {
            let scores = scores(&graph, score);
            auroc(&scores, by, &known)
                .expect("of one graph")
                .expect("some in and some out")
        };
        let member = |edge: usize| f64::from(u8::from(known.members()[edge]));
        assert_eq!(area(&|edge| member(edge) + 1.0), 1.0);
        assert_eq!(area(&|edge| 2.0 - member(edge)), 0.0);
        assert_eq!(area(&|_| 1.0), 0.5);
        // Pair by pair.
        let score = |edge: usize| ((edge * 7) % 5) as f64 + 1.0;
        let (mut ordered, mut pairs) = (0.0, 0.0);
        for inside in (0..graph.edge_count()).filter(|edge| known.members()[*edge]) {
            for outside in (0..graph.edge_count()).filter(|edge| !known.members()[*edge]) {
                pairs += 1.0;
                ordered += match score(inside).total_cmp(&score(outside)) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        assert!((area(&score) - ordered / pairs).abs() < 1e-12);
    }
    let all = Circuit::full(graph.clone());
    let scores = scores(&graph, |_| 0.0);
    assert_eq!(
        auroc(&scores, EdgeRanking::Signed, &all).expect("of one graph"),
        None
    );
}
