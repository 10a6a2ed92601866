//! Circuits that are learned: edge by edge, and by gradients of weights.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, activation, backend::Backend};
use burn_align::engine::{LogitPositions, RunOptions};
use burn_align::methods::circuits::{
    AcdcOptions, Circuit, CircuitAblation, CircuitError, EdgeMasking, EdgePruningOptions,
    LearnedEdges, UniformSamplingOptions, acdc, edge_pruning, uniform_gradient_sampling,
};
use burn_align_models::Decoder;

use super::noising;
use crate::support::{load, values};

on_every_backend!(
    edges_are_taken_out_as_one_by_one,
    gates_reach_the_share_that_is_asked_for,
    probabilities_fall_by_what_edges_cost,
    settings_out_of_range_are_refused,
);

/// The mean of `KL(model ‖ circuit)` over examples.
fn divergence<B: Backend>(masking: &EdgeMasking<B, Decoder<B>>, circuit: &Circuit) -> f64 {
    let log_p = activation::log_softmax(masking.base_logits(), 2);
    let logits = masking.logits_of(std::slice::from_ref(circuit));
    let log_q = activation::log_softmax(logits.expect("of the model"), 2);
    let each: Tensor<B, 3> = (log_p.clone().exp() * (log_p - log_q)).sum_dim(2);
    f64::from(values(each.mean())[0])
}

fn edges_are_taken_out_as_one_by_one<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "gpt_neox_plain", "gemma2_plain"] {
        let model = load::<B>(name, device);
        let patching = noising::<B>();
        let options = RunOptions::default();
        let masking = EdgeMasking::new(
            &model,
            &patching,
            CircuitAblation::Counterfactual,
            &LogitPositions::Last,
            &options,
        );
        let masking = masking.expect("the prompts fit");
        let none = Circuit::empty(masking.graph().clone());
        // A threshold of this size leaves some edges, and takes some out.
        let threshold = divergence(&masking, &none) / 50.0;
        let find = |at_once| {
            let options = AcdcOptions::default()
                .with_threshold(threshold)
                .with_at_once(at_once);
            acdc(&model, &patching, &options).expect("the prompts fit")
        };
        let (alone, together) = (find(1), find(8));
        assert_eq!(alone.runs, alone.circuit.members().len(), "{name}");
        let edges = alone.circuit.edge_count();
        assert!(0 < edges && edges < alone.runs, "{name}: {edges} edges");
        let found = alone
            .circuit
            .jaccard(&together.circuit)
            .expect("of one graph");
        // Values at the threshold may fall on either side.
        assert!(found > 0.9, "{name}: similarity {found}");
        let expected = divergence(&masking, &alone.circuit);
        let scale = divergence(&masking, &none);
        let off = (alone.loss - expected).abs();
        assert!(off <= 1e-2 * scale + 1e-6, "{name}: {off} of {scale}");

        let all = AcdcOptions::default().with_threshold(f64::INFINITY);
        let found = acdc(&model, &patching, &all).expect("the prompts fit");
        assert_eq!(found.circuit, none, "{name}");
    }
}

fn assert_weights(what: &str, found: &LearnedEdges) {
    let weights = found.scores.values();
    assert!(weights.iter().all(|it| (0.0..=1.0).contains(it)), "{what}");
    let differ = weights.iter().any(|it| (it - weights[0]).abs() > 1e-3);
    assert!(differ, "{what}: all weights are {}", weights[0]);
}

fn gates_reach_the_share_that_is_asked_for<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let batches = [noising::<B>()];
    let options = EdgePruningOptions::default()
        .with_sparsity(0.8)
        .with_steps(100, 50);
    let found = edge_pruning(&model, &batches, &options).expect("the prompts fit");
    assert_weights("edge pruning", &found);
    assert_eq!(found.history.len(), 100);
    let [first, last] = [found.history[0], found.history[99]].map(|step| step.edges);
    assert!(first > 0.9, "gates begin open: {first}");
    assert!((last - 0.2).abs() < 0.15, "{last} of the gates are open");
    // Seeds say what is drawn.
    let short = options.with_steps(3, 2);
    let once = edge_pruning(&model, &batches, &short).expect("the prompts fit");
    let again = edge_pruning(&model, &batches, &short).expect("the prompts fit");
    assert_eq!(once, again);
    let other = short.with_seed(1);
    let other = edge_pruning(&model, &batches, &other).expect("the prompts fit");
    assert_ne!(once, other);
}

fn probabilities_fall_by_what_edges_cost<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("llama_gqa", device);
    let batches = [noising::<B>(), noising::<B>()];
    let sum = |cost| {
        let options = UniformSamplingOptions::default()
            .with_cost(cost)
            .with_steps(20)
            .with_samples(2);
        let found = uniform_gradient_sampling(&model, &batches, &options);
        let found = found.expect("the prompts fit");
        assert!(found.history.iter().all(|step| step.divergence >= -1e-5));
        assert!(
            found
                .scores
                .values()
                .iter()
                .all(|it| (0.0..=1.0).contains(it))
        );
        found.scores.values().iter().sum::<f64>()
    };
    let (dear, cheap) = (sum(10.0), sum(1e-9));
    assert!(dear < cheap, "{dear}, {cheap}");
    let options = UniformSamplingOptions::default().with_steps(3);
    let once = uniform_gradient_sampling(&model, &batches, &options);
    let again = uniform_gradient_sampling(&model, &batches, &options);
    assert_eq!(once.expect("fits"), again.expect("fits"));
}

fn settings_out_of_range_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let batches = [noising::<B>()];
    for options in [
        EdgePruningOptions::default().with_sparsity(1.0),
        EdgePruningOptions::default().with_steps(0, 0),
        EdgePruningOptions::default().with_learning_rate(f64::NAN),
    ] {
        let error = edge_pruning(&model, &batches, &options).expect_err("out of range");
        assert!(matches!(error, CircuitError::Setting { .. }), "{error}");
    }
    let options = UniformSamplingOptions::default().with_samples(0);
    let error = uniform_gradient_sampling(&model, &batches, &options);
    let error = error.expect_err("out of range");
    assert!(matches!(error, CircuitError::Setting { .. }), "{error}");
    let options = EdgePruningOptions::default();
    let error = edge_pruning(&model, &[], &options).expect_err("no batch");
    assert!(matches!(error, CircuitError::Nothing { .. }), "{error}");
    let plain = load::<B>("gpt2_plain", device);
    let options = AcdcOptions::default().with_threshold(f64::NAN);
    let error = acdc(&plain, &noising(), &options).expect_err("no number");
    assert!(matches!(error, CircuitError::Setting { .. }), "{error}");
}
