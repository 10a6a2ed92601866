//! Folders of pyvene in a model, by the library and by requests.

use std::collections::BTreeSet;

use burn::backend::Autodiff;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn_align::front::{AlignableInputs, AlignableModel, Subspaces, UnitLocations};
use burn_align_models::{Decoder, FromPretrained, LoadOptions, TokenBatch};
use serde_json::{Value, json};
use workbench::requests::Request;

use super::differences::{difference, gradient_scale, gradients};
use super::{bits, only, read_json, tensor, trainable};
use crate::support::{fixtures, load, message, read_tensors};

on_every_backend!(
    pyvene_folders_work_in_a_model,
    requests_run_saved_interventions,
);

/// An input of `runs.json`.
fn run_inputs<B: Backend>(run: &Value) -> AlignableInputs<B> {
    let batch = |ids: &Value| {
        let ids: Vec<Vec<u32>> = serde_json::from_value(ids.clone()).expect("tokens");
        TokenBatch::new(ids).expect("a batch")
    };
    let sources = run["sources"].as_array().expect("sources");
    AlignableInputs::new(batch(&run["base"]))
        .with_sources(sources.iter().map(batch))
        .with_locations(UnitLocations::try_from(&run["unit_locations"]).expect("locations"))
        .with_subspaces(Subspaces::try_from(&run["subspaces"]).expect("subspaces"))
}

fn pyvene_folders_work_in_a_model<B: Backend>(device: &B::Device) {
    let expected = read_tensors(&trainable().join("runs.safetensors"));
    let model = load::<Autodiff<B>>("gpt2_plain", device);
    let runs = read_json(&trainable().join("runs.json"));
    for (name, run) in runs["runs"].as_object().expect("runs") {
        let folder = trainable().join(run["folder"].as_str().expect("a folder"));
        let alignable = AlignableModel::<Autodiff<B>, _>::load(&folder, model.clone());
        let alignable = alignable.unwrap_or_else(|e| panic!("{name}: {}", message(&e)));
        let output = alignable.forward_inputs(&run_inputs(run)).expect("valid");
        let logits = output.counterfactual;
        let found = difference(logits.clone(), &expected[&format!("{name}.logits")], 1.0);
        assert!(found <= 2e-4, "{name}: {found}");
        let [batch, pos, vocab] = logits.dims();
        let last = logits.narrow(1, pos - 1, 1).reshape([batch, vocab]);
        let weights = tensor(&expected[&format!("{name}.loss_weights")], device);
        let all = (last * weights).sum().backward();
        let scale = gradient_scale(&expected, &format!("{name}.grad."));
        // One key for each representation, in their order.
        let keys = read_json(&folder.join("config.json"));
        let keys: Vec<String> =
            serde_json::from_value(keys["sorted_keys"].clone()).expect("a list of keys");
        assert_eq!(keys.len(), alignable.interventions().len());
        let mut compared = BTreeSet::new();
        for (it, key) in alignable.interventions().iter().zip(keys) {
            for (part, gradient) in gradients(it, &all) {
                let part = format!("{name}.grad.{key}.{part}");
                let values: Vec<f32> = expected[&part].to_vec().expect("f32 values");
                let data = TensorData::new(values, gradient.dims());
                let found = difference(gradient, &data, scale);
                // Through a whole network in f32, whose sums each backend orders differently.
                assert!(found <= 1e-3, "{part}: {found}");
                compared.insert(part);
            }
        }
        let missed = expected.keys().find(|key| {
            // Not trained here, or through a parametrisation.
            let other = key.ends_with(".temperature") || key.ends_with(".rotate_layer.weight");
            key.starts_with(&format!("{name}.grad.")) && !other && !compared.contains(*key)
        });
        assert_eq!(missed, None, "no gradient");
    }
    // Older releases of pyvene: the same parameters.
    for (old, new) in [("old_comp", "rotated"), ("old_repr", "low_rank")] {
        let [old, new] = [old, new].map(|name| only::<B>(&trainable().join(name), device));
        assert_eq!(bits(&old), bits(&new));
    }
}

