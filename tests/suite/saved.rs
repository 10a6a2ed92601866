//! Interventions in folders: in this crate's format, and in those of pyvene and pyreft
//! (`tests/fixtures/make_trainable.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, DType, Tensor, TensorData};
use burn_align::dictionaries::{Dictionary, FeatureActivation, InputNorm};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Mode, Subspaces, UnitLocations,
};
use burn_align::interventions::{
    Add, AddNorm, AdditionIntervention, AutoencoderIntervention, Boundary,
    BoundlessRotatedSpaceIntervention, BuiltinFeaturizer, BuiltinIntervention, BuiltinMask,
    BuiltinOperation, Clamp, Composed, ConstantSource, ConstantSourceIntervention,
    DictionaryFeatures, Directions, Fill, FillIntervention, Identity, Interpolate, Intervention,
    JumpReluAutoencoderIntervention, LambdaIntervention, NoiseIntervention, Operands, Orthonormal,
    OrthonormalMap, Pca, PcaIntervention, ReftIntervention, ReftKind, RotatedSpaceIntervention,
    Rotation, Scale, ScalingIntervention, SigmoidMask, SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention, SourceOperation, SubtractionIntervention, Swap,
    TokenGrouping, VanillaIntervention,
};
use burn_align::saved::{LoadInterventionsError, SavedInterventions};
use burn_align_models::nn::Activation;
use burn_align_models::{Component, Decoder, FromPretrained, LoadOptions, TokenBatch};
use serde_json::{Value, json};
use workbench::requests::Request;

use crate::support::{fixtures, load, message, read_tensors, read_tensors_but, values};

on_every_backend!(
    pyvene_folders_match_the_formulas,
    pyvene_folders_work_in_a_model,
    everything_comes_back_bit_by_bit,
    damaged_folders_are_errors,
    directions_must_be_orthonormal,
    code_is_refused,
    what_is_not_there_is_an_error,
    linked_parameters_must_agree,
    a_constant_source_goes_to_each_unit,
    what_cannot_be_saved_is_an_error,
    no_pickle_takes_long,
    requests_run_saved_interventions,
);

fn trainable() -> PathBuf {
    fixtures().join("trainable")
}

fn read_json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).expect("the fixture")).expect("JSON")
}

fn tensor<B: Backend, const D: usize>(data: &TensorData, device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(data.clone(), (device, DType::F32))
}

/// The only intervention of a folder.
fn only<B: Backend>(folder: &Path, device: &B::Device) -> BuiltinIntervention<B> {
    let saved = SavedInterventions::<B>::load(folder, device);
    let saved = saved.unwrap_or_else(|error| panic!("{}: {}", folder.display(), message(&error)));
    let mut interventions = saved.interventions;
    assert_eq!(interventions.len(), 1, "{}", folder.display());
    interventions.remove(0)
}

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

fn largest(data: &TensorData) -> f32 {
    let values: Vec<f32> = data.to_vec().expect("f32 values");
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// Lower bound for the scale of a gradient's error. A gradient that vanishes, as for a rotation
/// whose directions are all exchanged, is a sum of terms as large as other gradients.
fn gradient_scale(tensors: &BTreeMap<String, TensorData>, prefix: &str) -> f32 {
    let gradients = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
    let all = gradients.map(|(_, data)| largest(data));
    all.fold(1e-2, f32::max) / 4.0
}

/// The largest difference, as a share of the largest value that is expected, or of `at_least`.
fn difference<B: Backend, const D: usize>(
    found: Tensor<B, D>,
    expected: &TensorData,
    at_least: f32,
) -> f32 {
    assert_eq!(found.dims()[..], expected.shape[..], "shapes differ");
    let scale = largest(expected).max(at_least);
    let expected: Vec<f32> = expected.to_vec().expect("f32 values");
    let found = values(found);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d <= max { max } else { d }) / scale
}

