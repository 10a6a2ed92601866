//! Circuits as graphs of circuit-tracer.

use std::collections::BTreeSet;
use std::fs;

use burn_align::methods::circuits::{
    Circuit, CircuitFileError, EdgeGraph, EdgeProvenance, EdgeScores, TracerGraph, TracerPrompt,
    TracerTarget,
};
use serde_json::{Value, json};

use super::evaluate::random_circuits;
use crate::support::message;

fn prompt() -> TracerPrompt {
    let tokens = [(5, "When"), (7, " \"Mary\""), (9, "\n")];
    TracerPrompt {
        slug: "ioi-1".to_owned(),
        scan: "gpt2-small".to_owned(),
        text: "When \"Mary\"\n".to_owned(),
        tokens: tokens.map(|(id, text)| (id, text.to_owned())).into(),
        target: TracerTarget {
            id: 11,
            text: " John".to_owned(),
            probability: 0.125,
        },
    }
}

/// Six edges with scores, one of which leads nowhere.
fn circuit() -> Circuit {
    let graph = EdgeGraph::new(2, 1, false, 8);
    let scores = [
        ("input->a0.h0<q>", 0.5),
        ("input->a0.h0<v>", 0.25),
        ("a0.h0->m0", -1.5),
        ("input->a1.h0<k>", 9.0),
        ("input->logits", 0.125),
        ("m0->logits", 2.0),
    ];
    let edges = scores.map(|(name, _)| graph.parse(name).expect("an edge"));
    let mut values = vec![0.0; graph.edge_count()];
    for (edge, (_, score)) in edges.iter().zip(scores) {
        values[graph.index(*edge).expect("an edge")] = score;
    }
    let scores = EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN);
    let circuit = Circuit::of(graph, edges).expect("edges of the graph");
    circuit
        .with_scores(&scores.expect("one for each edge"))
        .expect("scores of the graph")
}

fn parsed(graph: &TracerGraph) -> Value {
    serde_json::from_str(&graph.to_json()).expect("JSON")
}

fn link(source: &str, target: &str, weight: f64) -> Value {
    json!({"source": source, "target": target, "weight": weight})
}

#[test]
fn a_circuit_is_a_graph_of_pinned_nodes() {
    let found = parsed(&TracerGraph::new(&circuit(), &prompt()).expect("valid"));
    let node = |id: &str, js_id: &str, feature: u32, layer: &str, kind: &str, label: &str| {
        let position: u32 = id
            .rsplit('_')
            .next()
            .expect("a position")
            .parse()
            .expect("a number");
        let is_logit = kind == "logit";
        json!({
            "node_id": id, "feature": feature, "layer": layer, "ctx_idx": position,
            "feature_type": kind, "token_prob": if is_logit { 0.125 } else { 0.0 },
            "is_target_logit": is_logit, "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": js_id,
            "clerp": label, "influence": null, "activation": null,
        })
    };
    assert_eq!(
        found["nodes"],
        json!([
            node("E_5_0", "E_5-0", 0, "E", "embedding", ""),
            node("E_7_1", "E_7-1", 1, "E", "embedding", ""),
            node("E_9_2", "E_9-2", 2, "E", "embedding", ""),
            node(
                "E_all_2",
                "E_all-2",
                3,
                "E",
                "all embeddings",
                "Embeddings of all tokens"
            ),
            node("0_0_2", "0_0-0", 0, "0", "attention head", "Head 0.0"),
            // Cantor's number of (0, 1).
            node("0_1_2", "0_1-0", 2, "0", "mlp", "MLP 0"),
            node(
                "3_11_2",
                "L_11-2",
                11,
                "3",
                "logit",
                "Output \" John\" (p=0.125)"
            ),
        ])
    );
    // Queries and values together, and without the edge that leads nowhere.
    assert_eq!(
        found["links"],
        json!([
            link("E_all_2", "0_0_2", 0.75),
            link("E_all_2", "3_11_2", 0.125),
            link("0_0_2", "0_1_2", -1.5),
            link("0_1_2", "3_11_2", 2.0),
        ])
    );
    assert_eq!(
        found["qParams"],
        json!({
            "pinnedIds": ["E_all_2", "0_0_2", "0_1_2", "3_11_2"],
            "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": "",
        })
    );
    let metadata = &found["metadata"];
    for (key, expected) in [
        ("slug", json!("ioi-1")),
        ("scan", json!("gpt2-small")),
        ("transcoder_list", json!([])),
        ("prompt_tokens", json!(["When", " \"Mary\"", "\n"])),
        ("prompt", json!("When \"Mary\"\n")),
        ("schema_version", json!(1)),
    ] {
        assert_eq!(metadata[key], expected, "{key}");
    }
    assert_eq!(metadata["info"]["generator"]["name"], "burn-align");
}

