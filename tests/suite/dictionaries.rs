//! Published dictionaries against the libraries that wrote them
//! (`tests/fixtures/make_dictionaries.py`).

mod refused;
#[cfg(feature = "flex")]
mod selecting;
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::dictionaries::{
    ActiveFeatures, CrossLayerTranscoder, Dictionary, DictionaryKind, DictionaryOptions,
    FeatureActivation, HookPoint, PublishedDictionary, SaveDictionaryError,
};
use burn_align_models::{Component, Site};
use serde_json::Value;

use crate::support::{fixtures, message, read_tensors, values};

on_every_backend!(
    dictionaries_compute_what_their_libraries_do,
    gradients_are_those_of_pytorch,
    unit_decoders_are_those_of_the_libraries,
    saved_dictionaries_come_back,
    cross_layer_transcoders_match,
);

/// The largest error, as a share of the largest value that is expected, or of 1.
const TOLERANCE: f32 = 1e-5;

fn root() -> PathBuf {
    fixtures().join("dictionaries")
}

/// A dictionary of the fixtures.
struct Case {
    name: String,
    known: Value,
}

impl Case {
    fn path(&self) -> PathBuf {
        root().join(self.known["path"].as_str().expect("a path"))
    }

    fn options(&self) -> DictionaryOptions {
        match self.known["input_scale"].as_f64() {
            Some(scale) => DictionaryOptions::default().with_input_scale(scale),
            None => DictionaryOptions::default(),
        }
    }

    fn load<B: Backend>(&self, device: &B::Device) -> PublishedDictionary<B> {
        let loaded = Dictionary::<B>::load(self.path(), &self.options(), device);
        loaded.unwrap_or_else(|error| panic!("{}: {}", self.name, message(&error)))
    }
}

fn cases() -> Vec<Case> {
    let json = std::fs::read_to_string(root().join("expected.json")).expect("the fixture");
    let cases: BTreeMap<String, Value> = serde_json::from_str(&json).expect("JSON");
    assert!(cases.len() >= 51, "only {} cases", cases.len());
    let cases = cases.into_iter();
    cases.map(|(name, known)| Case { name, known }).collect()
}

/// What the libraries computed.
struct Expected(BTreeMap<String, TensorData>);

impl Expected {
    fn read() -> Self {
        Self(read_tensors(&root().join("expected.safetensors")))
    }

    fn get(&self, case: &str, part: &str) -> Option<&TensorData> {
        self.0.get(&format!("{case}.{part}"))
    }

    fn tensor<B: Backend>(&self, case: &str, part: &str, device: &B::Device) -> Tensor<B, 2> {
        let data = self
            .get(case, part)
            .unwrap_or_else(|| panic!("{case}.{part}"));
        Tensor::from_data(data.clone(), (device, DType::F32))
    }
}

/// The largest difference, as a share of the largest value that is expected, or of 1.
fn difference<B: Backend>(found: Tensor<B, 2>, expected: &TensorData) -> f32 {
    assert_eq!(found.dims()[..], expected.shape[..], "shapes differ");
    let expected: Vec<f32> = expected.to_vec().expect("f32 values");
    let scale = expected.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
    let found = values(found);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // A NaN must not pass as a small difference.
    differences.fold(0.0, |max, d| if d <= max { max } else { d }) / scale
}

fn check_hook(name: &str, found: Option<&HookPoint>, known: &Value) {
    if known.is_null() {
        assert_eq!(found, None, "{name}");
        return;
    }
    let found = found.unwrap_or_else(|| panic!("{name}: no hook"));
    assert_eq!(
        found.name,
        known["name"].as_str().expect("a name"),
        "{name}"
    );
    let site = match &known["site"] {
        Value::String(_) => Site::Embedding,
        site => {
            let layer = site[0].as_u64().expect("a layer") as usize;
            let component = site[1].as_str().expect("a component").parse::<Component>();
            Site::Block(layer, component.expect("a component"))
        }
    };
    assert_eq!(found.site, Some(site), "{name}");
    let before_gain = known["before_gain"].as_bool().unwrap_or(false);
    assert_eq!(found.before_gain, before_gain, "{name}");
}

fn check_info<B: Backend>(case: &Case, loaded: &PublishedDictionary<B>) {
    let (name, known, info) = (&case.name, &case.known, &loaded.info);
    let format = info.format.map(|format| format.to_string());
    assert_eq!(format.as_deref(), known["format"].as_str(), "{name}");
    let kind = match loaded.dictionary.kind() {
        DictionaryKind::Autoencoder => "autoencoder",
        DictionaryKind::Transcoder => "transcoder",
    };
    assert_eq!(Some(kind), known["kind"].as_str(), "{name}");
    assert_eq!(info.model.as_deref(), known["model"].as_str(), "{name}");
    assert_eq!(info.dataset.as_deref(), known["dataset"].as_str(), "{name}");
    let context = known["context_size"].as_u64().map(|n| n as usize);
    assert_eq!(info.context_size, context, "{name}");
    assert_eq!(info.prepend_bos, known["prepend_bos"].as_bool(), "{name}");
    check_hook(name, info.input.as_ref(), &known["input"]);
    check_hook(name, info.output.as_ref(), &known["output"]);
}

