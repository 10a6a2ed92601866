//! Interventions without a name in pyvene's JSON.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, Indices, Operand, Plan, Units};
use burn_align::front::{
    AlignableConfig, AlignableModel, AlignableRepresentationConfig, Locations,
};
use burn_align::interventions::{
    BuiltinIntervention, FillIntervention, Intervention, LambdaIntervention, Operands,
    ScalingIntervention, SubtractionIntervention, VanillaIntervention,
};
use burn_align_models::{Component, Site};

use crate::support::{load, max_difference, tokens, values};

on_every_backend!(
    scaling_and_closures_multiply,
    closures_take_sources,
    closures_stand_beside_others,
    gradients_flow_through_closures,
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
    let triple = LambdaIntervention::<B>::new(|base, _| base * -2.5);
    let [by_closure, _] = changed(triple, device);
    assert!(max_difference(by_closure, &scaled.to_data()) <= 1e-6);
    for (feature, (scaled, clean)) in values(scaled).iter().zip(values(clean)).enumerate() {
        let factor = if [2, 5].contains(&feature) { -2.5 } else { 1.0 };
        assert!((scaled - factor * clean).abs() <= 1e-5, "feature {feature}");
    }
}

fn closures_take_sources<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let mean = LambdaIntervention::with_source(|base, operands| (base + operands.source()) * 0.5);
    let mut plan = Plan::new();
    let (base, source) = (
        plan.tokens(&tokens(&[&[3, 1, 4]])),
        plan.tokens(&tokens(&[&[5, 9, 2]])),
    );
    let source = plan.world(source, []);
    let clean = plan.world(base, []);
    let edited = plan.world(base, [Edit::from_world(source, SITE, Units::ALL, 0)]);
    let reads = [edited, clean, source].map(|world| plan.read(world, SITE, Units::ALL));
    let results = plan.run(&model, &[mean]).expect("valid");
    let [edited, clean, source] = reads.map(|read| results.get(read));
    let expected = (clean + source) * 0.5;
    assert!(max_difference(edited, &expected.into_data()) <= 1e-6);
}

/// Two closures and a swap in one model, in one run.
fn closures_stand_beside_others<B: Backend>(device: &B::Device) {
    let at = |layer| AlignableRepresentationConfig::new(layer, Component::MlpOutput);
    let factor = 0.5;
    let interventions: Vec<BuiltinIntervention<B>> = vec![
        LambdaIntervention::new(move |base, _| base * factor).into(),
        VanillaIntervention.into(),
        LambdaIntervention::with_source(|base, operands| base - operands.source()).into(),
    ];
    let same: Vec<BuiltinIntervention<B>> = vec![
        ScalingIntervention { factor }.into(),
        VanillaIntervention.into(),
        SubtractionIntervention.into(),
    ];
    let config = AlignableConfig::new([at(0), at(0), at(1)]);
    let side = Locations::each([Some(0), Some(1), Some(2)]);
    let [found, expected] = [interventions, same].map(|interventions| {
        let model = load::<B>("gpt2_plain", device);
        let model = AlignableModel::with_interventions(config.clone(), model, interventions);
        let model = model.expect("it fits");
        let [base, source] = [tokens(&[&[3, 1, 4]]), tokens(&[&[5, 9, 2]])];
        let output = model.forward(&base, &[source], side.clone());
        output.expect("right").counterfactual
    });
    assert!(max_difference(found, &expected.into_data()) <= 1e-6);
}

fn gradients_flow_through_closures<B: Backend>(device: &B::Device) {
    type A<B> = Autodiff<B>;
    let square = BuiltinIntervention::<A<B>>::from(LambdaIntervention::with_source(
        |base: Tensor<A<B>, 3>, operands: &Operands<A<B>>| base * operands.source().powi_scalar(2),
    ));
    let number = |value: f32| Tensor::<A<B>, 3>::full([1, 1, 1], value, device);
    // Converted to the inner backend and back, it is the same function.
    let inner = square.valid();
    let operands = Operands::new(Some(number(3.0).inner()), None);
    assert_eq!(values(inner.apply(number(2.0).inner(), operands)), [18.0]);
    for square in [square.clone(), AutodiffModule::from_inner(inner)] {
        let source = number(3.0).require_grad();
        let output = square.apply(number(2.0), Operands::new(Some(source.clone()), None));
        let gradient = source.grad(&output.sum().backward()).expect("a gradient");
        assert_eq!(values(gradient), [12.0]);
    }
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
