//! Damaged files, and dictionaries that would compute something else.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn_align::dictionaries::{Dictionary, DictionaryError, DictionaryOptions};
use burn_align::saved::FileError;
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::root;
use crate::support::{message, random, values};

on_every_backend!(
    what_changes_the_computation_is_refused_by_name,
    tensors_must_be_those_of_the_kind,
    damaged_files_are_errors,
    numbers_in_f64_are_rounded,
    code_is_not_run,
    what_is_not_stored_must_be_given,
    what_is_no_dictionary_is_an_error,
);

/// A dictionary of the fixtures in a folder of its own.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn of(fixture: impl AsRef<Path>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        copy(&root().join(fixture), folder.path());
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Sets a key of a configuration, or removes it.
    fn set(&self, file: &str, pointer: &[&str], value: Option<Value>) {
        let file = self.path().join(file);
        let json = fs::read_to_string(&file).expect("the configuration");
        let mut json: Value = serde_json::from_str(&json).expect("JSON");
        let (last, above) = pointer.split_last().expect("a key");
        let object = above.iter().fold(&mut json, |at, key| &mut at[*key]);
        let object = object.as_object_mut().expect("an object");
        match value {
            Some(value) => object.insert((*last).to_owned(), value),
            None => object.remove(*last),
        };
        fs::write(file, json.to_string()).expect("written");
    }

    /// Changes the tensors of a safetensors file.
    fn tensors(&self, change: impl Fn(&str, &mut Vec<f32>, &mut Vec<usize>) -> bool) {
        let file = self.path().join("sae_weights.safetensors");
        let bytes = fs::read(&file).expect("the weights");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let mut kept = Vec::new();
        for (name, view) in tensors.iter() {
            let (values, _) = view.data().as_chunks::<4>();
            let mut values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let mut shape = view.shape().to_vec();
            if change(name, &mut values, &mut shape) {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                kept.push((name.to_owned(), shape, bytes));
            }
        }
        let views = kept.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
            (name.as_str(), view)
        });
        fs::write(file, serialize(views, None).expect("safetensors")).expect("written");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the fixture") {
        let entry = entry.expect("readable");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => {
                fs::copy(from, to).expect("a copy");
            }
        }
    }
}

fn load<B: Backend>(path: &Path, device: &B::Device) -> Result<Dictionary<B>, DictionaryError> {
    let loaded = Dictionary::<B>::load(path, &DictionaryOptions::default(), device);
    loaded.map(|loaded| loaded.dictionary)
}

fn refusal<B: Backend>(path: &Path, device: &B::Device) -> DictionaryError {
    let error = load::<B>(path, device).map(|_| ());
    error.expect_err(&path.display().to_string())
}

fn what_changes_the_computation_is_refused_by_name<B: Backend>(device: &B::Device) {
    let standard = "saelens_standard";
    let sparsify = "sparsify/run/layers.6";
    let llama = "llama_scope/Llama3_1-8B-Base-L4R-8x";
    let gemma = "gemma_scope_2_res/resid_post/layer_9_width_16k_l0_small";
    let (cfg, config) = ("cfg.json", "config.json");
    let cases: [(&str, &str, &[&str], Value); 20] = [
        (standard, cfg, &["architecture"], json!("temporal")),
        (standard, cfg, &["architecture"], json!("batchtopk")),
        (standard, cfg, &["architecture"], json!("matching_pursuit")),
        (
            standard,
            cfg,
            &["normalize_activations"],
            json!("covariance_whitening"),
        ),
        (standard, cfg, &["normalize_activations"], json!(3)),
        (standard, cfg, &["reshape_activations"], json!("hook_q")),
        (standard, cfg, &["activation_fn"], json!("tanh-relu")),
        (standard, cfg, &["d_sae"], json!(0)),
        (standard, cfg, &["d_in"], json!("8")),
        (standard, cfg, &["apply_b_dec_to_input"], json!("yes")),
        ("saelens_topk", cfg, &["k"], json!(0)),
        (
            "saelens_old_standard",
            cfg,
            &["activation_fn_str"],
            json!("identity"),
        ),
        (
            "saelens_transcoder",
            cfg,
            &["apply_b_dec_to_input"],
            json!(true),
        ),
        (sparsify, cfg, &["activation"], json!("groupmax")),
        (sparsify, cfg, &["signed"], json!(true)),
        (llama, "hyperparams.json", &["act_fn"], json!("topk")),
        (
            llama,
            "hyperparams.json",
            &["norm_activation"],
            json!("token-wise"),
        ),
        (llama, "hyperparams.json", &["use_glu_encoder"], json!(true)),
        (gemma, config, &["architecture"], json!("topk")),
        (
            "dl_standard",
            config,
            &["trainer", "dict_class"],
            json!("IdentityDict"),
        ),
    ];
    for (fixture, file, pointer, value) in cases {
        let copy = Scratch::of(fixture);
        copy.set(file, pointer, Some(value));
        let text = message(&refusal::<B>(copy.path(), device));
        let key = pointer.last().expect("a key").replace("_str", "");
        assert!(text.contains(&key), "{fixture}, {pointer:?}: {text}");
        assert!(text.contains(file), "{text}");
    }

    let copy = Scratch::of(standard);
    copy.set("cfg.json", &["postscaling_norm"], Some(json!(2)));
    let error = refusal::<B>(copy.path(), device);
    assert!(matches!(&error, DictionaryError::UnknownKeys { keys, .. } if keys.len() == 1));
    assert!(message(&error).contains("`postscaling_norm` = 2"));
    let options = DictionaryOptions::default().with_ignored_config_keys(["postscaling_norm"]);
    assert!(Dictionary::<B>::load(copy.path(), &options, device).is_ok());
    copy.set("cfg.json", &["postscaling_norm"], None);
    copy.set("cfg.json", &["favourite_colour"], Some(json!("blue")));
    let loaded = Dictionary::<B>::load(copy.path(), &DictionaryOptions::default(), device);
    let notes = loaded.expect("only a note").info.notes;
    assert_eq!(notes, ["`favourite_colour` = \"blue\""]);
}