fn dictionaries_compute_what_their_libraries_do<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    let mut failures = Vec::new();
    for case in cases() {
        let name = &case.name;
        let loaded = case.load::<B>(device);
        check_info(&case, &loaded);
        let dictionary = loaded.dictionary;
        let x: Tensor<B, 2> = expected.tensor(name, "x", device);
        let target = match expected.get(name, "target") {
            Some(_) => expected.tensor(name, "target", device),
            None => x.clone(),
        };
        assert_eq!(dictionary.width(), 8, "{name}");
        assert_eq!(dictionary.features(), 24, "{name}");
        let features = dictionary.encode(x.clone());
        let active = ActiveFeatures::of(&features);
        let found = [
            ("features", features.clone()),
            ("reconstruction", dictionary.decode(features, &x)),
            ("reconstruction", active.decode(&dictionary, &x)),
            ("reconstruction", dictionary.reconstruct(x.clone())),
            ("error", dictionary.error(x, target)),
        ];
        for (part, found) in found {
            let wanted = expected.get(name, part).expect("a tensor");
            let difference = difference(found, wanted);
            if difference.is_nan() || difference > TOLERANCE {
                failures.push(format!("{name}.{part}: {difference}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn gradients_are_those_of_pytorch<B: Backend>(device: &B::Device) {
    const GRADIENT: f32 = 1e-4;
    let expected = Expected::read();
    for case in cases() {
        let name = &case.name;
        let dictionary = case.load::<Autodiff<B>>(device).dictionary;
        let weights: Tensor<Autodiff<B>, 2> = expected.tensor(name, "loss_weights", device);
        let wanted = expected.get(name, "x_gradient").expect("a gradient");
        for only_active in [false, true] {
            let x: Tensor<Autodiff<B>, 2> = expected.tensor(name, "x", device);
            let x = x.require_grad();
            let features = dictionary.encode(x.clone());
            let y = match only_active {
                true => ActiveFeatures::of(&features).decode(&dictionary, &x),
                false => dictionary.decode(features, &x),
            };
            let gradients = (y * weights.clone()).sum().backward();
            let found = x.grad(&gradients).expect("it depends on x");
            let difference = difference(found, wanted);
            assert!(
                difference <= GRADIENT,
                "{name}, {only_active}: {difference}"
            );
        }
    }
}

fn unit_decoders_are_those_of_the_libraries<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    let mut compared = 0;
    for case in cases() {
        let name = &case.name;
        let dictionary = case.load::<B>(device).dictionary;
        let competes = matches!(dictionary.activation, FeatureActivation::TopK(_));
        let scaled = dictionary.clone().with_unit_decoder();
        assert_eq!(scaled.is_err(), competes, "{name}");
        let Ok(scaled) = scaled else {
            continue;
        };
        let norms = scaled.decoder.val().square().sum_dim(1).sqrt();
        assert!(values(norms).iter().all(|norm| (norm - 1.0).abs() < 1e-5));
        let x: Tensor<B, 2> = expected.tensor(name, "x", device);
        let (before, after) = (
            dictionary.reconstruct(x.clone()),
            scaled.reconstruct(x.clone()),
        );
        let change = difference(after, &before.into_data());
        assert!(change <= TOLERANCE, "{name}: {change}");
        if let Some(wanted) = expected.get(name, "unit_features") {
            compared += 1;
            let difference = difference(scaled.encode(x), wanted);
            assert!(difference <= TOLERANCE, "{name}: {difference}");
        }
    }
    assert!(compared >= 20, "only {compared}");
}

/// Saves a dictionary, unless SAELens has no class for it.
fn save<B: Backend>(loaded: &PublishedDictionary<B>, folder: &Path) -> bool {
    match loaded.dictionary.save_saelens(&loaded.info, folder) {
        Ok(()) => true,
        Err(SaveDictionaryError::Unrepresentable { .. }) => false,
        Err(error) => panic!("{}", message(&error)),
    }
}

fn saved_dictionaries_come_back<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    let folder = tempfile::tempdir().expect("a folder");
    let mut unrepresentable = Vec::new();
    for case in cases() {
        let (name, folder) = (&case.name, folder.path().join(&case.name));
        let loaded = case.load::<B>(device);
        if !save(&loaded, &folder) {
            unrepresentable.push(case.name);
            continue;
        }
        let options = DictionaryOptions::default();
        let again = Dictionary::<B>::load(folder, &options, device);
        let again = again.unwrap_or_else(|error| panic!("{name}: {}", message(&error)));
        let x: Tensor<B, 2> = expected.tensor(name, "x", device);
        let [before, after] = [&loaded.dictionary, &again.dictionary];
        let both = [before, after].map(|it| values(it.encode(x.clone())));
        assert_eq!(both[0], both[1], "{name}");
        let both = [before, after].map(|it| values(it.reconstruct(x.clone())));
        assert_eq!(both[0], both[1], "{name}");
        assert_eq!(before.kind(), after.kind(), "{name}");
        assert_eq!(before.num_params(), after.num_params(), "{name}");
        let (before, after) = (&loaded.info, &again.info);
        assert_eq!(before.model, after.model, "{name}");
        assert_eq!(before.context_size, after.context_size, "{name}");
        if before
            .input
            .as_ref()
            .is_some_and(|hook| hook.site != Some(Site::Embedding))
        {
            let sites = [before, after].map(|info| info.input.as_ref().and_then(|it| it.site));
            assert_eq!(sites[0], sites[1], "{name}");
        }
    }
    // There are no TopK transcoders in SAELens.
    assert_eq!(
        unrepresentable,
        ["sparsify_skip_transcoder", "sparsify_transcoder"]
    );
}

fn cross_layer_transcoders_match<B: Backend>(device: &B::Device) {
    let expected = Expected::read();
    for name in ["clt_relu", "clt_jumprelu", "clt_gemma_scope_2"] {
        let layers: Vec<_> = (0..3)
            .map(|layer| {
                let loaded = CrossLayerTranscoder::<B>::load(root().join(name), layer, device);
                let (transcoder, info) =
                    loaded.unwrap_or_else(|error| panic!("{name}: {}", message(&error)));
                assert_eq!(transcoder.targets(), layer..3, "{name}");
                if name != "clt_gemma_scope_2" {
                    assert_eq!(info.model.as_deref(), Some("Qwen/Qwen3-4B"));
                    let hook = format!("blocks.{layer}.hook_resid_mid");
                    assert_eq!(info.input.map(|input| input.name), Some(hook));
                }
                transcoder
            })
            .collect();
        let part = |layer: usize, part: &str| format!("{layer}.{part}");
        let inputs: Vec<Tensor<B, 2>> = (0..3)
            .map(|layer| expected.tensor(name, &part(layer, "x"), device))
            .collect();
        let outputs = CrossLayerTranscoder::reconstruct(&layers, &inputs);
        for (layer, output) in outputs.expect("they fit").into_iter().enumerate() {
            let features = layers[layer].encode(inputs[layer].clone());
            for (found, what) in [(features, "features"), (output, "output")] {
                let wanted = expected.get(name, &part(layer, what)).expect("a tensor");
                let difference = difference(found, wanted);
                assert!(
                    difference <= TOLERANCE,
                    "{name}.{layer}.{what}: {difference}"
                );
            }
        }
        let one = layers[1].encode(inputs[1].clone());
        assert!(layers[1].contribution(one.clone(), 0).is_none());
        assert!(layers[1].contribution(one.clone(), 3).is_none());
        assert!(layers[1].contribution(one, 2).is_some());
        assert!(CrossLayerTranscoder::reconstruct(&layers[1..], &inputs[1..]).is_err());
    }
}

#[cfg(all(feature = "hub", feature = "flex"))]
#[test]
fn a_dictionary_of_the_hub_is_found_in_its_cache() {
    use burn_align::dictionaries::DictionaryError;
    use burn_align_models::LoadOptions;

    let cache = tempfile::tempdir().expect("a folder");
    let folder = "layer_3/width_16k/average_l0_5";
    let repository = cache.path().join("models--google--gemma-scope-2b-pt-res");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repository.join("snapshots").join(commit).join(folder);
    for new in [&snapshot, &repository.join("refs")] {
        std::fs::create_dir_all(new).expect("a folder");
    }
    std::fs::write(repository.join("refs/main"), commit).expect("written");
    let fixture = root().join("gemma_scope_res/gemma-scope-2b-pt-res");
    let fixture = fixture.join(folder).join("params.npz");
    std::fs::copy(fixture, snapshot.join("params.npz")).expect("a copy");

    let hub = LoadOptions::default().with_offline(true);
    let options = DictionaryOptions::default().with_hub(hub.with_hub_cache(cache.path()));
    let load = |folder: &str| {
        let source = format!("google/gemma-scope-2b-pt-res#{folder}");
        Dictionary::<burn::backend::Flex>::load(source, &options, &Default::default())
    };
    for source in [folder.to_owned(), format!("{folder}/params.npz")] {
        let loaded = load(&source).unwrap_or_else(|error| panic!("{}", message(&error)));
        assert_eq!(loaded.info.model.as_deref(), Some("gemma-2-2b"));
        let site = loaded.info.input.and_then(|input| input.site);
        assert_eq!(site, Some(Site::Block(3, Component::BlockOutput)));
    }
    let error = load("layer_4").expect_err("it is not there");
    assert!(matches!(error, DictionaryError::Hub(_)), "{error:?}");
}

/// Writes every dictionary that SAELens can hold, for `tests/fixtures/check_saelens.py`.
#[cfg(feature = "flex")]
#[test]
#[ignore = "writes to the folder that FOR_SAELENS names"]
fn folders_for_saelens() {
    let folder = std::env::var_os("FOR_SAELENS").expect("FOR_SAELENS names a folder");
    for case in cases() {
        let loaded = case.load::<burn::backend::Flex>(&Default::default());
        save(&loaded, &Path::new(&folder).join(&case.name));
    }
}
