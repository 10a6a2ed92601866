//! Tokenizers whose tokens are whole words, for the small models trained by the examples.

use anyhow::Result;
use burn_align_models::Tokenizer;
use serde_json::json;

/// Replaces any word outside the vocabulary.
pub const UNKNOWN: &str = "<unk>";

/// The word that ends, or begins, a sentence.
pub const END: &str = "<eos>";

/// A tokenizer with these words. The first is [`UNKNOWN`], the second [`END`].
///
/// # Errors
/// If the words do not form a vocabulary.
pub fn tokenizer(words: &[String]) -> Result<Tokenizer> {
    let special = |word: &str, id: usize| {
        json!({
            "id": id, "content": word, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .enumerate()
        .map(|(id, word)| (word.clone(), id.into()))
        .collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(UNKNOWN, 0), special(END, 1)],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
    });
    Ok(Tokenizer::from_json(&json.to_string())?)
}

/// `tokenizer_config.json`: what Python's `transformers` needs to know about the tokenizer of a
/// model with this maximum length.
pub fn tokenizer_config(max_length: usize) -> String {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": false,
    });
    format!("{config:#}\n")
}