fn tensors_must_be_those_of_the_kind<B: Backend>(device: &B::Device) {
    let copy = Scratch::of("saelens_jumprelu");
    copy.tensors(|name, _, _| name != "threshold");
    let error = refusal::<B>(copy.path(), device);
    assert!(
        matches!(&error, DictionaryError::File(FileError::MissingTensor { tensor, .. })
            if tensor == "threshold")
    );

    let copy = Scratch::of("saelens_jumprelu");
    copy.set("cfg.json", &["architecture"], Some(json!("standard")));
    let error = refusal::<B>(copy.path(), device);
    let DictionaryError::File(FileError::UnusedTensors { tensors, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(tensors, &["threshold"]);

    let copy = Scratch::of("saelens_standard");
    copy.tensors(|name, values, shape| {
        if name == "W_enc" {
            values.truncate(7 * 24);
            *shape = vec![7, 24];
        }
        true
    });
    let text = message(&refusal::<B>(copy.path(), device));
    assert!(
        text.contains("`W_enc`: expected shape [8, 24], found [7, 24]"),
        "{text}"
    );

    let copy = Scratch::of("saelens_old_standard");
    assert!(load::<B>(copy.path(), device).is_ok());
    copy.tensors(|name, values, _| {
        if name == "scaling_factor" {
            values[5] = 1.5;
        }
        true
    });
    let text = message(&refusal::<B>(copy.path(), device));
    assert!(
        text.contains("`scaling_factor`") && text.contains("1.5"),
        "{text}"
    );

    let copy = Scratch::of("dl_topk");
    copy.set("config.json", &["trainer", "k"], Some(json!(5)));
    let text = message(&refusal::<B>(copy.path(), device));
    assert!(
        text.contains("trainer.k") && text.contains("k = 4"),
        "{text}"
    );
}

fn damaged_files_are_errors<B: Backend>(device: &B::Device) {
    let gemma = "gemma_scope_res/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_5";
    for (fixture, file) in [
        ("saelens_standard", "cfg.json"),
        ("saelens_standard", "sae_weights.safetensors"),
        (gemma, "params.npz"),
        ("dl_standard", "ae.pt"),
    ] {
        let copy = Scratch::of(fixture);
        let file = copy.path().join(file);
        let bytes = fs::read(&file).expect("the file");
        for end in (0..bytes.len() - 1).step_by(bytes.len() / 60) {
            fs::write(&file, &bytes[..end]).expect("written");
            let error = refusal::<B>(copy.path(), device);
            assert!(
                matches!(error, DictionaryError::File(FileError::Unreadable { .. })),
                "{fixture}, {end}: {error:?}"
            );
        }
        fs::remove_file(&file).expect("removed");
        let text = message(&refusal::<B>(copy.path(), device));
        assert!(text.contains(&copy.path().display().to_string()), "{text}");
    }
    let copy = Scratch::of("saelens_standard");
    let cfg = copy.path().join("cfg.json");
    fs::rename(&cfg, copy.path().join("cfg.json.part")).expect("renamed");
    let error = refusal::<B>(copy.path(), device);
    assert!(matches!(error, DictionaryError::CutOff { .. }), "{error:?}");
}

/// As when the publishers' libraries load them into modules in f32.
fn numbers_in_f64_are_rounded<B: Backend>(device: &B::Device) {
    let encoded = |path: &Path| {
        let dictionary = load::<B>(path, device).expect("it loads");
        values(dictionary.encode(random::<B, 2>(3, [5, 8], device)))
    };
    // A state dict of PyTorch, whose threshold is f64 too.
    let expected = encoded(&root().join("dl_batchtopk"));
    assert!(expected.iter().any(|feature| *feature > 0.0));
    assert_eq!(encoded(&root().join("dl_double")), expected);

    let copy = Scratch::of("saelens_jumprelu");
    let expected = encoded(copy.path());
    let written = |factor: f64| {
        let file = copy.path().join("sae_weights.safetensors");
        let bytes = fs::read(root().join("saelens_jumprelu/sae_weights.safetensors"));
        let bytes = bytes.expect("the weights");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let doubled = tensors.iter().map(|(name, view)| {
            let (values, _) = view.data().as_chunks::<4>();
            let values = values.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
            let bytes = values.flat_map(|value| (factor * value).to_le_bytes());
            (name.to_owned(), view.shape().to_vec(), bytes.collect())
        });
        let doubled: Vec<(String, Vec<usize>, Vec<u8>)> = doubled.collect();
        let views = doubled.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F64, shape.clone(), bytes).expect("a tensor");
            (name.as_str(), view)
        });
        fs::write(file, serialize(views, None).expect("safetensors")).expect("written");
    };
    written(1.0 + 1e-9);
    assert_eq!(encoded(copy.path()), expected);
    written(1e40);
    let text = message(&refusal::<B>(copy.path(), device));
    assert!(
        text.contains("expected numbers within the range of f32, found"),
        "{text}"
    );
}