/// Gradients by name, as pyvene's tensors have them.
fn gradients<B: AutodiffBackend>(
    it: &BuiltinIntervention<B>,
    all: &B::Gradients,
) -> BTreeMap<&'static str, Tensor<B::InnerBackend, 2>> {
    let mut named = BTreeMap::new();
    let mut put = |name, gradient: Option<Tensor<B::InnerBackend, 2>>| {
        named.extend(gradient.map(|gradient| (name, gradient)));
    };
    fn of<B: AutodiffBackend, const D: usize>(
        param: &Param<Tensor<B, D>>,
        all: &B::Gradients,
        transposed: bool,
    ) -> Option<Tensor<B::InnerBackend, 2>> {
        let gradient = param.val().grad(all)?;
        let shape = gradient.dims();
        let gradient = match shape[..] {
            [rows, columns] => gradient.reshape([rows, columns]),
            [entries] => gradient.reshape([1, entries]),
            _ => unreachable!("matrices and vectors"),
        };
        Some(if transposed {
            gradient.transpose()
        } else {
            gradient
        })
    }
    match (&it.featurizer, &it.mask) {
        (_, BuiltinMask::Boundary(it)) => {
            put("intervention_boundaries", of(&it.boundary, all, false));
        }
        (BuiltinFeaturizer::Rotation(_), BuiltinMask::SigmoidMask(it)) => {
            put("masks", of(&it.logits, all, false));
        }
        (_, BuiltinMask::SigmoidMask(it)) => put("mask", of(&it.logits, all, false)),
        _ => {}
    }
    match &it.featurizer {
        BuiltinFeaturizer::Rotation(it) => put("raw", of(&it.rotation.parameter, all, false)),
        BuiltinFeaturizer::Autoencoder(it) => {
            let it = it.dictionary();
            put("autoencoder.encoder.0.weight", of(&it.encoder, all, true));
            put(
                "autoencoder.encoder.0.bias",
                of(&it.encoder_bias, all, false),
            );
            put("autoencoder.decoder.0.weight", of(&it.decoder, all, true));
            put(
                "autoencoder.decoder.0.bias",
                of(&it.decoder_bias, all, false),
            );
        }
        BuiltinFeaturizer::JumpReluAutoencoder(it) => {
            let it = it.dictionary();
            put("W_enc", of(&it.encoder, all, false));
            put("b_enc", of(&it.encoder_bias, all, false));
            put("W_dec", of(&it.decoder, all, false));
            put("b_dec", of(&it.decoder_bias, all, false));
        }
        _ => {}
    }
    match &it.operation {
        BuiltinOperation::ConstantSource(it) => {
            put("source_representation", of(&it.source, all, false));
        }
        BuiltinOperation::Reft(it) => {
            if let Some(rotation) = &it.rotation {
                let name = match rotation.map() {
                    OrthonormalMap::Retraction => "rotate_layer.weight",
                    _ => "raw",
                };
                put(name, of(&rotation.parameter, all, false));
            }
            if let Some(projection) = &it.projection {
                put("proj_layer.weight", of(projection, all, true));
            }
            if let Some(bias) = &it.projection_bias {
                put("proj_layer.bias", of(bias, all, false));
            }
            match &it.weight {
                Some(weight) => {
                    put("learned_source.weight", of(weight, all, true));
                    put("learned_source.bias", of(&it.bias, all, false));
                }
                None => put("learned_source", of(&it.bias, all, false)),
            }
        }
        _ => {}
    }
    named
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

/// All parameters of a module, bit by bit.
fn bits<B: Backend>(module: &impl Module<B>) -> Vec<(Vec<usize>, Vec<u32>)> {
    struct Bits(Vec<(Vec<usize>, Vec<u32>)>);
    impl<B: Backend> ModuleVisitor<B> for Bits {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            self.0
                .push((shape, values(tensor).iter().map(|x| x.to_bits()).collect()));
        }
    }
    let mut bits = Bits(Vec::new());
    module.visit(&mut bits);
    bits.0
}

