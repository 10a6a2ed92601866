//! A circuit that is known: an induction circuit of two heads and an MLP in a small GPT-2, among
//! heads and MLPs that do nothing for it; see `tests/fixtures/make_planted.py`.

use std::fs;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::{LogitDifference, Patching};
use burn_align::methods::circuits::{
    AcdcOptions, Circuit, CircuitAblation, EdgeChoice, EdgeGraph, EdgeOptions, EdgeRanking,
    EdgeScores, MetricLoss, acdc, acdc_by_metric, auroc, eap, eap_ig_inputs, evaluate_circuits,
    patch_all_edges,
};
use burn_align_models::{Decoder, FromPretrained, LoadOptions, TokenBatch};
use serde::Deserialize;

use crate::support::fixtures;

on_every_backend!(
    scores_find_the_circuit,
    the_circuit_does_what_the_model_does,
    acdc_leaves_the_circuit,
);

#[derive(Deserialize)]
struct Prompts {
    clean: Vec<Vec<u32>>,
    corrupt: Vec<Vec<u32>>,
    tokens: Vec<u32>,
    others: Vec<u32>,
    edges: Vec<String>,
}

/// The model, its prompts, and the circuit.
struct Planted<B: Backend> {
    model: Decoder<B>,
    prompts: Prompts,
    known: Circuit,
}

impl<B: Backend> Planted<B> {
    fn load(device: &B::Device) -> Self {
        let folder = fixtures().join("planted");
        let json = fs::read_to_string(folder.join("prompts.json")).expect("the fixture");
        let prompts: Prompts = serde_json::from_str(&json).expect("the fixture");
        let loaded =
            Decoder::<B>::from_pretrained(folder.as_path(), &LoadOptions::default(), device);
        let model = loaded.expect("the fixture loads").model;
        let graph = EdgeGraph::of(&model).expect("it has heads");
        let edges = prompts.edges.iter();
        let edges: Vec<_> = edges
            .map(|name| graph.parse(name).expect("an edge"))
            .collect();
        let known = Circuit::of(graph, edges).expect("edges of the graph");
        Self {
            model,
            prompts,
            known,
        }
    }

    fn metric(&self) -> LogitDifference {
        LogitDifference::new(self.prompts.tokens.clone(), self.prompts.others.clone())
    }

    /// On this backend, or the one below it.
    fn patching<C: Backend>(&self) -> Patching<C> {
        let batch = |rows: &[Vec<u32>]| TokenBatch::new(rows.to_vec()).expect("a batch");
        Patching::noising(batch(&self.prompts.clean), batch(&self.prompts.corrupt))
    }

    fn found(&self, scores: &EdgeScores) -> f64 {
        let area = auroc(scores, EdgeRanking::Absolute, &self.known);
        area.expect("of one graph").expect("some edges are in it")
    }
}

/// Exact scores and integrated gradients do. Gradients at the prompt miss the edges into saturated
/// attention.
fn scores_find_the_circuit<B: Backend>(device: &B::Device) {
    let planted = Planted::<Autodiff<B>>::load(device);
    let metric = planted.metric();
    let patching = planted.patching::<B>();
    let options = EdgeOptions::default();
    let plain = planted.model.valid();
    let exact = patch_all_edges(&plain, &patching, &metric, &options).expect("valid");
    let found = planted.found(&exact);
    assert!(found > 0.99, "exact: {found}");
    let integrated = eap_ig_inputs(&planted.model, &patching, &metric, &options).expect("valid");
    let found = planted.found(&integrated);
    assert!(found > 0.95, "EAP-IG: {found}");
    let at_prompt = eap(&planted.model, &patching, &metric, &options).expect("valid");
    let found = planted.found(&at_prompt);
    assert!((0.7..0.9).contains(&found), "EAP: {found}");

    // As many edges as the circuit has are the circuit.
    let choice = EdgeChoice::TopN {
        edges: planted.known.edge_count(),
        by: EdgeRanking::Absolute,
    };
    for scores in [&exact, &integrated] {
        let chosen = Circuit::choose(scores, choice).expect("fewer than all");
        assert_eq!(chosen.members(), planted.known.members());
    }
}

fn the_circuit_does_what_the_model_does<B: Backend>(device: &B::Device) {
    let planted = Planted::<B>::load(device);
    let known = &planted.known;
    // Without any one of its edges, it is broken.
    let broken = known.edges().map(|edge| {
        let without = known.clone().with_edge(edge, false);
        without.expect("an edge of the graph")
    });
    let circuits: Vec<Circuit> = [known.clone()].into_iter().chain(broken).collect();
    let values = evaluate_circuits(
        &planted.model,
        &planted.patching(),
        &circuits,
        CircuitAblation::Counterfactual,
        &planted.metric(),
        &RunOptions::default(),
    );
    let values = values.expect("valid");
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (base, ablated) = (mean(&values.base), mean(&values.ablated));
    let faithfulness = values.circuits.iter();
    let faithfulness: Vec<f64> = faithfulness
        .map(|values| (mean(values) - ablated) / (base - ablated))
        .collect();
    let (whole, broken) = faithfulness.split_first().expect("the circuit");
    assert!((0.8..1.2).contains(whole), "{whole}");
    let graph = known.graph();
    for (edge, without) in known.edges().zip(broken) {
        assert!(*without < whole - 0.15, "{}: {without}", graph.name(edge));
    }
}

fn acdc_leaves_the_circuit<B: Backend>(device: &B::Device) {
    let planted = Planted::<B>::load(device);
    let (model, patching) = (&planted.model, planted.patching::<B>());
    let metric = planted.metric();
    let by_metric = |loss: MetricLoss| {
        let options = AcdcOptions::default().with_threshold(0.1);
        acdc_by_metric(model, &patching, &metric, loss, &options).expect("valid")
    };
    let by_divergence = acdc(model, &patching, &AcdcOptions::default()).expect("valid");
    for (what, found) in [
        ("divergence", by_divergence),
        ("negative", by_metric(MetricLoss::Negative)),
        ("deviation", by_metric(MetricLoss::Deviation)),
    ] {
        let names = |circuit: &Circuit| -> Vec<String> {
            let edges = circuit.edges();
            edges.map(|edge| circuit.graph().name(edge)).collect()
        };
        assert_eq!(names(&found.circuit), names(&planted.known), "{what}");
    }
}