/// What the viewers ask of any graph: names that are there once, and links between them.
#[test]
fn graphs_fit_the_schema() {
    for parallel in [false, true] {
        let graph = EdgeGraph::new(3, 4, parallel, 8);
        for circuit in random_circuits(&graph, 3) {
            let found = parsed(&TracerGraph::new(&circuit, &prompt()).expect("valid"));
            let nodes = found["nodes"].as_array().expect("a list");
            let ids = |key: &str| -> BTreeSet<String> {
                let ids = nodes.iter().map(|node| node[key].as_str().expect("a name"));
                ids.map(str::to_owned).collect()
            };
            for key in ["node_id", "jsNodeId"] {
                assert_eq!(ids(key).len(), nodes.len(), "{key} twice");
            }
            let features = nodes.iter().map(|node| {
                let feature = node["feature"].as_u64().expect("a whole number");
                (node["layer"].as_str().expect("text").to_owned(), feature)
            });
            assert_eq!(features.collect::<BTreeSet<_>>().len(), nodes.len());
            let ids = ids("node_id");
            let links = found["links"].as_array().expect("a list");
            let mut pairs = BTreeSet::new();
            for link in links {
                let [source, target] = ["source", "target"].map(|end| {
                    let end = link[end].as_str().expect("a name");
                    assert!(ids.contains(end), "{end}");
                    end
                });
                assert!(pairs.insert((source, target)), "{source} to {target} twice");
                assert_eq!(link["weight"], 1.0, "a circuit without scores");
            }
            let own = circuit.pruned().nodes().len();
            assert_eq!(nodes.len(), own + 3);
            assert_eq!(
                found["qParams"]["pinnedIds"].as_array().map(Vec::len),
                Some(own)
            );
        }
    }
}

#[test]
fn a_folder_lists_its_graphs() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = folder.path().join("graph-metadata.json");
    let read = |file: &str| -> Value {
        let text = fs::read_to_string(folder.path().join(file)).expect("written");
        serde_json::from_str(&text).expect("JSON")
    };
    let graph = TracerGraph::new(&circuit(), &prompt()).expect("valid");
    let others = json!({"graphs": [{"slug": "other", "node_threshold": 0.8}], "more": 1});
    fs::write(&registry, others.to_string()).expect("writable");
    // Twice: the second replaces the first.
    graph.save(folder.path()).expect("writable");
    graph.save(folder.path()).expect("writable");
    assert_eq!(read("ioi-1.json"), parsed(&graph));
    let listed = read("graph-metadata.json");
    let slugs = listed["graphs"].as_array().expect("a list").iter();
    let slugs: Vec<&Value> = slugs.map(|graph| &graph["slug"]).collect();
    assert_eq!(slugs, ["other", "ioi-1"]);
    assert_eq!(listed["graphs"][0]["node_threshold"], 0.8);
    assert_eq!(listed["graphs"][1], parsed(&graph)["metadata"]);
    assert_eq!(listed["more"], 1);

    fs::remove_file(&registry).expect("it is there");
    graph.save(folder.path()).expect("writable");
    assert_eq!(
        read("graph-metadata.json")["graphs"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    for damaged in ["{", "[]", r#"{"graphs": 1}"#] {
        fs::write(&registry, damaged).expect("writable");
        let error = graph.save(folder.path()).expect_err(damaged);
        assert!(matches!(error, CircuitFileError::File { .. }), "{error}");
        assert!(message(&error).contains("graph-metadata.json"), "{error}");
        assert_eq!(fs::read_to_string(&registry).expect("left"), damaged);
    }
}

#[test]
fn what_is_no_graph_is_refused() {
    let refused = |change: &dyn Fn(&mut TracerPrompt)| {
        let mut prompt = prompt();
        change(&mut prompt);
        message(&TracerGraph::new(&circuit(), &prompt).expect_err("refused"))
    };
    for slug in ["", "a/b", "..", "graph-metadata", "é"] {
        let found = refused(&|prompt| prompt.slug = slug.to_owned());
        assert!(found.starts_with("slug: "), "{found}");
    }
    let found = refused(&|prompt| prompt.tokens.truncate(1));
    assert_eq!(found, "tokens: expected at least 2, found 1");
    for probability in [f64::NAN, -0.1, 1.1] {
        let found = refused(&|prompt| prompt.target.probability = probability);
        assert!(found.starts_with("target.probability: "), "{found}");
    }
    let graph = EdgeGraph::new(1, 1, false, 8);
    let mut values = vec![1.0; graph.edge_count()];
    values[3] = f64::NAN;
    let scores = EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN);
    let circuit = Circuit::full(graph).with_scores(&scores.expect("one for each edge"));
    let error = TracerGraph::new(&circuit.expect("of the graph"), &prompt());
    let expected = "links: expected finite scores, found NaN for input->m0";
    assert_eq!(message(&error.expect_err("refused")), expected);
}