/// Every kind of intervention, on 16 features.
fn all_interventions<B: Backend>(device: &B::Device) -> Vec<BuiltinIntervention<B>> {
    let each = TokenGrouping::Each;
    let rotation = |rank, map| Orthonormal::random([16, rank], map, 7, device).expect("fits");
    let vector = |seed: f32, n: usize| -> Tensor<B, 1> {
        let values: Vec<f32> = (0..n).map(|i| (seed + i as f32 * 1.7).sin()).collect();
        Tensor::from_data(TensorData::new(values, [n]), (device, DType::F32))
    };
    let matrix = |seed: f32, [m, n]: [usize; 2]| vector(seed, m * n).reshape([m, n]);
    let square = OrthonormalMap::MatrixExponential;
    let mut boundless = BoundlessRotatedSpaceIntervention::new(rotation(16, square), each)
        .with_temperature(0.1 + 0.2);
    boundless.mask.boundary = Param::from_tensor(vector(0.3, 1));
    let mut masked = SigmoidMaskRotatedSpaceIntervention::new(
        rotation(16, OrthonormalMap::Cayley),
        TokenGrouping::Joint(1),
    )
    .with_temperature(f64::INFINITY);
    masked.mask.logits = Param::from_tensor(vector(0.4, 16));
    let mut mask = SigmoidMaskIntervention::new(16, each, device).with_temperature(1.0 / 3.0);
    mask.mask.logits = Param::from_tensor(vector(0.5, 16));
    let coder = || {
        AutoencoderIntervention::new(
            (matrix(1.0, [16, 20]), vector(2.0, 20)),
            (matrix(3.0, [20, 16]), vector(4.0, 16)),
            each,
        )
    };
    let jump = || {
        JumpReluAutoencoderIntervention::new(
            (matrix(1.0, [16, 20]), vector(2.0, 20)),
            vector(5.0, 20),
            (matrix(3.0, [20, 16]), vector(4.0, 16)),
            each,
        )
    };
    let mut all: Vec<BuiltinIntervention<B>> = vec![
        VanillaIntervention.into(),
        AdditionIntervention.into(),
        SubtractionIntervention.into(),
        FillIntervention { value: -0.0 }.into(),
        FillIntervention::KNOCK_OUT.into(),
        FillIntervention {
            value: f64::NEG_INFINITY,
        }
        .into(),
        ScalingIntervention { factor: 0.1 }.into(),
        NoiseIntervention::new(NoiseIntervention::LEVEL, u64::MAX).into(),
        boundless.into(),
        masked.into(),
        mask.into(),
        PcaIntervention::new(matrix(6.0, [5, 16]), vector(7.0, 16), vector(8.0, 16), each).into(),
        coder().into(),
        coder().with_swapped(vec![3, 0, 19]).into(),
        jump().into(),
        jump().with_swapped(Vec::new()).into(),
    ];
    for operation in [
        SourceOperation::Swap,
        SourceOperation::Add,
        SourceOperation::Subtract,
    ] {
        all.push(ConstantSourceIntervention::new(vector(9.0, 16), operation).into());
    }
    for (rank, map) in [
        (16, OrthonormalMap::Retraction),
        (3, OrthonormalMap::Retraction),
        (16, OrthonormalMap::MatrixExponential),
        (16, OrthonormalMap::Cayley),
        (3, OrthonormalMap::Householder),
        (16, OrthonormalMap::Householder),
    ] {
        let it = RotatedSpaceIntervention::new(rotation(rank, map), TokenGrouping::Joint(1));
        all.push(it.clone().into());
        all.push(it.with_swapped(2).into());
    }
    for kind in [
        ReftKind::LoReft,
        ReftKind::NoReft,
        ReftKind::ConsReft,
        ReftKind::LobiReft,
        ReftKind::DiReft,
        ReftKind::NodiReft,
    ] {
        for map in [OrthonormalMap::Retraction, OrthonormalMap::Householder] {
            let it = ReftIntervention::new(kind, rotation(3, map), 11);
            all.push(it.with_activation(Activation::GeluTanh).into());
        }
    }
    all.extend(compositions(device, &vector, &matrix));
    all
}

/// Compositions that have no name of their own.
fn compositions<B: Backend>(
    device: &B::Device,
    vector: &impl Fn(f32, usize) -> Tensor<B, 1>,
    matrix: &impl Fn(f32, [usize; 2]) -> Tensor<B, 2>,
) -> Vec<BuiltinIntervention<B>> {
    let rotation = |rank| {
        let map = OrthonormalMap::Retraction;
        Rotation::new(Orthonormal::random([16, rank], map, 3, device).expect("fits"))
    };
    let pca = Pca::new(matrix(6.0, [5, 16]), vector(7.0, 16), vector(8.0, 16));
    let along = || Directions::along(vector(1.5, 16)).expect("a direction");
    let boundary = |features| Boundary::new(vector(0.3, 1), features, 0.7);
    let constant = ConstantSource::new(vector(2.5, 3), SourceOperation::Add);
    let mut all = vec![
        Composed::of(rotation(16), Swap)
            .with_changed(vec![3, 1])
            .into(),
        Composed::of(rotation(3), Clamp::between(-0.5, f64::INFINITY)).into(),
        Composed::of(rotation(3), constant).into(),
        Composed::of(
            rotation(3),
            ReftIntervention::new(
                ReftKind::LoReft,
                Orthonormal::random([3, 2], OrthonormalMap::Retraction, 1, device).expect("fits"),
                5,
            ),
        )
        .into(),
        Composed::of(rotation(4), Interpolate { share: 0.3 })
            .with_mask(boundary(4))
            .into(),
        Composed::of(along(), AddNorm { factor: 2.0 }).into(),
        Composed::alone(Scale { factor: 2.0 })
            .with_changed(vec![2, 5])
            .into(),
        Composed::of(along(), Fill::ZERO)
            .with_tokens(TokenGrouping::Joint(1))
            .into(),
        Composed::of(pca, Add)
            .with_mask(SigmoidMask::new(vector(0.1, 5), 0.5))
            .into(),
        Composed::of(Identity, Scale { factor: 3.0 })
            .with_mask(boundary(16))
            .into(),
    ];
    let dictionary = |activation| {
        let encoder = (matrix(1.0, [16, 20]), vector(2.0, 20));
        let decoder = (matrix(3.0, [20, 16]), vector(4.0, 16));
        let it = Dictionary::new(encoder, activation, decoder).expect("fits");
        it.with_subtracted_bias(true).expect("fits")
    };
    let scaled = |it: Dictionary<B>| it.with_input_norm(InputNorm::ConstantNorm);
    for dictionary in [
        dictionary(FeatureActivation::relu()),
        scaled(dictionary(FeatureActivation::jump_relu(vector(5.0, 20)))),
        dictionary(FeatureActivation::gated(vector(5.0, 20), vector(6.0, 20))),
        dictionary(FeatureActivation::top_k(4)),
        dictionary(FeatureActivation::abs_top_k(4)),
    ] {
        let few = DictionaryFeatures::selected(dictionary.clone(), &[7, 0, 19]).expect("there");
        let whole = DictionaryFeatures::new(dictionary).expect("an autoencoder");
        all.push(Composed::of(whole, Swap).into());
        all.push(Composed::of(few, Fill { value: 2.0 }).into());
    }
    all
}