fn requests_run_saved_interventions<B: Backend>(device: &B::Device) {
    let expected = read_tensors(&trainable().join("runs.safetensors"));
    let runs = read_json(&trainable().join("runs.json"));
    let run = &runs["runs"]["rotated_parts"];
    let ids = |ids: &Value| json!({"input_ids": ids});
    let mut request = json!({
        "model": runs["model"],
        "interventions": "rotated",
        "base": ids(&run["base"]),
        "sources": [ids(&run["sources"][0])],
        "unit_locations": run["unit_locations"],
        "subspaces": run["subspaces"],
    });
    let source = fixtures().join("checkpoints/gpt2_plain");
    let model = Decoder::<B>::from_pretrained(source, &LoadOptions::default(), device);
    let model = model.expect("the fixture");
    let answer = |request: &Value| {
        let parsed = Request::parse(&request.to_string())?;
        parsed.answer(&trainable(), &model, device)
    };
    let answered = answer(&request).expect("it is answered");
    let logits = answered.tensors["logits"].clone();
    let found = difference(logits, &expected["rotated_parts.logits"], 1.0);
    assert!(found <= 2e-4, "{found}");

    request["interventions"] = json!("evil");
    let error = answer(&request).err().expect("it must be refused");
    let error = format!("{error:#}");
    assert!(error.starts_with("interventions: "), "{error}");
    assert!(error.contains("refused"), "{error}");
    // Together with the folder's own configuration, only an equivalent one is allowed.
    request["interventions"] = json!("rotated");
    request["config"] = json!({"alignable_representations": [{}]});
    let error = answer(&request).err().expect("another one");
    assert!(
        error.to_string().contains("config: expected none"),
        "{error:#}"
    );
    let said = error.to_string();
    assert!(
        said.ends_with("they differ in representation 0: the intervention"),
        "{said}"
    );
    request["config"] = json!({
        "alignable_representations": [
            {"subspace_partition": [[0, 4], [4, 8], [8, 16]]}
        ],
        "alignable_interventions_type": "RotatedSpaceIntervention",
    });
    answer(&request).expect("the same one");
    // The same in a different form: listed features, and what has no effect.
    request["config"] = json!({
        "alignable_model_type": "gpt2",
        "alignable_representations": [{
            "alignable_layer": 0,
            "alignable_low_rank_dimension": 7,
            "subspace_partition": [[0, 1, 2, 3], [4, 5, 7, 6], [8, 16]],
            "group_key": 0,
            "intervention_link_key": 3,
        }],
        "alignable_interventions_type": ["RotatedSpaceIntervention"],
    });
    let again = answer(&request).expect("it means the same");
    assert_eq!(
        again.tensors["logits"].clone().into_data(),
        answered.tensors["logits"].clone().into_data()
    );
    for (key, value, differs) in [
        ("alignable_layer", json!(1), "the site"),
        ("alignable_unit", json!("h"), "alignable_unit"),
        (
            "max_number_of_units",
            json!(2),
            "max_number_of_units, or keep_last_dim",
        ),
        (
            "subspace_partition",
            json!([[0, 4], [4, 16], [8, 16]]),
            "subspace_partition",
        ),
    ] {
        let mut other = request.clone();
        other["config"]["alignable_representations"][0][key] = value;
        let error = answer(&other).err().expect("another one").to_string();
        assert!(
            error.ends_with(&format!("they differ in representation 0: {differs}")),
            "{error}"
        );
    }

    // A low-rank rotation, and the configuration that it was made from.
    let run = &runs["runs"]["low_rank"];
    let request = json!({
        "model": runs["model"],
        "interventions": "low_rank",
        "config": {
            "alignable_model_type": "gpt2",
            "alignable_representations": [{
                "alignable_layer": 0,
                "alignable_representation_type": "mlp_output",
                "alignable_unit": "pos",
                "max_number_of_units": 1,
                "alignable_low_rank_dimension": 3,
                "subspace_partition": [[0, 1], [1, 3]],
            }],
            "alignable_interventions_type": "LowRankRotatedSpaceIntervention",
            "alignable_interventions_dimensions": [16],
            "mode": "parallel",
        },
        "base": ids(&run["base"]),
        "sources": [ids(&run["sources"][0])],
        "unit_locations": run["unit_locations"],
        "subspaces": run["subspaces"],
    });
    answer(&request).expect("it means the same");
}
