//! Scores by the reference code of EAP-IG, see `tests/fixtures/make_circuits.py`.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::{TensorData, backend::Backend};
use burn_align::methods::attribution::{PatchDirection, Patching};
use burn_align::methods::circuits::{
    CircuitError, EdgeAblation, EdgeMethod, EdgeOptions, EdgeScores, clean_corrupted, eap,
    eap_ig_activations, eap_ig_inputs, information_flow_routes, patch_all_edges,
};
use burn_align_models::Decoder;

use super::{assert_scores, base, metric, noising, ragged, ragged_metric};
use crate::support::{fixtures, load, of_gradients, read_tensors};

on_every_backend!(
    gradients_give_the_scores_of_the_reference,
    exact_scores_are_those_of_the_reference,
    information_flows_as_in_the_reference,
);

const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];
/// Relative to the largest score.
const TOLERANCE: f64 = 1e-4;

fn expected() -> BTreeMap<String, TensorData> {
    read_tensors(&fixtures().join("circuits.safetensors"))
}

#[track_caller]
fn check(expected: &BTreeMap<String, TensorData>, name: &str, found: &EdgeScores) {
    check_within(expected, name, found, TOLERANCE);
}

#[track_caller]
fn check_within(
    expected: &BTreeMap<String, TensorData>,
    name: &str,
    found: &EdgeScores,
    tolerance: f64,
) {
    let expected: Vec<f32> = expected[name].to_vec().expect("f32 values");
    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
    assert_scores(found.values(), &expected, tolerance, name);
}

fn options() -> EdgeOptions {
    EdgeOptions::default().with_steps(3)
}

fn gradients_give_the_scores_of_the_reference<B: Backend>(device: &B::Device) {
    type Method<B> =
        fn(&Decoder<Autodiff<B>>, &Patching<B>, &EdgeOptions) -> Result<EdgeScores, CircuitError>;
    let methods: [(&str, EdgeMethod, Method<B>); 4] = [
        ("eap", EdgeMethod::Eap, |model, patching, options| {
            eap(model, patching, &metric(), options)
        }),
        (
            "inputs",
            EdgeMethod::EapIgInputs { steps: 3 },
            |model, patching, options| eap_ig_inputs(model, patching, &metric(), options),
        ),
        (
            "activations",
            EdgeMethod::EapIgActivations {
                steps: 3,
                own_edges: false,
            },
            |model, patching, options| eap_ig_activations(model, patching, &metric(), options),
        ),
        (
            "clean_corrupted",
            EdgeMethod::CleanCorrupted,
            |model, patching, options| clean_corrupted(model, patching, &metric(), options),
        ),
    ];
    let tolerance = of_gradients::<B>(device, TOLERANCE);
    let expected = expected();
    for name in MODELS {
        let model = load::<Autodiff<B>>(name, device);
        for (key, method, score) in &methods {
            let found = score(&model, &noising(), &options()).expect("valid");
            check_within(&expected, &format!("{name}.{key}"), &found, tolerance);
            let provenance = found.provenance();
            assert_eq!(provenance.method, *method);
            assert_eq!(provenance.direction, Some(PatchDirection::Noising));
            assert_eq!(provenance.examples, 2);
        }
        for (key, ablation) in [("mean", EdgeAblation::Mean), ("zero", EdgeAblation::Zero)] {
            let options = options().with_ablation(ablation);
            let found = eap(&model, &noising(), &metric(), &options).expect("valid");
            check_within(&expected, &format!("{name}.eap.{key}"), &found, tolerance);
            assert_eq!(found.provenance().ablation, Some(ablation));
        }
        let found = eap(&model, &ragged(), &ragged_metric(), &options()).expect("valid");
        check_within(&expected, &format!("{name}.eap.ragged"), &found, tolerance);
    }
}

fn exact_scores_are_those_of_the_reference<B: Backend>(device: &B::Device) {
    let expected = expected();
    for name in MODELS {
        let model = load::<B>(name, device);
        let score = |ablation: EdgeAblation| {
            let options = options().with_ablation(ablation);
            patch_all_edges(&model, &noising(), &metric(), &options).expect("valid")
        };
        let found = score(EdgeAblation::Counterfactual);
        check(&expected, &format!("{name}.exact"), &found);
        assert_eq!(found.provenance().method, EdgeMethod::Exact);
        let found = score(EdgeAblation::Zero);
        check(&expected, &format!("{name}.exact.zero"), &found);
        let found = patch_all_edges(&model, &ragged(), &ragged_metric(), &options());
        check(
            &expected,
            &format!("{name}.exact.ragged"),
            &found.expect("valid"),
        );
    }
}

fn information_flows_as_in_the_reference<B: Backend>(device: &B::Device) {
    let expected = expected();
    for name in MODELS {
        let model = load::<B>(name, device);
        let found = information_flow_routes(&model, base(), &options()).expect("valid");
        check(&expected, &format!("{name}.ifr"), &found);
        assert_eq!(found.provenance().direction, None);
        let prompts = ragged::<B>().base().clone();
        let found = information_flow_routes(&model, prompts, &options()).expect("valid");
        check(&expected, &format!("{name}.ifr.ragged"), &found);
    }
}