fn apply<B: Backend>(it: &BuiltinIntervention<B>, device: &B::Device) -> Vec<u32> {
    let wave = |phase: f32| {
        let values: Vec<f32> = (0..32).map(|i| (phase + i as f32).cos()).collect();
        let data = TensorData::new(values, [2, 1, 16]);
        Tensor::<B, 3>::from_data(data, (device, DType::F32))
    };
    let source = it.needs_source().then(|| wave(2.0));
    let output = it.apply(wave(0.0), Operands::new(source, None));
    values(output).into_iter().map(f32::to_bits).collect()
}

/// A configuration for this many interventions.
fn config_of(count: usize) -> AlignableConfig {
    let component = Component::BlockOutput;
    AlignableConfig::new((0..count).map(|_| AlignableRepresentationConfig::new(0, component)))
}

fn everything_comes_back_bit_by_bit<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("not/there/yet");
    let interventions = all_interventions::<B>(device);
    let count = interventions.len();
    let before: Vec<_> = interventions
        .iter()
        .map(|it| (bits(it), apply(it, device)))
        .collect();
    let saved = SavedInterventions::new(config_of(count), interventions);
    saved.save(&folder).expect("it can be saved");
    // Over what is there.
    saved.save(&folder).expect("it can be saved again");
    let files = fs::read_dir(&folder).expect("a folder").count();
    assert_eq!(files, 2, "nothing unfinished is left");

    let loaded = SavedInterventions::<B>::load(&folder, device).expect("it loads");
    assert_eq!(loaded.config, saved.config);
    for (index, (it, (parameters, output))) in loaded.interventions.iter().zip(&before).enumerate()
    {
        assert_eq!(&bits(it), parameters, "intervention {index}");
        assert_eq!(&apply(it, device), output, "intervention {index}: {it:?}");
    }
    // Everything but tensors is in the configuration: saved again, it is the same text.
    let again = folder.join("again");
    loaded.save(&again).expect("it can be saved");
    for name in ["config.json", "interventions.safetensors"] {
        let [first, second] = [&folder, &again].map(|f| fs::read(f.join(name)).expect("a file"));
        assert_eq!(first, second, "{name}");
    }
    // Onto another backend.
    let other = SavedInterventions::<Autodiff<B>>::load(&folder, device).expect("it loads");
    for (it, (parameters, _)) in other.interventions.iter().zip(&before) {
        assert_eq!(&bits(it), parameters);
    }

    // In a model, with links, and representations without their own intervention.
    let model: Decoder<B> = crate::support::load("gpt2_plain", device);
    let at = |layer| AlignableRepresentationConfig::new(layer, Component::MlpOutput);
    let [first, second] = [0, 1].map(|layer| at(layer).with_low_rank(3).with_link(4));
    let config = AlignableConfig::new([
        first,
        at(0).with_intervention(InterventionType::Collect),
        at(0).with_intervention(InterventionType::Skip),
        at(1).with_intervention(InterventionType::Noise),
        second,
    ]);
    let alignable = AlignableModel::new_seeded(config, model.clone(), 5).expect("it fits");
    let folder = folder.join("linked");
    alignable
        .save_interventions(&folder)
        .expect("it can be saved");
    let loaded = AlignableModel::load(&folder, model).expect("it loads");
    assert_eq!(loaded.config(), alignable.config());
    assert_eq!(loaded.interventions().len(), 3);
    for (a, b) in loaded.interventions().iter().zip(alignable.interventions()) {
        assert_eq!(bits(a), bits(b));
    }
    let stored = read_tensors(&folder.join("interventions.safetensors"));
    assert_eq!(stored.keys().collect::<Vec<_>>(), ["0.rotation.parameter"]);
}

