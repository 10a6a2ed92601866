//! Loading and saving checkpoints. What must be rejected is in the submodules.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Int, Tensor, backend::Backend};
use burn_align_models::SavePretrained;
use burn_align_models::decoder::Positions;
use burn_align_models::pretrained::SaveError;
use burn_align_models::{
    AlignableTransformer, Decoder, DecoderConfig, FromPretrained, LoadOptions, ModelInput,
    ModelSource, Pretrained,
};

use crate::scratch::{RawTensor, Scratch, raw_tensors};
use crate::support::{checkpoints, fixtures, values};

/// Checks that a folder is refused with this kind of error, and that the message names these.
#[cfg(feature = "flex")]
macro_rules! assert_refused {
    ($scratch:expr, $kind:pat, $($text:expr),+ $(,)?) => {{
        let error = $crate::loading::refusal($scratch.path());
        assert!(matches!(error, $kind), "{error:?}");
        let message = $crate::support::message(&error);
        $(assert!(message.contains($text), "{:?} is not in: {message}", $text);)+
    }};
}

#[cfg(feature = "flex")]
mod config;
#[cfg(feature = "flex")]
mod published;
#[cfg(feature = "flex")]
mod weights;

on_every_backend!(
    every_storage_loads_into_its_family,
    half_precision_is_close_to_f32,
    buffers_of_old_versions_are_ignored,
    a_tied_head_may_be_stored,
    progress_counts_every_tensor,
    saving_and_loading_changes_nothing,
    half_precision_is_saved_as_such,
    saving_replaces_what_was_there,
    heads_of_any_width_can_be_saved,
    a_model_without_a_hugging_face_form_is_not_saved,
);

type Loaded<B> = Pretrained<Decoder<B>, DecoderConfig>;

fn load<B: Backend>(folder: &Path, options: &LoadOptions, device: &B::Device) -> Loaded<B> {
    Decoder::from_pretrained(folder, options, device)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// Why a folder cannot be loaded.
#[cfg(feature = "flex")]
fn refusal(folder: &Path) -> burn_align_models::pretrained::LoadError {
    Decoder::<burn::backend::Flex>::from_pretrained(
        folder,
        &LoadOptions::default(),
        &Default::default(),
    )
    .expect_err("a checkpoint to refuse")
}

fn save<B: Backend>(loaded: &Loaded<B>, folder: &Path) {
    loaded
        .model
        .save_pretrained(&loaded.config, loaded.tokenizer.as_ref(), folder)
        .expect("the model can be saved");
}

/// The logits of one sequence, in f32.
pub(crate) fn logits<B: Backend>(
    model: &impl AlignableTransformer<B>,
    device: &B::Device,
) -> Vec<f32> {
    let ids = Tensor::<B, 2, Int>::from_data([[3, 1, 4, 1, 5, 9, 2, 6]], device);
    values(model.forward(ModelInput::Tokens(ids)))
}

fn every_storage_loads_into_its_family<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    for (name, folder) in checkpoints() {
        let loaded = load::<B>(&folder, &options, device);
        assert!(loaded.tokenizer.is_none(), "{name}");
        let family = name.strip_prefix("v5_").unwrap_or(&name);
        let stored = loaded.config.family.model_type();
        let stored = stored.strip_suffix("_text").unwrap_or(stored);
        assert!(family.starts_with(stored), "{name}: {stored}");
    }
}

/// The dtype of every parameter.
fn dtypes<B: Backend>(model: &impl Module<B>) -> Vec<DType> {
    struct DTypes(Vec<DType>);
    impl<B: Backend> ModuleVisitor<B> for DTypes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.val().dtype());
        }
    }
    let mut visitor = DTypes(Vec::new());
    model.visit(&mut visitor);
    visitor.0
}

/// The half-precision types that the backend computes in, and their rounding errors.
fn half_precisions<B: Backend>(device: &B::Device) -> Vec<(DType, f32)> {
    let all = [(DType::F16, 2_f32.powi(-11)), (DType::BF16, 2_f32.powi(-8))];
    all.into_iter()
        .filter(|(dtype, _)| B::supports_dtype(device, *dtype))
        .collect()
}

