//! Byte-level BPE from vocab.json and merges.txt, built like `GPT2Converter` and `Qwen2Converter`
//! in `transformers` (`convert_slow_tokenizer.py`).

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::super::tokenizer::from_value;
use super::super::{TokenizerFiles, TokensError};
use super::class::Source;
use super::settings::Settings;
use super::special::Special;

/// How Qwen2 splits a text.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);

pub(super) fn convert(
    source: Source,
    vocab: &str,
    merges: &str,
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, TokensError> {
    let bad = |file: &str, reason: String| TokensError::File {
        file: file.to_owned(),
        reason,
    };
    let vocab: HashMap<String, u32> = serde_json::from_str(vocab)
        .map_err(|error| bad(TokenizerFiles::VOCAB, error.to_string()))?;
    let merges = read_merges(source, merges).map_err(|line| {
        let reason = format!("expected two tokens on a line, found `{line}`");
        bad(TokenizerFiles::MERGES, reason)
    })?;
    for (left, right) in &merges {
        for token in [left, right, &format!("{left}{right}")] {
            if !vocab.contains_key(token) {
                let reason = format!("`{token}` is not in vocab.json");
                return Err(bad(TokenizerFiles::MERGES, reason));
            }
        }
    }
    let bytes = |prefix_space: bool, by_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true,
            "use_regex": by_regex,
        })
    };
    let prefix_space = settings.flag("add_prefix_space", false);
    let (normalizer, pre_tokenizer) = match source {
        Source::Qwen2 => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated",
                "invert": false,
            });
            let steps = json!({
                "type": "Sequence", "pretokenizers": [split, bytes(false, false)],
            });
            (json!({"type": "NFC"}), steps)
        }
        _ => (json!(null), bytes(prefix_space, true)),
    };
    let mut post_processor = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
    });
    let bos = settings.special("bos_token").map(Special::content);
    if let (Source::Gpt2, true, Some(bos)) = (source, settings.flag("add_bos_token", false), bos) {
        // A missing one is added after all others.
        let others = settings.converted().values().map(|token| &token.content);
        let others = others.filter(|content| !vocab.contains_key(*content));
        let next = vocab.len() + others.collect::<HashSet<_>>().len();
        let id = settings.added_id(bos).or_else(|| vocab.get(bos).copied());
        let id = id.unwrap_or(next as u32);
        let begin = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
        post_processor = json!({
            "type": "TemplateProcessing",
            "single": [begin, text("A", 0)],
            "pair": [begin, text("A", 0), text("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
        });
    }
    from_value(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": bytes(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    }))
}

/// The merges in order; a line that does not hold two tokens is an error.
fn read_merges(source: Source, text: &str) -> Result<Vec<(String, String)>, String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    if source == Source::Qwen2 {
        if lines
            .first()
            .is_some_and(|line| line.trim().starts_with("#version:"))
        {
            lines.remove(0);
        }
        lines.retain(|line| !line.trim().is_empty());
    } else {
        // The first line is the version, and the last one is empty.
        lines.remove(0);
        lines.pop();
    }
    let mut seen = HashSet::new();
    let mut merges = Vec::new();
    for line in lines {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [left, right] = parts[..] else {
            return Err(line.to_owned());
        };
        let merge = (left.to_owned(), right.to_owned());
        if seen.insert(merge.clone()) {
            merges.push(merge);
        }
    }
    Ok(merges)
}
