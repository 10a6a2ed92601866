//! Interventions that pyvene saved: their outputs and gradients.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_align::front::InterventionType;
use burn_align::interventions::{
    AdditionIntervention, BuiltinIntervention, BuiltinMask, BuiltinOperation, Intervention,
    Operands, PcaIntervention, TokenGrouping,
};
use burn_align::saved::{LoadInterventionsError, SavedInterventions};
use serde_json::Value;

use super::differences::{difference, gradient_scale, gradients};
use super::{only, read_json, tensor, trainable};
use crate::support::read_tensors_but;

on_every_backend!(pyvene_folders_match_the_formulas);

/// A case of the fixtures that gives expected values.
struct Case {
    name: String,
    expected: Value,
    tensors: BTreeMap<String, TensorData>,
}

fn cases() -> Vec<Case> {
    let folder = trainable();
    let mut cases = Vec::new();
    for entry in folder.read_dir().expect("the fixtures") {
        let folder = entry.expect("readable").path();
        let tensors = folder.join("expected.safetensors");
        if !tensors.is_file() {
            continue;
        }
        cases.push(Case {
            name: folder
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            expected: read_json(&folder.join("expected.json")),
            tensors: read_tensors_but(&tensors, "state."),
        });
    }
    assert!(cases.len() >= 29, "only {} cases", cases.len());
    cases
}

/// Which features are chosen, `[batch, 1, feature]`.
fn subspace<B: Backend>(
    coordinates: &Value,
    features: usize,
    device: &B::Device,
) -> Option<Tensor<B, 3, Bool>> {
    let rows = coordinates.as_array()?;
    let chosen = rows.iter().flat_map(|row| {
        let row: Vec<usize> = serde_json::from_value(row.clone()).expect("coordinates");
        (0..features).map(move |feature| row.contains(&feature))
    });
    let data = TensorData::new(chosen.collect::<Vec<bool>>(), [rows.len(), 1, features]);
    Some(Tensor::from_data(data, device))
}

/// The intervention with the values that an input sets instead of its own.
fn with_settings<B: Backend>(
    mut it: BuiltinIntervention<B>,
    input: &Value,
    device: &B::Device,
) -> BuiltinIntervention<B> {
    let activation = input["act_fn"].as_str();
    for (name, value) in input["set"].as_object().into_iter().flatten() {
        match (&mut it, name.as_str()) {
            (it, "temperature") => it.set_temperature(value.as_f64().expect("a number")),
            (it, "intervention_boundaries") => {
                let BuiltinMask::Boundary(mask) = &mut it.mask else {
                    panic!("{name} is of a boundary");
                };
                let value = value[0].as_f64().expect("a number") as f32;
                mask.boundary = Param::from_tensor(Tensor::from_floats([value], device));
            }
            (_, name) => panic!("{name} is not known"),
        }
    }
    match (&it.operation, activation) {
        (BuiltinOperation::Reft(reft), Some(name)) => {
            let reft = reft.clone();
            reft.with_activation(name.parse().expect("a function"))
                .into()
        }
        _ => it,
    }
}

