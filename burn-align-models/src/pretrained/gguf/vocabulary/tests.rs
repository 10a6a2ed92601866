//! Inconsistent vocabularies, and what llama.cpp corrects in them.

use serde_json::Value;

use super::super::{GgufError, Metadata, MetadataArray, MetadataValue};
use super::{TokenizerTexts, from_metadata};

fn text(text: &str) -> MetadataValue {
    MetadataValue::String(text.to_owned())
}

fn texts(texts: &[&str]) -> MetadataValue {
    let texts = texts.iter().map(|text| (*text).to_owned());
    MetadataValue::Array(MetadataArray::String(texts.collect()))
}

fn integers(values: &[i32]) -> MetadataValue {
    MetadataValue::Array(MetadataArray::I32(values.to_vec()))
}

fn floats(values: &[f32]) -> MetadataValue {
    MetadataValue::Array(MetadataArray::F32(values.to_vec()))
}

/// Metadata with some values changed.
fn with<'a>(
    mut values: Vec<(&'a str, MetadataValue)>,
    more: &[(&'a str, MetadataValue)],
) -> Metadata {
    values.extend(more.iter().cloned());
    Metadata::of(values)
}

/// Like GPT-2's, with two merges.
fn gpt2(more: &[(&str, MetadataValue)]) -> Result<TokenizerTexts, GgufError> {
    let values = vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        (
            "tokenizer.ggml.tokens",
            texts(&["<|im_end|>", "a", "b", "ab", "c", "abc"]),
        ),
        ("tokenizer.ggml.merges", texts(&["a b", "ab c"])),
    ];
    Ok(from_metadata(&with(values, more))?.expect("it has one"))
}

/// Like LLaMA's, with a token of three characters.
fn llama(more: &[(&str, MetadataValue)]) -> Result<TokenizerTexts, GgufError> {
    let values = vec![
        ("tokenizer.ggml.model", text("llama")),
        (
            "tokenizer.ggml.tokens",
            texts(&["<unk>", "<s>", "</s>", "a", "aa", "b", "aaa", "ab"]),
        ),
        (
            "tokenizer.ggml.token_type",
            integers(&[2, 3, 3, 1, 1, 1, 1, 1]),
        ),
        (
            "tokenizer.ggml.scores",
            floats(&[0.0, 0.0, 0.0, -4.0, -2.0, -5.0, -3.0, -1.0]),
        ),
    ];
    Ok(from_metadata(&with(values, more))?.expect("it has one"))
}

fn parsed(texts: Result<TokenizerTexts, GgufError>) -> Value {
    let texts = texts.expect("a vocabulary");
    let json: tokenizers::Result<tokenizers::Tokenizer> = texts.tokenizer_json.parse();
    json.expect("a tokenizer");
    serde_json::from_str(&texts.tokenizer_json).expect("JSON")
}

/// Contents of the added tokens, and whether they are special.
fn added(tokenizer: &Value) -> Vec<(&str, bool)> {
    let added = tokenizer["added_tokens"].as_array().expect("a list");
    let added = added.iter().map(|token| {
        let content = token["content"].as_str().expect("a text");
        (content, token["special"].as_bool().expect("a flag"))
    });
    added.collect()
}

#[track_caller]
fn refused(texts: Result<TokenizerTexts, GgufError>, expected: &[&str]) {
    let error = texts.expect_err("refused").to_string();
    for part in expected {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn merges_follow_from_scores() {
    let tokenizer = parsed(llama(&[]));
    // Ordered by the score of the result; of two ways to form the same token, the one with the
    // longer left part first.
    let expected = serde_json::json!([["a", "b"], ["a", "a"], ["aa", "a"], ["a", "aa"]]);
    assert_eq!(tokenizer["model"]["merges"], expected);
    assert_eq!(tokenizer["model"]["unk_token"], "<unk>");
    assert_eq!(tokenizer["model"]["byte_fallback"], true);
    let control = [("<unk>", true), ("<s>", true), ("</s>", true)];
    assert_eq!(added(&tokenizer), control);
    // Integers are scores, too.
    let scores = integers(&[0, 0, 0, -4, -1, -5, -3, -2]);
    let tokenizer = parsed(llama(&[("tokenizer.ggml.scores", scores)]));
    assert_eq!(
        tokenizer["model"]["merges"][0],
        serde_json::json!(["a", "a"])
    );
}

#[test]
fn tokens_that_are_found_first_are_known_by_type_and_by_text() {
    // `<|im_end|>` has no type here.
    assert_eq!(added(&parsed(gpt2(&[]))), [("<|im_end|>", true)]);
    let tokens = texts(&[
        "<|im_end|>",
        "a",
        "b",
        "ab",
        "c",
        "abc",
        "<fim_prefix>",
        "<|start|>",
    ]);
    let tokens = ("tokenizer.ggml.tokens", tokens);
    let types = (
        "tokenizer.ggml.token_type",
        integers(&[1, 4, 1, 1, 5, 1, 1, 3]),
    );
    let tokenizer = parsed(gpt2(&[tokens.clone(), types.clone()]));
    let expected = [
        ("<|im_end|>", true),
        ("a", false),
        ("<fim_prefix>", true),
        ("<|start|>", false),
    ];
    assert_eq!(added(&tokenizer), expected);
    // The metadata name this token, so its type counts.
    let fim = ("tokenizer.ggml.fim_pre_token_id", MetadataValue::U32(2));
    let tokenizer = parsed(gpt2(&[tokens, types, fim]));
    assert!(!added(&tokenizer).contains(&("<fim_prefix>", true)));
}

#[test]
fn tokens_that_contradict_each_other_are_refused() {
    let tokens = |tokens: &[&str]| ("tokenizer.ggml.tokens", texts(tokens));
    let twice = gpt2(&[tokens(&["a", "b", "a"])]);
    refused(twice, &["token 2", "`a`, which is also that of token 0"]);
    refused(
        gpt2(&[tokens(&[])]),
        &["`tokenizer.ggml.tokens`: expected at least one"],
    );
    let few = ("tokenizer.ggml.token_type", integers(&[1, 1]));
    refused(
        gpt2(&[few]),
        &["`tokenizer.ggml.token_type`: expected 6 types"],
    );
    let tokenizer = parsed(gpt2(&[tokens(&["a", "b", "ab", "c", "abc", ""])]));
    assert_eq!(tokenizer["model"]["vocab"]["[EMPTY_5]"], 5);
}

#[test]
fn merges_that_contradict_the_tokens_are_refused() {
    let merges = |merges: &[&str]| gpt2(&[("tokenizer.ggml.merges", texts(merges))]);
    refused(
        merges(&["ab"]),
        &["merge 0", "two pieces and a space", "`ab`"],
    );
    refused(merges(&[""]), &["merge 0"]);
    refused(
        merges(&["a b", "b c"]),
        &["merge 1", "two tokens that make a third", "`b c`"],
    );
    refused(merges(&["a x"]), &["`a x`"]);
    // Of two equal merges, the first counts.
    let tokenizer = parsed(merges(&["a b", "ab c", "a b"]));
    let expected = serde_json::json!([["a", "b"], ["ab", "c"]]);
    assert_eq!(tokenizer["model"]["merges"], expected);
}

#[test]
fn scores_that_cannot_be_are_refused() {
    let scores = |scores: &[f32]| llama(&[("tokenizer.ggml.scores", floats(scores))]);
    refused(
        scores(&[0.0; 7]),
        &["`tokenizer.ggml.scores`: expected 8 numbers"],
    );
    let mut values = [0.0; 8];
    values[3] = f32::NAN;
    refused(scores(&values), &["`tokenizer.ggml.scores`"]);
    refused(
        llama(&[("tokenizer.ggml.scores", text("none"))]),
        &["`tokenizer.ggml.scores`"],
    );
    let long = "a".repeat(1025);
    let tokens = texts(&["<unk>", "<s>", "</s>", "a", "aa", "b", "aaa", &long]);
    let long = llama(&[("tokenizer.ggml.tokens", tokens)]);
    refused(long, &["token 7", "at most 1024 bytes", "found 1025"]);
}

#[test]
fn what_stands_around_a_text_must_be_there() {
    let adds = ("tokenizer.ggml.add_bos_token", MetadataValue::Bool(true));
    refused(
        gpt2(std::slice::from_ref(&adds)),
        &["`tokenizer.ggml.bos_token_id` is missing"],
    );
    // An id without a token is ignored.
    let beyond = ("tokenizer.ggml.bos_token_id", MetadataValue::U32(6));
    refused(
        gpt2(&[adds.clone(), beyond]),
        &["`tokenizer.ggml.bos_token_id`", "found 6"],
    );
    let bos = ("tokenizer.ggml.bos_token_id", MetadataValue::U32(0));
    let tokenizer = parsed(gpt2(&[adds, bos]));
    let single = &tokenizer["post_processor"]["processors"][1]["single"];
    assert_eq!(single[0]["SpecialToken"]["id"], "<|im_end|>");
    // LLaMA's special tokens are known without metadata.
    let tokenizer = parsed(llama(&[]));
    let single = &tokenizer["post_processor"]["single"];
    assert_eq!(single[0]["SpecialToken"]["id"], "<s>");
    assert_eq!(single.as_array().map(Vec::len), Some(2));
}

#[test]
fn several_chat_templates_are_kept_by_name() {
    let texts = gpt2(&[
        ("tokenizer.chat_template", text("{{ plain }}")),
        ("tokenizer.chat_templates", texts(&["tool_use", "absent"])),
        ("tokenizer.chat_template.tool_use", text("{{ tools }}")),
    ]);
    let config = texts.expect("a vocabulary").tokenizer_config_json;
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let expected = serde_json::json!([
        {"name": "default", "template": "{{ plain }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]);
    assert_eq!(config["chat_template"], expected);
}
