//! GGUF files, written by the `gguf` package, and their vocabularies, compared with llama.cpp.

use std::fs;
use std::path::{Path, PathBuf};

use burn_align_models::Tokenizer;
use burn_align_models::pretrained::gguf::{
    GgmlType, Gguf, GgufError, MetadataArray, MetadataValue, TokenizerTexts, vocabulary,
};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::fixtures;

mod models;

fn fixture(name: &str) -> PathBuf {
    fixtures().join("gguf").join(name)
}

fn open(name: &str) -> Gguf {
    Gguf::open(fixture(name)).expect("a fixture")
}

fn as_f32(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.chunks_exact(4).map(|bytes| bytes.try_into());
    let values = values.map(|bytes| f32::from_le_bytes(bytes.expect("four bytes")));
    values.collect()
}

#[test]
fn all_kinds_of_metadata_are_read() {
    let gguf = open("kinds.gguf");
    let metadata = gguf.metadata();
    let expected = [
        ("u8", MetadataValue::U8(200)),
        ("i8", MetadataValue::I8(-100)),
        ("u16", MetadataValue::U16(60000)),
        ("i16", MetadataValue::I16(-30000)),
        ("u32", MetadataValue::U32(4_000_000_000)),
        ("i32", MetadataValue::I32(-2_000_000_000)),
        ("u64", MetadataValue::U64(1 << 63)),
        ("i64", MetadataValue::I64(-(1 << 62))),
        ("f32", MetadataValue::F32(0.1)),
        ("f64", MetadataValue::F64(0.1)),
        ("yes", MetadataValue::Bool(true)),
        ("no", MetadataValue::Bool(false)),
        ("text", MetadataValue::String("naïve 🦀".to_owned())),
        (
            "integers",
            MetadataValue::Array(MetadataArray::I32(vec![3, -4, 5])),
        ),
        (
            "floats",
            MetadataValue::Array(MetadataArray::F32(vec![0.5, -1.5])),
        ),
        (
            "flags",
            MetadataValue::Array(MetadataArray::Bool(vec![true, false])),
        ),
    ];
    for (key, value) in &expected {
        assert_eq!(metadata.get(key), Some(value), "{key}");
    }
    let read = |key| metadata.texts(key).expect("texts").expect("there");
    assert_eq!(read("texts"), ["one", "", "drei"]);
    assert_eq!(metadata.flag("yes").expect("a flag"), Some(true));
    assert_eq!(metadata.float("i16").expect("a number"), Some(-30000.0));
    let error = metadata.unsigned("text").expect_err("a text");
    assert!(error.to_string().contains("found \"naïve 🦀\""), "{error}");
}

/// Checks the tensors of the fixtures.
fn assert_tensors(gguf: &Gguf) {
    let found = gguf.tensors().iter();
    let found: Vec<_> = found
        .map(|tensor| {
            let shape = tensor.shape.as_slice();
            (tensor.name.as_str(), shape, tensor.ggml_type)
        })
        .collect();
    let expected: [(_, &[usize], _); 6] = [
        ("blk.0.f32", &[2, 3], GgmlType::F32),
        ("blk.0.f16", &[5], GgmlType::F16),
        ("blk.1.q4_0", &[2, 64], GgmlType::Q4_0),
        ("blk.1.q8_0", &[2, 64], GgmlType::Q8_0),
        ("blk.1.bf16", &[2, 64], GgmlType::BF16),
        ("blk.2.i32", &[2], GgmlType::I32),
    ];
    assert_eq!(found, expected);
    let bytes = |name| gguf.tensor(name).expect("a tensor").bytes.clone();
    let counted = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625];
    assert_eq!(as_f32(bytes("blk.0.f32").as_ref()), counted);
    assert_eq!(bytes("blk.1.q4_0").as_ref().len(), 2 * 2 * 18);
    // The first block counts to 31 / 8: its scale is that over 127.
    let q8_0 = bytes("blk.1.q8_0");
    assert_eq!(q8_0.as_ref().len(), 2 * 2 * 34);
    assert_eq!(q8_0.as_ref()[33], 127);
    let integers = [7_i32.to_le_bytes(), (-7_i32).to_le_bytes()].concat();
    assert_eq!(bytes("blk.2.i32").as_ref(), integers);
    assert!(gguf.tensor("blk.9").is_none());
}