fn code_is_not_run<B: Backend>(device: &B::Device) {
    let error = refusal::<B>(&root().join("refused_module"), device);
    let DictionaryError::File(FileError::ForbiddenGlobal { global, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(global, "dictionary_learning.dictionary.AutoEncoder");
}

fn what_is_not_stored_must_be_given<B: Backend>(device: &B::Device) {
    for fixture in [
        "saelens_scaled",
        "saelens_old_scaled",
        "llama_scope_distilled/L4R",
    ] {
        let error = refusal::<B>(&root().join(fixture), device);
        assert!(
            matches!(error, DictionaryError::NotStored { .. }),
            "{error:?}"
        );
        assert!(message(&error).contains("with_input_scale"));
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let options = DictionaryOptions::default().with_input_scale(scale);
            assert!(Dictionary::<B>::load(root().join(fixture), &options, device).is_err());
        }
    }
    // Elsewhere the name of the folder does not say it.
    let copy = Scratch::of("qwen_scope/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4");
    let file: PathBuf = copy.path().join("layer7.sae.pt");
    let error = refusal::<B>(&file, device);
    assert!(message(&error).contains("with_k"), "{error}");
    let options = DictionaryOptions::default().with_k(4);
    assert!(Dictionary::<B>::load(file, &options, device).is_ok());
}

fn what_is_no_dictionary_is_an_error<B: Backend>(device: &B::Device) {
    let empty = tempfile::tempdir().expect("a folder");
    let error = refusal::<B>(empty.path(), device);
    assert!(message(&error).contains("found none"), "{error}");
    let missing = empty.path().join("missing");
    let error = refusal::<B>(&missing, device);
    assert!(
        matches!(error, DictionaryError::NoSuchSource { .. }),
        "{error:?}"
    );
    let error = refusal::<B>(&root().join("expected.safetensors"), device);
    assert!(
        matches!(error, DictionaryError::UnknownFormat { .. }),
        "{error:?}"
    );
    let several = root().join("clt_gemma_scope_2/layer_1.safetensors");
    let error = refusal::<B>(&several, device);
    assert!(
        message(&error).contains("CrossLayerTranscoder::load"),
        "{error}"
    );
    let compressed = refusal::<B>(&root().join("refused_compressed"), device);
    assert!(message(&compressed).contains("numpy.savez"), "{compressed}");
}