fn half_precision_is_close_to_f32<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "gpt2_bf16", "llama_gqa", "qwen2_plain"] {
        let folder = &checkpoints()[name];
        let exact = load::<B>(folder, &LoadOptions::default(), device).model;
        assert!(dtypes(&exact).iter().all(|dtype| *dtype == DType::F32));
        let exact = logits(&exact, device);
        let largest = exact.iter().fold(0_f32, |max, x| max.max(x.abs()));
        for (dtype, rounding) in half_precisions::<B>(device) {
            let options = LoadOptions::default().with_dtype(dtype);
            let model = load::<B>(folder, &options, device).model;
            assert!(dtypes(&model).iter().all(|found| *found == dtype), "{name}");
            // A few dozen roundings follow one another.
            let tolerance = 24.0 * rounding * largest;
            for (found, expected) in logits(&model, device).iter().zip(&exact) {
                let difference = (found - expected).abs();
                assert!(
                    difference <= tolerance,
                    "{name} in {dtype:?}: expected {expected}, found {found}, ± {tolerance}"
                );
            }
        }
    }
}

fn buffers_of_old_versions_are_ignored<B: Backend>(device: &B::Device) {
    let gpt2: &[&str] = &["transformer.h.0.attn.bias", "h.1.attn.masked_bias"];
    let llama: &[&str] = &["model.layers.1.self_attn.rotary_emb.inv_freq"];
    for (name, buffers) in [("gpt2_plain", gpt2), ("llama_plain", llama)] {
        let scratch = Scratch::copy(name);
        scratch.edit_tensors(|tensors| {
            for buffer in buffers {
                let mask = RawTensor {
                    dtype: safetensors::Dtype::BOOL,
                    shape: vec![1, 1, 2, 2],
                    data: vec![1, 0, 1, 1],
                };
                tensors.insert((*buffer).to_owned(), mask);
            }
        });
        let options = LoadOptions::default();
        let found = load::<B>(scratch.path(), &options, device).model;
        let expected = load::<B>(&checkpoints()[name], &options, device).model;
        assert_eq!(logits(&found, device), logits(&expected, device), "{name}");
    }
}

fn a_tied_head_may_be_stored<B: Backend>(device: &B::Device) {
    for (name, embedding) in [
        ("gpt2_plain", "transformer.wte.weight"),
        ("llama_tied", "model.embed_tokens.weight"),
    ] {
        let scratch = Scratch::copy(name);
        scratch.edit_tensors(|tensors| {
            tensors.insert("lm_head.weight".to_owned(), tensors[embedding].clone());
        });
        let options = LoadOptions::default();
        let found = load::<B>(scratch.path(), &options, device).model;
        let expected = load::<B>(&checkpoints()[name], &options, device).model;
        assert_eq!(logits(&found, device), logits(&expected, device), "{name}");
    }
}

fn progress_counts_every_tensor<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "gpt2_f16", "gpt2_sharded", "qwen2_tied"] {
        let folder = &checkpoints()[name];
        let mut sizes = std::collections::BTreeMap::new();
        for entry in folder.read_dir().expect("the fixture") {
            let file = entry.expect("the folder can be read").path();
            if file.extension().is_some_and(|e| e == "safetensors")
                && !file.ends_with("expected.safetensors")
            {
                for (tensor, stored) in raw_tensors(&file) {
                    sizes.insert(tensor, stored.data.len());
                }
            }
        }
        let events = Rc::new(RefCell::new(Vec::new()));
        let record = Rc::clone(&events);
        let options = LoadOptions::default().with_progress(move |progress| {
            record.borrow_mut().push((
                progress.tensor.to_owned(),
                [progress.tensors_done, progress.tensors_total],
                [progress.bytes_done, progress.bytes_total],
            ));
        });
        load::<B>(folder, &options, device);

        let (total, mut bytes_done) = (sizes.values().sum(), 0);
        let count = sizes.len();
        for (done, (tensor, tensors, bytes)) in events.borrow().iter().enumerate() {
            assert_eq!(*tensors, [done, count], "{name} {tensor}");
            assert_eq!(*bytes, [bytes_done, total], "{name} {tensor}");
            bytes_done += sizes.remove(tensor).expect("each tensor is read once");
        }
        assert!(sizes.is_empty(), "{name}: not reported: {sizes:?}");
    }
}

fn saving_and_loading_changes_nothing<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    for (name, folder) in checkpoints() {
        let loaded = load::<B>(&folder, &options, device);
        let scratch = Scratch::empty();
        save(&loaded, scratch.path());
        let again = load::<B>(scratch.path(), &options, device);
        assert_eq!(again.config, loaded.config, "{name}");
        let expected = logits(&loaded.model, device);
        assert_eq!(logits(&again.model, device), expected, "{name}");
        // Other programs find the tensors under the same names and in the same layout.
        let same = !name.ends_with("16") && !["gpt2_no_prefix", "gpt2_sharded"].contains(&&*name);
        if same {
            let mut original = raw_tensors(&folder.join("model.safetensors"));
            let saved = scratch.tensors();
            // Masks and tables that old versions stored are not written.
            if ["gpt_neox_pythia", "gpt_neo_hub"].contains(&&*name) {
                original.retain(|tensor, _| saved.contains_key(tensor));
            }
            let names = |tensors: &BTreeMap<String, _>| -> Vec<String> {
                tensors.keys().cloned().collect()
            };
            assert_eq!(names(&saved), names(&original), "{name}");
            assert!(saved == original, "{name}: tensors differ");
        }
    }
}

