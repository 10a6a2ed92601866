//! A tokenizer of each kind used by language models.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures;

/// The text of their `tokenizer.json`.
pub(crate) fn every_kind() -> Vec<String> {
    let gpt2 = fs::read_to_string(fixtures().join("tokenizers/bpe.json")).expect("a fixture");
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../burn-align-models/induction-gpt2");
    let words = fs::read_to_string(bundled.join("tokenizer.json")).expect("a bundled model");
    let written = [llama_2(), llama_3(), unigram(), word_piece()];
    let written = written.into_iter().map(|json| json.to_string());
    [gpt2, words].into_iter().chain(written).collect()
}

fn special(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}

/// Puts a token before each text.
fn begin_with(token: &str, id: usize) -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn tokenizer(added: &[Value], parts: Value) -> Value {
    let mut all = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    });
    for (key, part) in parts.as_object().expect("parts by name") {
        all[key] = part.clone();
    }
    all
}

/// Pieces with `▁` for a space, and bytes for text without a piece.
fn llama_2() -> Value {
    let pieces = [
        "<unk>", "<s>", "</s>", "▁", "a", "p", "S", "i", "n", "ai", "ain", "▁S", "▁Sp",
    ];
    let mut vocab: serde_json::Map<String, Value> = pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| ((*piece).to_owned(), id.into()))
        .collect();
    for byte in 0..=255_u8 {
        vocab.insert(
            format!("<0x{byte:02X}>"),
            (pieces.len() + usize::from(byte)).into(),
        );
    }
    tokenizer(
        &[special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "post_processor": begin_with("<s>", 1),
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
                "merges": [["a", "i"], ["ai", "n"], ["▁", "S"], ["▁S", "p"]],
            },
        }),
    )
}

/// Bytes, split by a regular expression.
fn llama_3() -> Value {
    let split = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    tokenizer(
        &[special(9, "<|begin_of_text|>")],
        json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {
                    "type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated",
                    "invert": false,
                },
                {
                    "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": false,
                },
            ]},
            "post_processor": {"type": "Sequence", "processors": [
                {
                    "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                    "use_regex": true,
                },
                begin_with("<|begin_of_text|>", 9),
            ]},
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": true,
                "vocab": {
                    "T": 0, "h": 1, "e": 2, "Ġ": 3, "Th": 4, "The": 5, "i": 6, "s": 7, "Ġi": 8,
                },
                "merges": ["T h", "Th e", "Ġ i"],
            },
        }),
    )
}

/// Pieces with scores.
fn unigram() -> Value {
    tokenizer(
        &[special(0, "<unk>"), special(1, "</s>")],
        json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKC"},
                {"type": "Strip", "strip_left": true, "strip_right": true},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
            ]},
            "pre_tokenizer": {
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
            },
            "decoder": {
                "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true,
            },
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [
                ["<unk>", 0.0], ["</s>", 0.0], ["▁", -2.5], ["▁The", -3.0], ["▁Spain", -4.5],
                ["a", -5.0], ["i", -5.5], ["s", -5.75], ["▁is", -3.5],
            ]},
        }),
    )
}

/// The longest pieces from the left.
fn word_piece() -> Value {
    tokenizer(
        &[
            special(0, "[UNK]"),
            special(1, "[CLS]"),
            special(2, "[SEP]"),
        ],
        json!({
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {
                    "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "sp": 4, "##ain": 5, "is": 6,
                },
            },
        }),
    )
}
