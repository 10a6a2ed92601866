//! What cannot be attributed, and why.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::engine::{PlanError, RunOptions, Units};
use burn_align::methods::attribution::{
    AtpOptions, AttributionError, IntegrationOptions, LogitDifference, NodeEffects, PatchDirection,
    Patching, Steps, SubsetOptions, attribution_patching, bound_missed, compare,
    integrated_gradients, patch_nodes, site_gradients,
};
use burn_align_models::{Component, Site};

use super::{base, block, metric, noising, source};
use crate::support::{load, message, tokens};

on_every_backend!(
    wrong_nodes_and_prompts_are_refused,
    wrong_options_are_refused
);

fn nodes() -> Vec<(Site, Units)> {
    vec![(block(1, Component::MlpOutput), Units::position(3))]
}

fn wrong_nodes_and_prompts_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let run = RunOptions::default();
    let estimate = |patching: &Patching<B>, nodes: &[(Site, Units)], metric: &LogitDifference| {
        let options = AtpOptions::default();
        let found = attribution_patching(&model, patching, nodes, metric, &options);
        let exact = patch_nodes(&plain, patching, nodes, metric, &run);
        let (found, exact) = (found.expect_err("refused"), exact.expect_err("refused"));
        assert_eq!(message(&found), message(&exact));
        found
    };
    assert_eq!(
        message(&estimate(&noising(), &[], &metric())),
        "expected at least one node, found none"
    );
    let nowhere = vec![(block(7, Component::MlpOutput), Units::ALL)];
    assert!(matches!(
        estimate(&noising(), &nowhere, &metric()),
        AttributionError::Plan(PlanError::NoSuchSite { .. })
    ));
    let late = vec![(block(1, Component::MlpOutput), Units::position(9))];
    assert!(matches!(
        estimate(&noising(), &late, &metric()),
        AttributionError::Plan(PlanError::PositionOutOfRange { found: 9, .. })
    ));
    let fewer = Patching::noising(base(), tokens(&[&[1, 2, 3, 4, 5]]));
    assert!(matches!(
        estimate(&fewer, &nodes(), &metric()),
        AttributionError::Batches {
            base: 2,
            source_batch: 1
        }
    ));
    let shorter = Patching::noising(base(), tokens(&[&[1, 2, 3, 4, 5], &[1, 2, 3]]));
    assert_eq!(
        message(&estimate(&shorter, &nodes(), &metric())),
        "example 1: the base has 5 positions, the source 3; nodes are compared position by \
         position: use prompts with equally many tokens"
    );
    let unknown = LogitDifference::new([5, 41], [17, 2]);
    assert_eq!(
        message(&estimate(&noising(), &nodes(), &unknown)),
        "metric: tokens: expected ids below 41, found 41"
    );
    let many = LogitDifference::new([5], [17, 2, 3]);
    assert_eq!(
        message(&estimate(&noising(), &nodes(), &many)),
        "metric: other tokens: expected one for each of 2 examples, or one for all, found 3"
    );
    let gradients = site_gradients(&model, source(), &nodes(), &unknown, &run);
    assert!(matches!(gradients, Err(AttributionError::Metric { .. })));
}

fn wrong_options_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let plain = load::<B>("gpt2_plain", device);
    let run = RunOptions::default();
    let none = RunOptions::default().with_max_rows(0);
    let found = site_gradients(&model, base(), &nodes(), &metric(), &none);
    assert!(matches!(
        found,
        Err(AttributionError::Plan(PlanError::RowBudget {
            max_rows: 0,
            ..
        }))
    ));
    let options = IntegrationOptions::default().with_steps(Steps::midpoint(0));
    let found = integrated_gradients(&model, &noising(), &nodes(), &metric(), &options);
    let found = found.expect_err("refused");
    assert_eq!(message(&found), "expected at least one step, found none");
    for (options, expected) in [
        (
            SubsetOptions::default().with_samples(3),
            "samples: expected at least 4 subsets, found 3",
        ),
        (
            SubsetOptions::default().with_probability(1.0),
            "probability: expected a number between 0 and 1, both excluded, found 1",
        ),
        (
            SubsetOptions::default().with_confidence(f64::NAN),
            "confidence: expected a number between 0 and 1, both excluded, found NaN",
        ),
    ] {
        let found = bound_missed(&plain, &noising(), &nodes(), &[], &metric(), &options);
        assert_eq!(message(&found.expect_err("refused")), expected);
    }
    let options = SubsetOptions::default();
    let found = bound_missed(&plain, &noising(), &nodes(), &[1], &metric(), &options);
    assert_eq!(
        message(&found.expect_err("refused")),
        "verified: expected indices of the nodes, found 1, of 1 nodes"
    );
    let exact = patch_nodes(&plain, &noising(), &nodes(), &metric(), &run).expect("valid");
    let other = NodeEffects {
        direction: PatchDirection::Noising,
        effects: Vec::new(),
        ..exact.clone()
    };
    let found = compare(&other, &exact).expect_err("refused");
    assert_eq!(
        message(&found),
        "expected effects of the same nodes, found 0 and 1 of them"
    );
}
