//! The inputs that are fuzzed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType,
};
use burn_align::saved::SavedInterventions;
use burn_align::training::{
    CheckpointInterval, Checkpoints, InterchangeData, TrainingConfig, TrainingEvent, losses, train,
};
use burn_align_models::pretrained::gguf::{Gguf, vocabulary};
use burn_align_models::{
    AlignableTransformer, ChatMessage, ChatOptions, Component, Decoder, FromPretrained,
    LoadOptions, ModelInput, Pretrained, TokenBatch, Tokenizer, TokenizerFiles,
};
use workbench::requests::Request;

use crate::tokenizers::every_kind;
use crate::{Folder, SLACK, fixtures, fuzz, read_folder};

/// Requests of the example `intervene`, read and answered.
#[test]
fn requests() {
    let folder = fixtures().join("interventions");
    let mut corpus: Vec<Folder> = Vec::new();
    let all = read_folder(&folder, |name| name.ends_with(".json"));
    // Some of each kind.
    for bytes in all.into_values().step_by(5) {
        let text = String::from_utf8(bytes).expect("text");
        let model = if text.contains("gpt2_plain") {
            "gpt2_plain"
        } else {
            "llama_gqa"
        };
        if text.contains(model) {
            corpus.push([(format!("{model}.json"), text.into_bytes())].into());
        }
    }
    let device = Default::default();
    let load = |name: &str| {
        let folder = fixtures().join("checkpoints").join(name);
        Decoder::<Flex>::from_pretrained(folder, &LoadOptions::default(), &device)
            .expect("a fixture")
    };
    let models = ["gpt2_plain", "llama_gqa"].map(|name| (name, load(name)));
    fuzz(&corpus, SLACK, |folder| {
        let (name, model) = models
            .iter()
            .find(|(name, _)| folder.join(format!("{name}.json")).exists())
            .expect("one of them");
        let bytes = fs::read(folder.join(format!("{name}.json"))).expect("written");
        let Ok(text) = String::from_utf8(bytes) else {
            return false;
        };
        let Ok(request) = Request::parse(&text) else {
            return false;
        };
        // Attention takes memory with the square of the length, as it should.
        if request.longest_input().is_some_and(|length| length > 256) {
            return false;
        }
        request.answer(folder, model, &device).is_ok()
    });
}

/// Checkpoints: `config.json`, weights and indices of shards.
#[test]
fn checkpoints() {
    let folders = fs::read_dir(fixtures().join("checkpoints")).expect("the fixtures");
    let folders = folders.map(|entry| entry.expect("readable").path());
    let corpus: Vec<Folder> = folders
        .map(|folder| {
            read_folder(&folder, |name| {
                name == "config.json"
                    || (name.contains(".safetensors") && !name.starts_with("expected"))
            })
        })
        .collect();
    let device = Default::default();
    fuzz(&corpus, SLACK, |folder| {
        let loaded: Result<Pretrained<Decoder<Flex>, _>, _> =
            Decoder::from_pretrained(folder, &LoadOptions::default(), &device);
        let Ok(loaded) = loaded else {
            return false;
        };
        // A configuration that is accepted can be computed with.
        let ids = TokenBatch::new(vec![vec![0; 3]]).expect("a prompt");
        if ids.check(loaded.model.dims()).is_ok() {
            let logits = loaded
                .model
                .forward(ModelInput::Tokens(ids.to_tensor(&device)));
            logits.into_data();
        }
        true
    });
}

/// Folders of interventions, in this crate's format and in pyvene's.
#[test]
fn interventions() {
    let device = Default::default();
    let mut corpus: Vec<Folder> = Vec::new();
    for entry in fs::read_dir(fixtures().join("trainable")).expect("a fixture") {
        let folder = entry.expect("readable").path();
        let name = folder.file_name().and_then(|name| name.to_str());
        if !folder.is_dir() || name == Some("evil") {
            continue;
        }
        let pyvene = read_folder(&folder, |name| {
            name == "config.json" || name.ends_with(".bin")
        });
        // The same in this crate's format.
        if let Ok(saved) = SavedInterventions::<Flex>::load(&folder, &device) {
            let own = tempfile::tempdir().expect("a folder for temporary files");
            if saved.save(own.path()).is_ok() {
                corpus.push(read_folder(own.path(), |_| true));
            }
            corpus.push(pyvene);
        }
    }
    assert!(corpus.len() > 30, "{} folders", corpus.len());
    fuzz(&corpus, SLACK, |folder| {
        SavedInterventions::<Flex>::load(folder, &device).is_ok()
    });
}