fn pyvene_folders_match_the_formulas<B: Backend>(device: &B::Device) {
    const OUTPUT: f32 = 1e-5;
    const GRADIENT: f32 = 1e-4;
    let mut failures = Vec::new();
    let (mut outputs, mut compared) = (0, BTreeMap::<String, usize>::new());
    let (mut worst_output, mut worst_gradient) = ((0.0, String::new()), (0.0, String::new()));
    for case in cases() {
        let Case {
            name,
            expected,
            tensors,
        } = &case;
        let folder = trainable().join(name);
        let class = expected["class"].as_str().expect("a class");
        let it = match class {
            "CollectIntervention" => {
                let saved = SavedInterventions::<B>::load(&folder, device).expect("it loads");
                assert!(saved.interventions.is_empty());
                let [collected] = &saved.config.representations[..] else {
                    panic!("{name}: expected one representation");
                };
                assert_eq!(collected.intervention, InterventionType::Collect);
                continue;
            }
            // Not saved, and so rejected; when given by hand they compute the same.
            "NoiseIntervention" | "PCARotatedSpaceIntervention" => {
                let error = SavedInterventions::<B>::load(&folder, device).expect_err(name);
                assert!(
                    matches!(error, LoadInterventionsError::Unsupported { .. }),
                    "{name}: {error}"
                );
                let get = |tensor: &str| &tensors[&format!("param.{tensor}")];
                if class == "NoiseIntervention" {
                    AdditionIntervention.into()
                } else {
                    let components = tensor(get("pca_components"), device);
                    let (mean, std) = (get("pca_mean"), get("pca_std"));
                    let (mean, std) = (tensor(mean, device), tensor(std, device));
                    PcaIntervention::new(components, mean, std, TokenGrouping::Joint(1)).into()
                }
            }
            _ => only::<Autodiff<B>>(&folder, device),
        };
        for input in expected["inputs"].as_array().expect("inputs") {
            let prefix = input["name"].as_str().expect("a name");
            let label = format!("{name}.{prefix}");
            let get = |part: &str| tensors.get(&format!("{prefix}.{part}"));
            // A separate module, so that its gradients are from this input only.
            let it = with_settings(it.clone(), input, device);
            let tracked = |part| {
                let found = get(part)?;
                Some(tensor::<Autodiff<B>, 3>(found, device).require_grad())
            };
            let base = tracked("base").expect("a base");
            let source = match class {
                "NoiseIntervention" => {
                    let get = |part: &str| &tensors[&format!("param.{part}")];
                    let noise: Tensor<Autodiff<B>, 3> = tensor(get("noise"), device);
                    let level: Vec<f32> = get("noise_level").to_vec().expect("f32 values");
                    Some((noise * level[0]).expand(base.dims()))
                }
                _ => tracked("source"),
            };
            let [_batch, units, d_site] = base.dims();
            let features = Intervention::features(&it, units, d_site)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            let subspace = subspace(&input["coordinates"], features, device);
            // The folder's own choice is the default.
            let own = ["first_five", "listed"].contains(&prefix) && name != "vanilla_two";
            let operands = Operands::new(source.clone(), subspace.filter(|_| !own));
            let output = it.apply(base.clone(), operands);
            let found = difference(output.clone(), get("output").expect("an output"), 1.0);
            outputs += 1;
            if found.is_nan() || found > OUTPUT {
                failures.push(format!("{label}: {found}"));
            }
            if found > worst_output.0 {
                worst_output = (found, label.clone());
            }
            let weights = tensor(get("loss_weights").expect("weights"), device);
            let all = (output * weights).sum().backward();
            let scale = gradient_scale(tensors, &format!("{prefix}.grad."));
            let mut check = |part: &str, found: Option<f32>| {
                let Some(found) = found else {
                    failures.push(format!("{label}: no gradient by {part}"));
                    return;
                };
                *compared.entry(part.to_owned()).or_default() += 1;
                if found.is_nan() || found > GRADIENT {
                    failures.push(format!("{label}: gradient by {part}: {found}"));
                }
                if found > worst_gradient.0 {
                    worst_gradient = (found, format!("{label} by {part}"));
                }
            };
            let by = |tensor: &Tensor<Autodiff<B>, 3>, expected: &TensorData| {
                let found = tensor.grad(&all);
                let found = found.unwrap_or_else(|| tensor.clone().inner().zeros_like());
                difference(found, expected, scale)
            };
            if let Some(expected) = get("grad.base") {
                check("base", Some(by(&base, expected)));
            }
            if let (Some(source), Some(expected)) = (&source, get("grad.source")) {
                check("source", Some(by(source, expected)));
            }
            let found = gradients(&it, &all);
            let prefix = format!("{prefix}.grad.");
            let named = tensors.iter().filter_map(|(name, data)| {
                let part = name.strip_prefix(&prefix)?;
                (!["base", "source"].contains(&part)).then_some((part, data))
            });
            let has_raw = found.contains_key("raw");
            for (part, expected) in named {
                let skipped = match part {
                    // Not trained here: set by hand.
                    "temperature" => true,
                    // For parameters trained through a parametrisation, only that is compared.
                    "rotate_layer.weight" => has_raw,
                    // The folder has the matrix alone.
                    "raw" => !has_raw && class == "LoreftIntervention",
                    "pca_components" | "pca_mean" | "pca_std" | "noise" | "noise_level" => true,
                    _ => false,
                };
                if skipped {
                    continue;
                }
                let largest: Vec<f32> = expected.to_vec().expect("f32 values");
                let vanishes = largest.iter().all(|x| x.abs() < 1e-6);
                let relative = found.get(part).map(|gradient| {
                    let [rows, columns] = gradient.dims();
                    let shape = match expected.shape[..] {
                        [entries] => [1, entries],
                        [a, b] => [a, b],
                        _ => [1, 1],
                    };
                    assert_eq!([rows, columns], shape, "{label}: {part}");
                    let expected = TensorData::new(largest.clone(), shape);
                    difference(gradient.clone(), &expected, scale)
                });
                // A zero gradient may be missing.
                check(part, relative.or(vanishes.then_some(0.0)));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{failures:#?}\nworst: {worst_output:?}, {worst_gradient:?}"
    );
    assert!(outputs >= 72, "only {outputs} outputs");
    assert!(
        compared["raw"] >= 30 && compared.len() >= 15,
        "{compared:?}"
    );
}
