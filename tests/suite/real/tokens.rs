//! The vocabularies of real GGUF files.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn_align_models::pretrained::gguf::{Gguf, vocabulary};
use burn_align_models::{SpecialTokens, Tokenizer};

use super::{real, real_if_there};
use crate::gguf::{hash_of_ids, lines};
use crate::support::fixtures;

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA_3: &str = "gemma-3-270m-q4_k_m.gguf";

/// Compares the tokens of a thousand lines with those of llama.cpp: see `tokens_oracle.py`.
fn assert_tokens(model: &str, file: Option<PathBuf>) {
    let Some(file) = file else {
        return;
    };
    let gguf = Gguf::open(&file).expect("the model");
    let texts = vocabulary(&gguf)
        .expect("a vocabulary")
        .expect("it has one");
    let tokenizer = Tokenizer::from_json(&texts.tokenizer_json).expect("a tokenizer");
    let expected = fixtures().with_file_name("real").join("tokens.json");
    let expected = fs::read_to_string(expected).expect("hashes");
    let expected: BTreeMap<String, Vec<String>> = serde_json::from_str(&expected).expect("hashes");
    let lines = lines();
    assert_eq!((lines.len(), expected[model].len()), (1000, 1000));
    for (number, (line, hash)) in lines.iter().zip(&expected[model]).enumerate() {
        // llama.cpp adds a BOS to a line that brings one, too.
        let ids = tokenizer.encode_with(line, SpecialTokens::Always);
        let ids = ids.expect("tokens");
        assert_eq!(&hash_of_ids(&ids), hash, "{number}: {line:?}: {ids:?}");
    }
}

#[test]
fn tokens_of_smollm2() {
    assert_tokens(SMOLLM2, real(SMOLLM2));
}

#[test]
fn tokens_of_gemma_3() {
    assert_tokens(GEMMA_3, real_if_there(GEMMA_3));
}