/// A copy of a folder of the fixtures, or of another.
fn copy(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in from.read_dir().expect("a folder") {
        let file = entry.expect("readable").path();
        fs::copy(&file, folder.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    folder
}

fn damaged_folders_are_errors<B: Backend>(device: &B::Device) {
    let own = tempfile::tempdir().expect("a folder");
    let interventions = all_interventions::<B>(device);
    let saved = SavedInterventions::new(config_of(interventions.len()), interventions);
    saved.save(own.path()).expect("it can be saved");
    let folders = [own.path().to_owned()].into_iter().chain(
        ["rotated", "boundless", "low_rank", "loreft", "old_repr"].map(|n| trainable().join(n)),
    );
    for from in folders {
        let folder = copy(&from);
        for entry in from.read_dir().expect("a folder") {
            let file = entry.expect("readable").path();
            let name = file.file_name().expect("a name").to_owned();
            if name.to_string_lossy().starts_with("expected") {
                continue;
            }
            let whole = fs::read(&file).expect("a file");
            let to = folder.path().join(&name);
            let step = (whole.len() / 150).max(1);
            for cut in (0..whole.len() - 1).step_by(step) {
                fs::write(&to, &whole[..cut]).expect("written");
                let loaded = SavedInterventions::<B>::load(folder.path(), device);
                assert!(loaded.is_err(), "{} cut to {cut}", file.display());
            }
            // Any byte may be wrong; this gives an error or a different value.
            let mut state = 1_u64;
            for _ in 0..300 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let mut bytes = whole.clone();
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] ^= (state >> 20) as u8 | 1;
                fs::write(&to, &bytes).expect("written");
                let _ = SavedInterventions::<B>::load(folder.path(), device);
            }
            fs::write(&to, &whole).expect("written");
        }
        SavedInterventions::<B>::load(folder.path(), device).expect("whole again");
    }
}

/// Outside of directions that are not orthonormal, something would change too.
fn directions_must_be_orthonormal<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let columns = Tensor::<B, 2>::from_floats([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]], device);
    let directions = Directions::spanned_by(columns).expect("of full rank");
    let it = Composed::of(directions, Fill::ZERO);
    let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
    saved.save(folder).expect("it can be saved");
    SavedInterventions::<B>::load(folder, device).expect("it loads");
    let load = |shape: Vec<usize>, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
        let views = [("0.featurizer.directions", view.expect("it fits"))];
        let file = folder.join("interventions.safetensors");
        safetensors::tensor::serialize_to_file(views, None, &file).expect("written");
        SavedInterventions::<B>::load(folder, device)
    };
    load(vec![3, 2], &[0.6, 0.0, 0.0, 1.0, 0.8, 0.0]).expect("orthonormal");
    for [a, b] in [
        [0.6, 0.1],
        [0.7, 0.0],
        [f32::NAN, 0.0],
        [f32::INFINITY, 0.0],
    ] {
        let error = load(vec![3, 2], &[a, b, 0.0, 1.0, 0.8, 0.0]).expect_err("not orthonormal");
        assert!(
            matches!(&error, LoadInterventionsError::NotOrthonormal { tensor, deviation, .. }
                if tensor == "0.featurizer.directions" && *deviation > 1e-3),
            "{error}"
        );
        let message = message(&error);
        assert!(
            message.contains("expected orthonormal columns"),
            "{message}"
        );
    }
    let error = load(vec![2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).expect_err("too many");
    assert!(
        matches!(error, LoadInterventionsError::WrongShape { .. }),
        "{error}"
    );
}

fn code_is_refused<B: Backend>(device: &B::Device) {
    let error = SavedInterventions::<B>::load(trainable().join("evil"), device);
    let error = error.expect_err("it must be refused");
    assert!(
        matches!(&error, LoadInterventionsError::ForbiddenGlobal { global, .. } if global.ends_with("system")),
        "{error}"
    );
    for folder in [trainable().join("evil"), PathBuf::from(".")] {
        assert!(!folder.join("pwned.txt").exists());
    }
}