/// Tokenizers of all kinds: read, and used in every way.
#[test]
fn tokenizers() {
    const FILE: &str = "tokenizer.json";
    // A regular expression such as ` {999999,}` is rejected by the engine's own limit, once it has
    // grown to 10 MiB, and that more than once.
    const REGEX_SLACK: usize = 64 << 20;
    let corpus: Vec<Folder> = every_kind()
        .into_iter()
        .map(|json| [(FILE.to_owned(), json.into_bytes())].into())
        .collect();
    fuzz(&corpus, REGEX_SLACK, |folder| {
        let bytes = fs::read(folder.join(FILE)).expect("written");
        let Ok(json) = String::from_utf8(bytes) else {
            return false;
        };
        let Ok(tokenizer) = Tokenizer::from_json(&json) else {
            return false;
        };
        // Text that an inconsistent tokenizer cannot handle is also an error.
        for text in ["The capital of Spain is", " café 🦀\n<|endoftext|>", ""] {
            let Ok(ids) = tokenizer.encode(text) else {
                continue;
            };
            let _ = tokenizer.decode(&ids);
            tokenizer.token_strings(&ids);
            tokenizer.token_marks(&ids);
            let _ = tokenizer.positions_of(text, "Spain");
            let _ = tokenizer.single_token(text);
        }
        tokenizer.token_strings(&[0, 7, u32::MAX]);
        true
    });
}

/// GGUF files: their metadata, tensors and vocabularies.
#[test]
fn gguf() {
    let all = read_folder(&fixtures().join("gguf"), |name| name.ends_with(".gguf"));
    let (parts, single): (Folder, Folder) = all
        .into_iter()
        .partition(|(name, _)| name.starts_with("parts-"));
    let single = single.into_iter().map(|file| Folder::from([file]));
    let corpus: Vec<Folder> = single.chain([parts]).collect();
    fuzz(&corpus, SLACK, |folder| {
        let files = fs::read_dir(folder).expect("there");
        let file = files.map(|entry| entry.expect("readable").path()).min();
        let Ok(gguf) = Gguf::open(file.expect("a file")) else {
            return false;
        };
        for tensor in gguf.tensors() {
            assert!(tensor.shape.iter().product::<usize>() > 0);
            let bytes = tensor.bytes.as_ref();
            assert!(bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>() < u64::MAX);
        }
        let Ok(texts) = vocabulary(&gguf) else {
            return false;
        };
        // A checked vocabulary is a valid tokenizer.
        let Some(texts) = texts else {
            return true;
        };
        let tokenizer = Tokenizer::from_json(&texts.tokenizer_json).expect("a tokenizer");
        let _ = tokenizer.encode("The capital of Spain is\n\n  1234 <table> 世界");
        true
    });
}

