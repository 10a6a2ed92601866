//! Interventions that have no name in pyvene's JSON.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, Indices, Operand, Plan, Units};
use burn_align::interventions::{
    FillIntervention, Intervention, LambdaIntervention, Operands, ScalingIntervention,
};
use burn_align_models::{Component, Site};

use crate::support::{load, max_difference, tokens, values};

on_every_backend!(
    scaling_and_closures_multiply,
    closures_take_sources,
    a_knocked_out_edge_has_no_weight,
);

const SITE: Site = Site::Block(0, Component::MlpOutput);

/// The activation at `SITE`, position 1, under an intervention without a source; and without it.
fn changed<B: Backend, I: Intervention<B>>(
    intervention: I,
    device: &B::Device,
) -> [Tensor<B, 3>; 2] {
    let model = load::<B>("gpt2_plain", device);
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[3, 1, 4]]));
    let clean = plan.world(input, []);
    let edit = Edit::new(SITE, Units::position(1), 0, Operand::None);
    let edited = plan.world(input, [edit.with_features(Indices::Same(vec![2, 5]))]);
    let reads = [edited, clean].map(|world| plan.read(world, SITE, Units::position(1)));
    let results = plan.run(&model, &[intervention]).expect("valid");
    reads.map(|read| results.get(read))
}

fn scaling_and_closures_multiply<B: Backend>(device: &B::Device) {
    let [scaled, clean] = changed::<B, _>(ScalingIntervention { factor: -2.5 }, device);
    let triple = |base: Tensor<B, 3>, _: &Operands<B>| base * -2.5;
    let [by_closure, _] = changed(LambdaIntervention::new(triple), device);
    assert!(max_difference(by_closure, &scaled.to_data()) <= 1e-6);
    for (feature, (scaled, clean)) in values(scaled).iter().zip(values(clean)).enumerate() {
        let factor = if [2, 5].contains(&feature) { -2.5 } else { 1.0 };
        assert!((scaled - factor * clean).abs() <= 1e-5, "feature {feature}");
    }
}

fn closures_take_sources<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let mean = |base: Tensor<B, 3>, operands: &Operands<B>| (base + operands.source()) * 0.5;
    let mut plan = Plan::new();
    let (base, source) = (
        plan.tokens(&tokens(&[&[3, 1, 4]])),
        plan.tokens(&tokens(&[&[5, 9, 2]])),
    );
    let source = plan.world(source, []);
    let clean = plan.world(base, []);
    let edited = plan.world(base, [Edit::from_world(source, SITE, Units::ALL, 0)]);
    let reads = [edited, clean, source].map(|world| plan.read(world, SITE, Units::ALL));
    let results = plan
        .run(&model, &[LambdaIntervention::with_source(mean)])
        .expect("valid");
    let [edited, clean, source] = reads.map(|read| results.get(read));
    let expected = (clean + source) * 0.5;
    assert!(max_difference(edited, &expected.into_data()) <= 1e-6);
}

/// Query position 2 of head 1 loses sight of key position 0; nothing else changes.
fn a_knocked_out_edge_has_no_weight<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(&[&[3, 1, 4], &[7, 7, 2]]));
    let scores = Site::Block(0, Component::AttentionScores);
    let weights = Site::Block(0, Component::AttentionWeights);
    let edge = Edit::new(scores, Units::position(2).of_head(1), 0, Operand::None)
        .with_features(Indices::Same(vec![0]));
    let worlds = [plan.world(input, [edge]), plan.world(input, [])];
    let reads = worlds.map(|world| plan.read(world, weights, Units::ALL));
    let results = plan
        .run(&model, &[FillIntervention::KNOCK_OUT])
        .expect("valid");
    let [knocked_out, clean] = reads.map(|read| values(results.get(read)));
    // [batch, q_pos, head * k_pos], four heads and three key positions
    for (index, (after, before)) in knocked_out.iter().zip(&clean).enumerate() {
        let (q_pos, head, k_pos) = (index / 12 % 3, index % 12 / 3, index % 3);
        if (q_pos, head) != (2, 1) {
            let place = format!("query {q_pos}, head {head}, key {k_pos}");
            assert!((after - before).abs() <= 1e-6, "{place}");
        } else if k_pos == 0 {
            assert!(
                *before > 1e-6 && *after <= 1e-12,
                "before {before}, after {after}"
            );
            let rest: f32 = knocked_out[index + 1..index + 3].iter().sum();
            assert!((rest - 1.0).abs() <= 1e-5, "the rest has {rest}");
        }
    }
}
