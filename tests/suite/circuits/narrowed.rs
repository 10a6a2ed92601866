//! Metrics that read a few logits are what they are where all logits are computed.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{LogitPositions, RunOptions};
use burn_align::methods::attribution::{AttributionError, LogitDifference, Metric, Patching};
use burn_align::methods::circuits::{
    Circuit, CircuitAblation, Edge, EdgeGraph, EdgeOptions, evaluate_circuits, patch_edges,
};

use super::{assert_scores, noising, ragged, ragged_metric};
use crate::support::{FAMILIES, load};

on_every_backend!(
    a_difference_needs_two_logits,
    positions_of_each_example_are_read,
);

/// A metric of which it is not known what it reads.
struct Whole<T>(T);

impl<T: Metric> Metric for Whole<T> {
    fn positions(&self) -> LogitPositions {
        self.0.positions()
    }

    fn check(&self, batch: usize, vocab: usize) -> Result<(), AttributionError> {
        self.0.check(batch, vocab)
    }

    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
        self.0.values(logits, examples)
    }
}

/// A metric that refuses to read all logits.
struct Few<T> {
    metric: T,
    is_narrowed: bool,
}

impl<T: Metric> Metric for Few<T> {
    fn positions(&self) -> LogitPositions {
        self.metric.positions()
    }

    fn check(&self, batch: usize, vocab: usize) -> Result<(), AttributionError> {
        self.metric.check(batch, vocab)
    }

    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
        assert!(self.is_narrowed, "all logits were computed");
        self.metric.values(logits, examples)
    }

    fn narrowed(&self) -> Option<(Vec<u32>, Self)> {
        let (tokens, metric) = self.metric.narrowed()?;
        let narrowed = Self {
            metric,
            is_narrowed: true,
        };
        Some((tokens, narrowed))
    }
}

/// The logit of a token at some positions of each example, less twice that of another.
#[derive(Clone)]
struct AtPositions {
    tokens: [usize; 2],
    positions: LogitPositions,
}

impl Metric for AtPositions {
    fn positions(&self) -> LogitPositions {
        self.positions.clone()
    }

    fn values<B: Backend>(&self, logits: Tensor<B, 3>, _examples: &[usize]) -> Tensor<B, 1> {
        let [batch, _unit, _token] = logits.dims();
        let [token, other] = self.tokens;
        let of = |token| logits.clone().narrow(2, token, 1);
        let values = of(token) - of(other) * 2.0;
        values.sum_dim(1).reshape([batch])
    }

    fn narrowed(&self) -> Option<(Vec<u32>, Self)> {
        let narrowed = Self {
            tokens: [0, 1],
            positions: self.positions.clone(),
        };
        Some((self.tokens.map(|token| token as u32).to_vec(), narrowed))
    }
}

/// Patches some edges, and evaluates some circuits, by a few logits and by all.
#[track_caller]
fn assert_same<B: Backend, T: Metric + Clone>(
    name: &str,
    device: &B::Device,
    patching: &Patching<B>,
    metric: T,
) {
    let model = load::<B>(name, device);
    let graph = EdgeGraph::of::<B, _>(&model).expect("a graph");
    let count = graph.edge_count();
    let indices = (0..count).step_by(count.div_ceil(40));
    let edges = indices.map(|index| graph.edge(index).expect("an edge"));
    // The last one leads to the logits.
    let last = graph.edge(count - 1).expect("an edge");
    let edges: Vec<Edge> = edges.chain([last]).collect();
    let circuits = [0, 3, 5].map(|period| {
        let members = (0..count).map(|edge| period > 0 && edge % period > 0);
        Circuit::from_members(graph.clone(), members.collect()).expect("as many as edges")
    });
    let few = Few {
        metric: metric.clone(),
        is_narrowed: false,
    };
    let whole = Whole(metric);
    let (edge_options, run) = (EdgeOptions::default(), RunOptions::default());
    let patched = [
        patch_edges(&model, patching, &edges, &few, &edge_options),
        patch_edges(&model, patching, &edges, &whole, &edge_options),
    ];
    let [found, expected] = patched.map(|values| values.expect("valid"));
    assert_scores(&found, &expected, 1e-4, name);
    let ablation = CircuitAblation::Counterfactual;
    let evaluated = [
        evaluate_circuits(&model, patching, &circuits, ablation, &few, &run),
        evaluate_circuits(&model, patching, &circuits, ablation, &whole, &run),
    ];
    let values = evaluated.map(|values| {
        let values = values.expect("valid");
        let circuits = values.circuits.concat();
        [values.base, values.ablated, circuits].concat()
    });
    let [found, expected] = values;
    assert_scores(&found, &expected, 1e-5, name);
}

fn a_difference_needs_two_logits<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        assert_same(name, device, &ragged::<B>(), ragged_metric());
    }
    let pair = LogitDifference::new([5], [17]);
    assert_same("gemma2_plain", device, &noising::<B>(), pair);
}

fn positions_of_each_example_are_read<B: Backend>(device: &B::Device) {
    let each = LogitPositions::Each(vec![vec![4, 1], vec![2, 3]]);
    for positions in [each, LogitPositions::All, LogitPositions::Last] {
        for name in ["gpt2_plain", "gemma2_plain", "phi_plain"] {
            let positions = positions.clone();
            let metric = AtPositions {
                tokens: [17, 5],
                positions,
            };
            assert_same(name, device, &noising::<B>(), metric);
        }
    }
}