fn half_precision_is_saved_as_such<B: Backend>(device: &B::Device) {
    for (dtype, _) in half_precisions::<B>(device) {
        let options = LoadOptions::default().with_dtype(dtype);
        let name = match dtype {
            DType::F16 => "gpt2_f16",
            _ => "gpt2_bf16",
        };
        let folder = &checkpoints()[name];
        let scratch = Scratch::empty();
        save(&load::<B>(folder, &options, device), scratch.path());
        let original = raw_tensors(&folder.join("model.safetensors"));
        assert_eq!(scratch.tensors(), original, "{name}");
    }
}

fn saving_replaces_what_was_there<B: Backend>(device: &B::Device) {
    let options = LoadOptions::default();
    let scratch = Scratch::copy("llama_gqa");
    let bpe = fixtures().join("tokenizers/bpe.json");
    std::fs::copy(bpe, scratch.file("tokenizer.json")).expect("a copy");
    let loaded = load::<B>(scratch.path(), &options, device);
    let folder = scratch.file("new/folder");
    for _ in 0..2 {
        save(&loaded, &folder);
    }
    let again = load::<B>(&folder, &options, device);
    assert_eq!(logits(&again.model, device), logits(&loaded.model, device));
    let encode = |loaded: &Loaded<B>| {
        loaded
            .tokenizer()
            .expect("a tokenizer")
            .encode("The capital")
    };
    assert_eq!(encode(&again), encode(&loaded));

    let occupied = scratch.file("config.json");
    let saved = loaded
        .model
        .save_pretrained(&loaded.config, None, &occupied);
    let error = saved.expect_err("a file");
    assert!(error.to_string().contains("config.json"), "{error}");
}

/// No Hugging Face family has both a sliding window and biases on all of the attention.
fn a_model_without_a_hugging_face_form_is_not_saved<B: Backend>(device: &B::Device) {
    let name = "mistral_window";
    let loaded = load::<B>(&checkpoints()[name], &LoadOptions::default(), device);
    let mut config = loaded.config;
    (config.biases.qkv, config.biases.output) = (true, true);
    let scratch = Scratch::empty();
    let saved = config
        .init::<B>(device)
        .save_pretrained(&config, None, scratch.path());
    let error = saved.expect_err("no such family");
    assert!(
        matches!(error, SaveError::Unrepresentable { .. }),
        "{error:?}"
    );
    assert!(!scratch.file("config.json").exists(), "nothing is written");
}

/// Qwen2's `config.json` usually has no `head_dim`.
fn heads_of_any_width_can_be_saved<B: Backend>(device: &B::Device) {
    for name in ["llama_plain", "mistral_window", "qwen2_plain"] {
        let loaded = load::<B>(&checkpoints()[name], &LoadOptions::default(), device);
        let mut config = loaded.config;
        config.dims.d_head = 6;
        config.score_scale = 6_f64.sqrt().recip();
        let Positions::Rotary { global, .. } = &mut config.positions else {
            panic!("{name} has rotary embeddings");
        };
        global.d_head = 6;
        let (model, scratch) = (config.init::<B>(device), Scratch::empty());
        model
            .save_pretrained(&config, None, scratch.path())
            .expect("the model can be saved");
        let again = load::<B>(scratch.path(), &LoadOptions::default(), device);
        assert_eq!(again.config, config, "{name}");
        assert_eq!(
            logits(&again.model, device),
            logits(&model, device),
            "{name}"
        );
    }
}

#[test]
fn a_source_is_a_bundle_a_folder_or_a_hub_id() {
    let source = ModelSource::from;
    assert_eq!(
        source("bundled:capitals"),
        ModelSource::Bundled("capitals".into())
    );
    assert_eq!(source("gpt2"), ModelSource::Hub("gpt2".into()));
    assert_eq!(
        source("meta-llama/Llama-2-7b-hf"),
        ModelSource::Hub("meta-llama/Llama-2-7b-hf".into())
    );
    for folder in [
        // Folders that exist, from where tests run.
        "fixtures/gguf",
        "./gpt2",
        "../gpt2",
        "/gpt2",
        "a/b/c",
        "a//b",
        "a b",
        "",
    ] {
        assert_eq!(
            source(folder),
            ModelSource::Folder(folder.into()),
            "{folder}"
        );
    }
}
