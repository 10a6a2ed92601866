//! Models from GGUF files, compared with the results of `transformers` for the same file.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::nn::keeps_quantized;
use burn_align_models::pretrained::LoadError;
use burn_align_models::{
    AlignableTransformer, Decoder, DecoderConfig, FromPretrained, LoadOptions, ModelInput,
    ModelSource, Pretrained, SavePretrained,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{fixtures, message, read_tensors, values};

on_every_backend!(
    logits_are_those_of_transformers,
    saved_models_are_the_same,
    a_folder_and_a_file_are_the_same_model,
);

type Loaded<B> = Pretrained<Decoder<B>, DecoderConfig>;

fn folder() -> PathBuf {
    fixtures().join("gguf/models")
}

fn names() -> Vec<String> {
    let files = folder().read_dir().expect("the fixtures");
    let names = files.filter_map(|file| {
        let name = file.ok()?.file_name().into_string().ok()?;
        Some(name.strip_suffix(".gguf")?.to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert!(names.len() >= 17, "{names:?}");
    names
}

fn load<B: Backend>(
    source: impl Into<ModelSource>,
    options: &LoadOptions,
    device: &B::Device,
) -> Loaded<B> {
    Decoder::from_pretrained(source, options, device).expect("a model")
}

/// Input ids and expected logits of every case of a model.
fn cases<B: Backend>(name: &str, device: &B::Device) -> Vec<(Tensor<B, 2, Int>, Vec<f32>)> {
    let mut tensors = read_tensors(&folder().join(format!("{name}.safetensors")));
    (0..2)
        .map(|case| {
            let mut take = |what| {
                tensors
                    .remove(&format!("case{case}.{what}"))
                    .expect("a case")
            };
            let logits = take("logits").to_vec().expect("f32");
            (Tensor::from_data(take("input_ids"), device), logits)
        })
        .collect()
}

/// How far logits may be from those of `transformers`: up to 20 here, and summed in another order.
fn allowed<B: Backend>() -> f32 {
    match keeps_quantized::<B>() {
        true => 1e-4,
        false => 5e-4,
    }
}

/// The largest distance from the expected logits.
fn distance<B: Backend>(loaded: &Loaded<B>, name: &str, device: &B::Device) -> f32 {
    let distances = cases::<B>(name, device).into_iter().map(|(ids, expected)| {
        let found = values(loaded.model.forward(ModelInput::Tokens(ids)));
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(&expected);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    });
    distances.fold(0.0, f32::max)
}

fn logits_are_those_of_transformers<B: Backend>(device: &B::Device) {
    for name in names() {
        let file = folder().join(format!("{name}.gguf"));
        for options in [
            LoadOptions::default(),
            LoadOptions::default().with_keep_quantised(true),
        ] {
            let loaded = load::<B>(file.as_path(), &options, device);
            let distance = distance(&loaded, &name, device);
            assert!(distance < allowed::<B>(), "{name}: {distance}, {options:?}");
            assert!(loaded.notes.is_empty(), "{name}: {:?}", loaded.notes);
            assert!(loaded.tokenizer.is_none());
        }
    }
}

fn saved_models_are_the_same<B: Backend>(device: &B::Device) {
    for name in names() {
        let file = folder().join(format!("{name}.gguf"));
        for keep in [false, true] {
            let options = LoadOptions::default().with_keep_quantised(keep);
            let loaded = load::<B>(file.as_path(), &options, device);
            let saved = TempDir::new().expect("a folder");
            let model = &loaded.model;
            model
                .save_pretrained(&loaded.config, None, saved.path())
                .expect("it can be saved");
            let again = load::<B>(saved.path(), &LoadOptions::default(), device);
            assert_eq!(again.config, loaded.config, "{name}");
            let distance = distance(&again, &name, device);
            assert!(distance < allowed::<B>(), "{name}: {distance}");
        }
    }
}

fn a_folder_and_a_file_are_the_same_model<B: Backend>(device: &B::Device) {
    let name = "llama_q8_0";
    let only = TempDir::new().expect("a folder");
    let file = only.path().join("model.gguf");
    fs::copy(folder().join(format!("{name}.gguf")), &file).expect("a copy");
    let by_name = |text: &Path| ModelSource::from(text.to_str().expect("text"));
    let all = [
        ModelSource::from(only.path()),
        ModelSource::from(file.as_path()),
        by_name(only.path()),
        by_name(&file),
    ];
    for source in all {
        let loaded = load::<B>(source, &LoadOptions::default(), device);
        assert!(distance(&loaded, name, device) < allowed::<B>());
    }
    let options = LoadOptions::default().with_file("llama_q8_0.gguf");
    let loaded = load::<B>(folder(), &options, device);
    assert!(distance(&loaded, name, device) < allowed::<B>());
}

/// Why a source cannot be loaded.
#[cfg(feature = "flex")]
fn refusal(source: impl Into<ModelSource>, options: &LoadOptions) -> LoadError {
    Decoder::<burn::backend::Flex>::from_pretrained(source, options, &Default::default())
        .expect_err("a model to refuse")
}

#[cfg(feature = "flex")]
#[test]
fn sources_that_do_not_say_which_file() {
    let error = refusal(folder(), &LoadOptions::default());
    assert!(matches!(error, LoadError::SeveralGguf { .. }), "{error:?}");
    assert!(message(&error).contains("gpt2_f32.gguf"), "{error}");
    let options = LoadOptions::default().with_file("nothing.gguf");
    let error = refusal(folder(), &options);
    assert!(matches!(error, LoadError::NoSuchModel { .. }), "{error:?}");
    let error = refusal("no/such/model.gguf", &LoadOptions::default());
    assert!(matches!(error, LoadError::NoSuchModel { .. }), "{error:?}");
}

/// Bytes of a fixture with one text replaced by another of the same length.
#[cfg(feature = "flex")]
fn changed(name: &str, from: &str, to: &str) -> (TempDir, PathBuf) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(folder().join(format!("{name}.gguf"))).expect("a fixture");
    let places = bytes
        .windows(from.len())
        .filter(|window| window == &from.as_bytes());
    assert!(places.count() > 0, "{from} is in {name}");
    let mut start = 0;
    while let Some(at) = bytes[start..]
        .windows(from.len())
        .position(|window| window == from.as_bytes())
    {
        bytes[start + at..][..from.len()].copy_from_slice(to.as_bytes());
        start += at + from.len();
    }
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("model.gguf");
    fs::write(&file, bytes).expect("a file");
    (folder, file)
}

#[cfg(feature = "flex")]
#[test]
fn files_that_are_no_such_model() {
    for (from, to, texts) in [
        // The architecture.
        (
            "llama",
            "llamo",
            ["general.architecture", "llama, qwen2, qwen3, gpt2"],
        ),
        // Names of metadata and tensors that are needed.
        (
            "llama.block_count",
            "llama.block_cuunt",
            ["llama.block_count", "is missing"],
        ),
        (
            "attn_norm.weight",
            "attn_nurm.weight",
            ["the checkpoint lacks", "input_layernorm"],
        ),
        (
            "output_norm.weight",
            "output_nurm.weight",
            ["the checkpoint lacks", "model.norm.weight"],
        ),
        (
            "token_embd.weight",
            "token_embx.weight",
            ["token_embd.weight", "found none"],
        ),
    ] {
        let (_folder, file) = changed("llama_f32", from, to);
        let error = message(&refusal(file.as_path(), &LoadOptions::default()));
        for text in texts {
            assert!(error.contains(text), "{from}: {text:?} is not in: {error}");
        }
    }
}

/// The configuration built from a file's metadata can be written, and reads back the same.
#[cfg(feature = "flex")]
#[test]
fn the_configuration_is_that_of_hugging_face() {
    let file = folder().join("llama_f32.gguf");
    let loaded = load::<burn::backend::Flex>(file, &LoadOptions::default(), &Default::default());
    let saved = TempDir::new().expect("a folder");
    let model = &loaded.model;
    model
        .save_pretrained(&loaded.config, None, saved.path())
        .expect("it can be saved");
    let text = fs::read_to_string(saved.path().join("config.json")).expect("the file");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["rope_theta"], 5000.0);
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["hidden_size"], 32);
    assert_eq!(config["tie_word_embeddings"], false);
}