fn what_is_not_there_is_an_error<B: Backend>(device: &B::Device) {
    let fails = |folder: &Path, part: &str| {
        let error = SavedInterventions::<B>::load(folder, device).expect_err(part);
        let message = message(&error);
        assert!(message.contains(part), "expected `{part}` in: {message}");
    };
    fails(Path::new("/nowhere"), "no config.json");

    // Ours.
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let rotation = Orthonormal::random([16, 3], OrthonormalMap::Retraction, 0, device);
    let it = RotatedSpaceIntervention::<B>::new(rotation.expect("fits"), TokenGrouping::Each);
    let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
    saved.save(folder).expect("it can be saved");
    let file = folder.join("config.json");
    let whole = read_json(&file);
    let with = |change: &dyn Fn(&mut Value), part: &str| {
        let mut json = whole.clone();
        change(&mut json);
        fs::write(&file, json.to_string()).expect("written");
        fails(folder, part);
        fs::write(&file, whole.to_string()).expect("written");
    };
    with(
        &|json| json["interventions"][0]["kind"] = json!("teleport"),
        "unknown variant `teleport`",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("bogus"),
        "unknown variant `bogus`",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("householder"),
        "0.rotation.base",
    );
    with(
        &|json| json["interventions"][0]["map"] = json!("cayley"),
        "a square matrix",
    );
    with(
        &|json| json["interventions"][0]["extra"] = json!(1),
        "extra",
    );
    with(
        &|json| json["interventions"][0]["swapped"] = json!(4),
        "at most 3",
    );
    with(&|json| json["interventions"] = json!([]), "expected 1");
    with(&|json| json["surprise"] = json!(1), "surprise");
    with(
        &|json| json["interventions"][0] = json!({"kind": "vanilla"}),
        "also found 0.rotation.parameter",
    );
    with(
        &|json| {
            json["interventions"][0] =
                json!({"kind": "sigmoid_mask", "tokens": "each", "temperature": 1})
        },
        "0.mask",
    );
    with(
        &|json| {
            json.as_object_mut()
                .expect("an object")
                .remove("interventions");
        },
        "expected `interventions`",
    );
    let write = |name: &str, dtype, shape: Vec<usize>, bytes: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, shape, bytes).expect("fits");
        let file = folder.join("interventions.safetensors");
        safetensors::tensor::serialize_to_file([(name, view)], None, &file).expect("written");
    };
    use safetensors::Dtype;
    // Halves are read exactly: the first column is (1, 0, …).
    let one = [0x00, 0x3c];
    let halves = [&one[..], &[0; 94]].concat();
    write("0.rotation.parameter", Dtype::F16, vec![16, 3], &halves);
    let Ok(loaded) = SavedInterventions::<B>::load(folder, device) else {
        panic!("f16 is read");
    };
    let BuiltinFeaturizer::Rotation(it) = &loaded.interventions[0].featurizer else {
        panic!("a rotation was saved");
    };
    let expected: Vec<f32> = (0..48).map(|i| f32::from(u8::from(i == 0))).collect();
    assert_eq!(values(it.rotation.matrix()), expected);
    write("0.rotation.parameter", Dtype::F32, vec![2, 3], &[0; 24]);
    fails(folder, "expected shape");
    write("0.rotation.parameter", Dtype::F32, vec![48], &[0; 192]);
    fails(folder, "expected shape [_, _], found [48]");
    write("0.rotation.parameter", Dtype::F64, vec![16, 3], &[0; 384]);
    fails(folder, "expected f32");
    write("0.rotation", Dtype::F32, vec![16, 3], &[0; 192]);
    fails(folder, "0.rotation.parameter");
    fs::remove_file(folder.join("interventions.safetensors")).expect("it was there");
    fails(folder, "interventions.safetensors: cannot be read");

    // Those of pyvene.
    let with = |name: &str, change: &dyn Fn(&mut Value), part: &str| {
        let folder = copy(&trainable().join(name));
        let file = folder.path().join("config.json");
        let mut json = read_json(&file);
        change(&mut json);
        fs::write(&file, json.to_string()).expect("written");
        fails(folder.path(), part);
    };
    let class =
        |name: &'static str| move |json: &mut Value| json["intervention_types"][0] = json!(name);
    with(
        "rotated",
        &class("pyvene.models.interventions.TeleportIntervention"),
        "TeleportIntervention",
    );
    with(
        "rotated",
        &class("<class '__main__.RotatedSpaceIntervention'>"),
        "a class of pyvene or pyreft",
    );
    with(
        "rotated",
        &class("<class 'pyvene.models.interventions.SigmoidMaskIntervention'>"),
        "`mask`",
    );
    with(
        "boundless",
        &class("<class 'pyvene.models.interventions.RotatedSpaceIntervention'>"),
        "also found",
    );
    with(
        "rotated",
        &|json| json["representations"][0][0] = json!(1),
        "belongs to none",
    );
    with(
        "rotated",
        &|json| json["representations"][0][1] = json!("transformer.h[0].attn.c_attn.output"),
        "component",
    );
    with(
        "rotated",
        &|json| json["representations"][0][1] = json!("bogus/x"),
        "expected one of",
    );
    with(
        "rotated",
        &|json| json["representations"][0][10] = json!(0),
        "moe_key",
    );
    with("rotated", &|json| json["novelty"] = json!(true), "novelty");
    with(
        "low_rank",
        &|json| json["representations"][0][4] = json!(2),
        "expected shape [_, 2], found [16, 3]",
    );
    with(
        "zero",
        &|json| json["intervention_dimensions"][0] = json!([1, 2]),
        "interchange_dim",
    );
    let folder = copy(&trainable().join("rotated"));
    for entry in folder.path().read_dir().expect("a folder") {
        let file = entry.expect("readable").path();
        if file.extension().is_some_and(|extension| extension == "bin") {
            fs::remove_file(file).expect("it was there");
        }
    }
    fails(folder.path(), "found no such file");
    // Only part of the features, which only the model can tell.
    let folder = copy(&trainable().join("zero"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["intervention_dimensions"][0] = json!(5);
    fs::write(&file, json.to_string()).expect("written");
    let model: Decoder<B> = crate::support::load("gpt2_plain", device);
    let again = folder.path().join("again");
    let saved = SavedInterventions::<B>::load(folder.path(), device).expect("it loads");
    saved.save(&again).expect("it can be saved");
    for folder in [folder.path(), &again] {
        let error = AlignableModel::<B, _>::load(folder, model.clone()).expect_err("5 of 16");
        let found = message(&error);
        assert!(
            found.contains("expected an intervention on all 16 features"),
            "{found}"
        );
    }
    let file = again.join("config.json");
    let mut json = read_json(&file);
    for wrong in [json!([16, 16]), json!("all")] {
        json["changed_features"] = wrong;
        fs::write(&file, json.to_string()).expect("written");
        fails(&again, "changed_features: expected");
    }
    let loaded = AlignableModel::<B, _>::load(trainable().join("addition_by_path"), model);
    let loaded = loaded.expect("it loads");
    assert_eq!(loaded.config().mode, Mode::Parallel);
    assert_eq!(
        loaded.config().representations[0].site,
        Component::MlpOutput.into()
    );
}

/// Two representations of `rotated` that share its intervention, each with its own file.
fn linked_parameters_must_agree<B: Backend>(device: &B::Device) {
    let folder = copy(&trainable().join("rotated"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["representations"][0][9] = json!(2);
    for list in [
        "representations",
        "intervention_types",
        "intervention_dimensions",
    ] {
        let first = json[list][0].clone();
        json[list].as_array_mut().expect("a list").push(first);
    }
    fs::write(&file, json.to_string()).expect("written");
    let name = |number| format!("intkey_layer_0_comp_block_output_unit_pos_nunit_1#{number}.bin");
    let [first, second] = [0, 1].map(|number| folder.path().join(name(number)));

    // pyvene writes one for each; it is one intervention.
    fs::copy(&first, &second).expect("copied");
    let saved = SavedInterventions::<B>::load(folder.path(), device).expect("it loads");
    assert_eq!(saved.interventions.len(), 1);
    let other = trainable().join("rotated_interchange");
    let other = other.join("intkey_layer_1_comp_mlp_output_unit_pos_nunit_1#0.bin");
    fs::copy(other, &second).expect("copied");
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("they differ");
    let found = message(&error);
    assert!(
        found.contains("expected the same parameters as for representation 0"),
        "{found}"
    );

    // Without a model that has the layer.
    let mut json = read_json(&trainable().join("rotated/config.json"));
    json["representations"][0][0] = json!(7);
    let folder = copy(&trainable().join("rotated"));
    fs::write(folder.path().join("config.json"), json.to_string()).expect("written");
    let renamed = name(0).replace("layer_0", "layer_7");
    fs::rename(folder.path().join(name(0)), folder.path().join(renamed)).expect("renamed");
    let model: Decoder<B> = load("gpt2_plain", device);
    let error = AlignableModel::<B, _>::load(folder.path(), model).expect_err("2 layers");
    let found = message(&error);
    assert!(
        found.starts_with("representation 0: the model has no"),
        "{found}"
    );
}

/// Its `embed_dim` is that of all units together.
fn a_constant_source_goes_to_each_unit<B: Backend>(device: &B::Device) {
    let folder = copy(&trainable().join("addition_constant"));
    let file = folder.path().join("config.json");
    let mut json = read_json(&file);
    json["representations"][0][3] = json!(2);
    json["intervention_dimensions"][0] = json!(32);
    fs::write(&file, json.to_string()).expect("written");
    let [one, two] = [1, 2].map(|units| {
        let name = format!("intkey_layer_0_comp_block_output_unit_pos_nunit_{units}#0.bin");
        folder.path().join(name)
    });
    // The storages of both dimensions are 16 as i64; in the archive's copy they become 32.
    let bytes = fs::read(&one).expect("a file");
    fs::write(&two, with_dimensions(&bytes, 32)).expect("written");
    fs::remove_file(&one).expect("it was there");
    let loaded = SavedInterventions::<B>::load(folder.path(), device);
    let loaded = loaded.unwrap_or_else(|error| panic!("{}", message(&error)));
    let reference = only::<B>(&trainable().join("addition_constant"), device);
    assert_eq!(bits(&loaded.interventions[0]), bits(&reference));
    // Neither of one unit nor of two.
    fs::write(&two, with_dimensions(&bytes, 48)).expect("written");
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("three units");
    let found = message(&error);
    assert!(found.contains("embed_dim: found [48]"), "{found}");
}

/// An archive with another number in each storage of one integer.
fn with_dimensions(archive: &[u8], dimension: i64) -> Vec<u8> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(archive)).expect("an archive");
    let mut new = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).expect("an entry");
        let name = file.name().to_owned();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("readable");
        if name.contains("/data/") && bytes.len() == 8 {
            bytes = dimension.to_le_bytes().to_vec();
        }
        new.start_file(name, stored).expect("an entry");
        new.write_all(&bytes).expect("written");
    }
    new.finish().expect("an archive").into_inner()
}