#[test]
fn tensors_are_read_from_the_mapped_file() {
    let gguf = open("kinds.gguf");
    assert_tensors(&gguf);
    // The bytes outlive the file's handle, and may be read in other threads.
    let tensor = gguf.tensor("blk.0.f32").expect("a tensor").bytes.clone();
    drop(gguf);
    let other = std::thread::spawn(move || as_f32(tensor.as_ref())[1]);
    assert_eq!(other.join().expect("read"), 0.125);
}

fn part(number: usize) -> String {
    format!("parts-{number:05}-of-00003.gguf")
}

/// A folder with the three parts.
fn parts() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    for number in 1..=3 {
        fs::copy(fixture(&part(number)), folder.path().join(part(number))).expect("copied");
    }
    folder
}

#[track_caller]
fn refused(file: &Path, expected: &[&str]) -> GgufError {
    let error = Gguf::open(file).expect_err("it cannot be opened");
    let message = error.to_string();
    for part in expected {
        assert!(message.contains(part), "{message}");
    }
    error
}

#[test]
fn any_part_opens_all() {
    for number in 1..=3 {
        let gguf = open(&part(number));
        assert_tensors(&gguf);
        let text = gguf.metadata().text("text").expect("a text");
        assert_eq!(text, Some("in the first part"));
        assert_eq!(gguf.files(), [1, 2, 3].map(|number| fixture(&part(number))));
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let folder = parts();
    let path = |number| folder.path().join(part(number));
    fs::remove_file(path(2)).expect("there");
    let error = refused(&path(3), &[&part(2), "is missing"]);
    assert!(matches!(error, GgufError::MissingPart { count: 3, .. }));

    // The first part in place of the second.
    fs::copy(path(1), path(2)).expect("copied");
    refused(&path(1), &[&part(2), "`split.no`: expected 1", "found 0"]);

    // A part that claims to be the second, with the tensors of the third.
    let third = fs::read(path(3)).expect("there");
    let second = set(third, "split.no", &Value::from(1));
    fs::write(path(2), second).expect("written");
    refused(&path(1), &["tensor `blk.1.bf16`: expected once"]);

    // A wrong number of tensors.
    let folder = parts();
    let path = |number| folder.path().join(part(number));
    let first = fs::read(path(1)).expect("there");
    let first = set(first, "split.tensors.count", &Value::from(7));
    fs::write(path(1), first).expect("written");
    refused(
        &path(1),
        &["`split.tensors.count`", "there are 6", "found 7"],
    );

    // By another name.
    let renamed = folder.path().join("model.gguf");
    fs::copy(path(2), &renamed).expect("copied");
    refused(&renamed, &["one of 3 parts", "model-00001-of-00003.gguf"]);
    fs::write(path(2), b"GGUF").expect("written");
    refused(&path(1), &[&part(2), "cut off"]);
    refused(folder.path(), &["cannot be read"]);
    refused(&folder.path().join("none.gguf"), &["cannot be read"]);
}

/// The bytes of a file with another value for a key that holds a string, a bool or an integer.
fn set(mut file: Vec<u8>, key: &str, value: &Value) -> Vec<u8> {
    let name = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
    let found = file.windows(name.len()).position(|bytes| bytes == name);
    // After the name is the number of the value's type.
    let at = found.expect("it has the key") + name.len() + 4;
    match value {
        Value::Bool(flag) => file[at] = u8::from(*flag),
        // All in use are below 256.
        Value::Number(number) => file[at] = number.as_u64().expect("an integer") as u8,
        Value::String(text) => {
            let length: [u8; 8] = file[at..at + 8].try_into().expect("eight bytes");
            let end = at + 8 + u64::from_le_bytes(length) as usize;
            let length = (text.len() as u64).to_le_bytes();
            let written = [&length[..], text.as_bytes()].concat();
            file.splice(at..end, written);
        }
        other => panic!("{other}"),
    }
    file
}

/// The vocabulary of a fixture with other metadata.
fn texts_with(name: &str, values: &[(&str, Value)]) -> Result<TokenizerTexts, GgufError> {
    let file = fs::read(fixture(name)).expect("a fixture");
    let file = values
        .iter()
        .fold(file, |file, (key, value)| set(file, key, value));
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let path = folder.path().join(name);
    fs::write(&path, file).expect("written");
    let gguf = Gguf::open(path).expect("still GGUF");
    vocabulary(&gguf).map(|texts| texts.expect("it has one"))
}

/// FNV-1a in 64 bits over ids, each in four bytes, low byte first: as in `tokens_oracle.py`.
pub(crate) fn hash_of_ids(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A thousand lines in ten scripts and more.
pub(crate) fn lines() -> Vec<String> {
    let file = fixtures().with_file_name("real").join("lines.json");
    serde_json::from_str(&fs::read_to_string(file).expect("the lines")).expect("texts")
}

/// Tokens by llama.cpp: see `make_gguf.py`.
#[derive(Deserialize)]
struct Case {
    file: String,
    set: serde_json::Map<String, Value>,
    lines: Vec<usize>,
    hashes: Vec<String>,
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let lines = lines();
    let cases = fs::read_to_string(fixture("tokens.json")).expect("the cases");
    let cases: Vec<Case> = serde_json::from_str(&cases).expect("cases");
    assert!(cases.len() > 30);
    for case in cases {
        let set = case.set.iter();
        let set: Vec<_> = set
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect();
        let texts = texts_with(&format!("{}.gguf", case.file), &set).expect("a vocabulary");
        let tokenizer = Tokenizer::from_json(&texts.tokenizer_json).expect("a tokenizer");
        assert!(case.lines.len() > 15);
        assert_eq!(case.lines.len(), case.hashes.len());
        for (line, hash) in case.lines.iter().zip(case.hashes) {
            let line = &lines[*line];
            let ids = tokenizer.encode(line).expect("tokens");
            assert_eq!(hash_of_ids(&ids), hash, "{set:?}: {line:?}: {ids:?}");
        }
    }
}

#[test]
fn pieces_are_put_together_to_the_text() {
    let no_bos = ("tokenizer.ggml.add_bos_token", Value::from(false));
    let no_prefix = ("tokenizer.ggml.add_space_prefix", Value::from(false));
    let plain = "größer 世界 🦀";
    // A space that is put after a token such as a line break then counts as a space of the text.
    let broken = "größer 世界 🦀\n\n  x";
    for (name, set, texts) in [
        ("byte-level.gguf", vec![no_bos.clone()], vec![plain, broken]),
        ("sentence-piece.gguf", vec![no_bos.clone()], vec![plain]),
        (
            "sentence-piece.gguf",
            vec![no_bos, no_prefix],
            vec![plain, broken],
        ),
    ] {
        let vocabulary = texts_with(name, &set).expect("a vocabulary");
        let tokenizer = Tokenizer::from_json(&vocabulary.tokenizer_json).expect("a tokenizer");
        for text in texts {
            let ids = tokenizer.encode(text).expect("tokens");
            assert_eq!(tokenizer.decode(&ids).expect("a text"), text, "{name}");
        }
    }
}

#[test]
fn the_configuration_has_the_roles_and_the_chat_template() {
    let config = |name: &str| -> Value {
        let texts = texts_with(name, &[]).expect("a vocabulary");
        serde_json::from_str(&texts.tokenizer_config_json).expect("JSON")
    };
    let byte_level = config("byte-level.gguf");
    assert_eq!(byte_level["bos_token"], "<|im_start|>");
    assert_eq!(byte_level["eos_token"], "<|im_end|>");
    assert_eq!(byte_level["pad_token"], "<|im_end|>");
    assert_eq!(byte_level["unk_token"], "<|endoftext|>");
    assert_eq!(byte_level["add_bos_token"], false);
    let template = byte_level["chat_template"].as_str().expect("a template");
    assert!(template.starts_with("{% for m in messages %}"));
    let sentence_piece = config("sentence-piece.gguf");
    assert_eq!(sentence_piece["bos_token"], "<s>");
    assert_eq!(sentence_piece["add_bos_token"], true);
    assert!(sentence_piece.get("pad_token").is_none());
    assert!(sentence_piece.get("chat_template").is_none());
}

#[test]
fn vocabularies_that_are_not_known_are_refused_by_name() {
    let error = |key: &str, value: &str| {
        let refused = texts_with("byte-level.gguf", &[(key, value.into())]);
        refused.expect_err("not known").to_string()
    };
    let model = error("tokenizer.ggml.model", "t5");
    assert!(
        model.contains("expected `gpt2` or `llama`, found `t5`"),
        "{model}"
    );
    assert!(model.contains("tokenizer.json"), "{model}");
    let pre = error("tokenizer.ggml.pre", "kimi-k2");
    assert!(
        pre.contains("`tokenizer.ggml.pre`") && pre.contains("`kimi-k2`"),
        "{pre}"
    );
    // Missing scores.
    let scores = error("tokenizer.ggml.model", "llama");
    assert!(
        scores.contains("`tokenizer.ggml.scores` is missing"),
        "{scores}"
    );
}

#[test]
fn a_file_without_a_vocabulary_has_none() {
    assert_eq!(vocabulary(&open("kinds.gguf")).expect("read"), None);
}
