//! What cannot be scored, and why.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::{AttributionError, LogitDifference, Metric, Patching};
use burn_align::methods::circuits::{
    CircuitError, Edge, EdgeOptions, clean_corrupted, eap, eap_ig_activations, eap_ig_inputs,
    information_flow_routes, patch_all_edges, patch_edges,
};

use super::{base, metric, noising};
use crate::support::{load, message, tokens};

on_every_backend!(
    prompts_and_metrics_that_do_not_fit_are_refused,
    options_and_edges_that_do_not_exist_are_refused,
    a_metric_that_overflows_is_named,
);

fn prompts_and_metrics_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let options = EdgeOptions::default();
    let refused = |patching: &Patching<B>, metric: &LogitDifference| {
        let found = [
            eap(&model, patching, metric, &options),
            eap_ig_inputs(&model, patching, metric, &options),
            eap_ig_activations(&model, patching, metric, &options),
            clean_corrupted(&model, patching, metric, &options),
            patch_all_edges(&plain, patching, metric, &options),
        ];
        let messages = found.map(|found| message(&found.expect_err("refused")));
        let [first, ..] = &messages;
        assert!(messages.iter().all(|other| other == first), "{messages:?}");
        first.clone()
    };
    let shorter = Patching::noising(base(), tokens(&[&[1, 2, 3, 4, 5], &[1, 2, 3]]));
    assert_eq!(
        refused(&shorter, &metric()),
        "example 1: the base has 5 positions, the source 3; nodes are compared position by \
         position: use prompts with equally many tokens"
    );
    let fewer = Patching::noising(base(), tokens(&[&[1, 2, 3, 4, 5]]));
    assert!(refused(&fewer, &metric()).contains("found 2 and 1"));
    let unknown = LogitDifference::new([5, 41], [17, 2]);
    assert_eq!(
        refused(&noising(), &unknown),
        "metric: tokens: expected ids below 41, found 41"
    );
}

fn options_and_edges_that_do_not_exist_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let none = EdgeOptions::default().with_steps(0);
    let found = [
        eap_ig_inputs(&model, &noising(), &metric(), &none),
        eap_ig_activations(&model, &noising(), &metric(), &none),
    ];
    for found in found {
        assert_eq!(
            message(&found.expect_err("refused")),
            "expected at least one step, found none"
        );
    }
    assert!(eap(&model, &noising(), &metric(), &none).is_ok());

    let small = EdgeOptions::default().with_run(RunOptions::default().with_memory_budget(9));
    let found = [
        eap(&model, &noising(), &metric(), &small),
        information_flow_routes(&plain, base(), &small),
        patch_all_edges(&plain, &noising(), &metric(), &small),
    ];
    for found in found {
        let found = found.expect_err("refused");
        assert!(
            matches!(
                found,
                CircuitError::Attribution(AttributionError::MemoryBudget { budget: 9, .. })
            ),
            "{found}"
        );
    }

    let options = EdgeOptions::default();
    let patch = |edges: &[Edge]| {
        let found = patch_edges(&plain, &noising(), edges, &metric(), &options);
        message(&found.expect_err("refused"))
    };
    assert_eq!(patch(&[]), "expected at least one edge, found none");
    let backward = Edge {
        writer: 3,
        reader: 0,
    };
    assert_eq!(
        patch(&[backward]),
        "writer 3, reader 0: the graph has 11 writers and 27 readers, and a reader has edges from \
         the writers before it only; see EdgeGraph::before"
    );
}

/// One logit, divided by zero in one of the examples.
struct Overflowing;

impl Metric for Overflowing {
    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
        let [batch, unit, vocab] = logits.dims();
        let first = logits.reshape([batch, unit * vocab]).narrow(1, 0, 1);
        let factors = examples.iter().map(|example| match example {
            1 => f32::INFINITY,
            _ => 1.0,
        });
        let factors: Vec<f32> = factors.collect();
        let factors = Tensor::<B, 1>::from_floats(&factors[..], &first.device());
        first.reshape([batch]) * factors
    }
}

fn a_metric_that_overflows_is_named<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let options = EdgeOptions::default();
    let found = eap(&model, &noising(), &Overflowing, &options).expect_err("refused");
    assert!(
        matches!(
            found,
            CircuitError::Attribution(AttributionError::NotFinite { example: 1, .. })
        ),
        "{found}"
    );
    let found = patch_all_edges(&plain, &noising(), &Overflowing, &options);
    let found = found.expect_err("refused");
    assert!(matches!(found, CircuitError::NotFinite { .. }), "{found}");
}