/// Folders whose other files determine the tokens, or contain the vocabulary, and chat templates.
#[test]
fn tokenizer_folders() {
    const REGEX_SLACK: usize = 64 << 20;
    let place = fixtures().join("tokenizers/base");
    let base = |name: &str| fs::read(place.join(name)).expect("a fixture");
    let config = |class: &str| {
        const CHAT: &str =
            "{% for m in messages %}{{ m.content | trim }}{{ loop.index }}{% endfor %}";
        let json = match class {
            "T5Tokenizer" => serde_json::json!({
                "tokenizer_class": class, "extra_ids": 3, "chat_template": CHAT,
            }),
            "LlamaTokenizer" => serde_json::json!({
                "tokenizer_class": class, "add_bos_token": true, "bos_token": "<s>",
                "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": true},
                "added_tokens_decoder": {
                    "0": {"content": "<unk>", "special": true, "normalized": false},
                },
                "additional_special_tokens": ["<x>"], "legacy": false, "chat_template": CHAT,
            }),
            _ => serde_json::json!({"tokenizer_class": class, "chat_template": CHAT}),
        };
        json.to_string().into_bytes()
    };
    let folder = |class: &str, files: &[(&str, &str)]| -> Folder {
        let files = files
            .iter()
            .map(|(name, of)| ((*name).to_owned(), base(of)));
        let config = ("tokenizer_config.json".to_owned(), config(class));
        files.chain([config]).collect()
    };
    let corpus = [
        folder("LlamaTokenizer", &[("tokenizer.model", "llama.model")]),
        folder("T5Tokenizer", &[("tokenizer.model", "t5.model")]),
        folder("GemmaTokenizer", &[("tokenizer.json", "gemma.json")]),
        folder(
            "GPT2Tokenizer",
            &[("vocab.json", "vocab.json"), ("merges.txt", "merges.txt")],
        ),
    ];
    fuzz(&corpus, REGEX_SLACK, |folder| {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let mut files = TokenizerFiles::default();
        files.tokenizer = text("tokenizer.json");
        files.config = text("tokenizer_config.json");
        files.vocab = text("vocab.json");
        files.merges = text("merges.txt");
        files.sentencepiece = fs::read(folder.join("tokenizer.model")).ok();
        let Ok(tokenizer) = Tokenizer::from_files(files) else {
            return false;
        };
        let _ = tokenizer.encode("The capital of Spain is<s> café 🦀");
        let _ = tokenizer.chat(&[ChatMessage::user(" Rome ")], &ChatOptions::default());
        let _ = tokenizer.to_json();
        true
    });
}

/// The state of a run, interrupted or finished: the run resumes from it.
#[test]
fn training() {
    type A = Autodiff<Flex>;
    let device = Default::default();
    let folder = fixtures().join("checkpoints/gpt2_plain");
    let model = Decoder::<A>::from_pretrained(folder, &LoadOptions::default(), &device);
    let model = model.expect("a fixture").model;
    let mut representation = AlignableRepresentationConfig::new(0, Component::BlockOutput)
        .with_intervention(InterventionType::LowRankRotatedSpace);
    representation.low_rank_dimension = Some(2);
    let alignment = AlignableConfig::new([representation]);
    let prompts = |salt| {
        let ids = (0..4).map(|example| vec![example * 5 + salt, example + salt, example]);
        TokenBatch::new(ids.collect()).expect("prompts")
    };
    let inputs = AlignableInputs::new(prompts(1))
        .with_sources([prompts(2)])
        .with_locations(1);
    let data = InterchangeData::<Flex>::new(inputs, vec![1, 2, 3, 4]);
    let run = |folder: &Path, stop: Option<usize>| {
        let checkpoints = Checkpoints::new(folder).with_every(CheckpointInterval::Steps(1));
        let config = TrainingConfig::default()
            .with_epochs(2)
            .with_batch_size(2)
            .with_checkpoints(checkpoints);
        let alignable = AlignableModel::new(alignment.clone(), model.clone()).expect("it fits");
        let data = std::slice::from_ref(&data);
        let trained = train(
            alignable,
            data,
            data,
            &config,
            losses::cross_entropy,
            |event| {
                if matches!(event, TrainingEvent::Step(report) if Some(report.step) == stop) {
                    // A panic that prints nothing.
                    resume_unwind(Box::new("interrupted"));
                }
            },
        );
        trained.is_ok()
    };
    let mut corpus = Vec::new();
    for stop in [Some(1), Some(3), None] {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let cut_off = catch_unwind(AssertUnwindSafe(|| run(folder.path(), stop)));
        assert_eq!(cut_off.is_err(), stop.is_some());
        corpus.push(read_folder(folder.path(), |_| true));
    }
    fuzz(&corpus, SLACK, |folder| run(folder, None));
}
