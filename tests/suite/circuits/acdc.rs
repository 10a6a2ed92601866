//! Automatic circuit discovery by a metric, beside a loop over edges.

use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::{AttributionError, LogitDifference, Metric};
use burn_align::methods::circuits::{
    Acdc, AcdcOptions, Circuit, CircuitAblation, CircuitError, Edge, EdgeGraph, MetricLoss,
    acdc_by_metric, evaluate_circuits,
};
use burn_align_models::Decoder;

use super::{metric, noising};
use crate::support::{Everywhere, load};

on_every_backend!(
    a_metric_takes_out_edges_as_a_loop_does,
    ablations_and_positions_are_those_of_the_options,
    metrics_and_settings_that_do_not_fit_are_refused,
);

const LOSSES: [MetricLoss; 2] = [MetricLoss::Negative, MetricLoss::Deviation];

/// A model, a metric, and the loss of circuits by definition.
struct Task<'a, B: Backend, T> {
    model: &'a Decoder<B>,
    metric: &'a T,
    ablation: CircuitAblation,
}

impl<B: Backend, T: Metric> Task<'_, B, T> {
    fn loss(&self, circuit: &Circuit, loss: MetricLoss) -> f64 {
        let circuits = [circuit.clone()];
        let options = RunOptions::default();
        let patching = noising::<B>();
        let values = evaluate_circuits(
            self.model,
            &patching,
            &circuits,
            self.ablation,
            self.metric,
            &options,
        );
        let values = values.expect("valid");
        let pairs = values.circuits[0].iter().zip(&values.base);
        let losses = pairs.map(|(value, base)| match loss {
            MetricLoss::Deviation => (base - value).abs(),
            _ => -value,
        });
        losses.sum::<f64>() / values.base.len() as f64
    }

    fn found(&self, loss: MetricLoss, threshold: f64, at_once: usize) -> Acdc {
        let options = AcdcOptions::default()
            .with_threshold(threshold)
            .with_at_once(at_once)
            .with_ablation(self.ablation);
        acdc_by_metric(self.model, &noising(), self.metric, loss, &options).expect("valid")
    }

    /// Follows the edges that were taken out. Wherever an edge is not at the threshold, whether it
    /// went is checked.
    #[track_caller]
    fn check(&self, loss: MetricLoss, found: &Acdc, threshold: f64, what: &str) {
        let graph = found.circuit.graph();
        let mut circuit = Circuit::full(graph.clone());
        let mut current = self.loss(&circuit, loss);
        let mut near = 0;
        for reader in (0..graph.readers().len()).rev() {
            for writer in (0..graph.before(reader)).rev() {
                let edge = Edge { writer, reader };
                let without = circuit.clone().with_edge(edge, false);
                let without = without.expect("an edge of the graph");
                let after = self.loss(&without, loss);
                let goes = !found.circuit.contains(edge);
                let growth = after - current;
                if (growth - threshold).abs() > 1e-2 * threshold {
                    let name = graph.name(edge);
                    assert_eq!(goes, growth < threshold, "{what}, {name}: {growth}");
                } else {
                    near += 1;
                }
                if goes {
                    (circuit, current) = (without, after);
                }
            }
        }
        assert!(near < 3, "{what}: {near} edges are at the threshold");
        assert_eq!(circuit, found.circuit, "{what}");
        let off = (current - found.loss).abs();
        assert!(off < 1e-4, "{what}: {current} and {}", found.loss);
    }
}

/// A threshold that leaves some edges, and takes some out.
fn threshold<B: Backend, T: Metric>(task: &Task<'_, B, T>, graph: &EdgeGraph) -> f64 {
    let none = Circuit::empty(graph.clone());
    task.loss(&none, MetricLoss::Deviation) / 10.0
}

fn a_metric_takes_out_edges_as_a_loop_does<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "gpt_neox_plain"] {
        let model = load::<B>(name, device);
        let graph = EdgeGraph::of(&model).expect("it has heads");
        let task = Task {
            model: &model,
            metric: &metric(),
            ablation: CircuitAblation::Counterfactual,
        };
        let threshold = threshold(&task, &graph);
        for loss in LOSSES {
            let what = format!("{name}, {loss:?}");
            let alone = task.found(loss, threshold, 1);
            assert_eq!(alone.runs, graph.edge_count(), "{what}");
            assert!(alone.circuit.edge_count() < alone.runs, "{what}");
            task.check(loss, &alone, threshold, &what);
            let together = task.found(loss, threshold, 8);
            task.check(loss, &together, threshold, &what);
        }
        // An edge that works against the metric stays only if every change counts.
        let [negative, deviation] = LOSSES.map(|loss| task.found(loss, threshold, 8));
        assert!(deviation.circuit.edge_count() > 0, "{name}");
        assert_ne!(negative.circuit, deviation.circuit, "{name}");
    }
}

/// Means in place of the source, and a metric of all positions.
fn ablations_and_positions_are_those_of_the_options<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let graph = EdgeGraph::of(&model).expect("it has heads");
    let task = Task {
        model: &model,
        metric: &Everywhere,
        ablation: CircuitAblation::Mean,
    };
    let threshold = threshold(&task, &graph);
    let found = task.found(MetricLoss::Deviation, threshold, 8);
    assert!(found.circuit.edge_count() > 0);
    task.check(
        MetricLoss::Deviation,
        &found,
        threshold,
        "mean, all positions",
    );
    // Nothing is kept at any price.
    let none = task.found(MetricLoss::Deviation, f64::INFINITY, 8);
    assert_eq!(none.circuit, Circuit::empty(graph));
}

fn metrics_and_settings_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let refused = |metric: &LogitDifference, options: &AcdcOptions| {
        let found = acdc_by_metric(&model, &noising(), metric, MetricLoss::Negative, options);
        found.expect_err("refused")
    };
    let defaults = AcdcOptions::default();
    let error = refused(&LogitDifference::new([5, 41], [17, 2]), &defaults);
    assert!(
        matches!(
            error,
            CircuitError::Attribution(AttributionError::Metric { .. })
        ),
        "{error}"
    );
    for options in [
        defaults.clone().with_threshold(f64::NAN),
        defaults.with_at_once(0),
    ] {
        let error = refused(&metric(), &options);
        assert!(matches!(error, CircuitError::Setting { .. }), "{error}");
    }
}