fn what_cannot_be_saved_is_an_error<B: Backend>(device: &B::Device) {
    let folder = tempfile::tempdir().expect("a folder");
    let fails = |saved: SavedInterventions<B>, folder: &Path, part: &str| {
        let error = saved.save(folder).expect_err(part);
        let message = message(&error);
        assert!(message.contains(part), "expected `{part}` in: {message}");
    };
    let none = || SavedInterventions::new(config_of(1), Vec::new());
    fails(none(), folder.path(), "expected 1 intervention");
    let vanilla = |config| SavedInterventions::new(config, vec![VanillaIntervention.into()]);
    let mut config = config_of(1);
    config.representations[0].max_number_of_units = 0;
    fails(vanilla(config), folder.path(), "cannot be saved");
    let doubled = Tensor::<B, 1>::from_data(TensorData::from([1.0_f64]), (device, DType::F64));
    // If a backend has no f64, there is nothing to reject.
    if doubled.dtype() == DType::F64 {
        let it = ConstantSourceIntervention::new(doubled, SourceOperation::Add);
        let saved = SavedInterventions::new(config_of(1), vec![it.into()]);
        fails(saved, folder.path(), "tensor `0.source`: expected f32");
    }
    let closure = LambdaIntervention::new(|base, _operands| base);
    let saved = SavedInterventions::new(config_of(1), vec![closure.into()]);
    fails(saved, folder.path(), "intervention 0 is a closure");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    let occupied = folder.path().join("a file");
    fs::write(&occupied, "").expect("written");
    fails(vanilla(config_of(1)), &occupied, "cannot be written");
    // A folder is where the file should be: nothing unfinished is left.
    fs::create_dir(folder.path().join("config.json")).expect("made");
    fails(vanilla(config_of(1)), folder.path(), "cannot be written");
    let left = fs::read_dir(folder.path()).expect("a folder");
    let left = left.map(|entry| entry.expect("readable").file_name());
    assert!(
        left.into_iter()
            .all(|name| !name.to_string_lossy().ends_with(".part"))
    );
}

/// A pickle with very many names, all of one tensor.
fn no_pickle_takes_long<B: Backend>(device: &B::Device) {
    const NAMES: usize = 300_000;
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    text(&mut pickle, "0");
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(&mut pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    text(&mut pickle, "0");
    text(&mut pickle, "cpu");
    // (storage, offset 0, shape (0,), stride (1,), False, {}), remembered as 0
    pickle.extend(b"K\x00tQK\x00K\x00\x85K\x01\x85\x89}tRq\x00");
    for name in 1..NAMES {
        text(&mut pickle, &name.to_string());
        pickle.extend(b"h\x00");
    }
    pickle.extend(b"u.");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", &pickle[..]), ("a/data/0", &[])] {
        archive.start_file(name, stored).expect("an entry");
        archive.write_all(bytes).expect("written");
    }
    let folder = copy(&trainable().join("rotated"));
    let name = "intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin";
    let archive = archive.finish().expect("an archive").into_inner();
    fs::write(folder.path().join(name), archive).expect("written");
    let begin = std::time::Instant::now();
    let error = SavedInterventions::<B>::load(folder.path(), device).expect_err("no rotation");
    assert!(
        matches!(error, LoadInterventionsError::MissingTensor { .. }),
        "{error}"
    );
    // A second is plenty; comparing all pairs of names would take a minute.
    let took = begin.elapsed();
    assert!(took.as_secs() < 20, "it takes {took:?}");
}
