//! Words of a prompt in any script.

use std::fs;

use burn_align_models::{Tokenizer, TokenizerFiles, TokensError};

use super::marks::base;
use crate::support::fixtures;

/// A tokenizer of each kind, made from its files.
fn every_kind() -> Vec<(&'static str, Tokenizer)> {
    let place = fixtures().join("tokenizers/base");
    let of_model = |name: &str, class: &str| {
        let mut files = TokenizerFiles::default().with_config(format!(
            r#"{{"tokenizer_class": "{class}", "legacy": false}}"#
        ));
        files.sentencepiece = Some(fs::read(place.join(name)).expect("a file"));
        Tokenizer::from_files(files).expect("a tokenizer")
    };
    vec![
        ("spaces", base("spaces.json")),
        ("bytes", base("bytes.json")),
        ("split", base("split.json")),
        ("prefix", base("prefix.json")),
        ("llama", base("llama.json")),
        (
            "llama, not legacy",
            of_model("llama.model", "LlamaTokenizer"),
        ),
        ("unigram", of_model("unigram.model", "LlamaTokenizer")),
        ("gemma", base("gemma.json")),
        ("t5", of_model("t5.model", "T5Tokenizer")),
    ]
}

const FOUND: [(&str, &str); 22] = [
    ("西班牙的首都是", "西班牙"),
    ("西班牙的首都是", "首都"),
    ("西班牙的首都是", "是"),
    ("เมืองหลวงของสเปนคือ", "สเปน"),
    ("เมืองหลวงของสเปนคือ", "เมืองหลวง"),
    ("スペインの首都はマドリードです", "スペイン"),
    ("スペインの首都はマドリードです", "マドリード"),
    ("스페인의 수도는", "스페인"),
    ("스페인의 수도는", "수도"),
    ("ນະຄອນຫຼວງຂອງສະເປນ", "ສະເປນ"),
    ("රාජධානිය මැඩ්රිඩ්", "මැඩ්රිඩ්"),
    ("Столица Испании", "Испании"),
    ("عاصمة إسبانيا هي مدريد", "إسبانيا"),
    ("स्पेन की राजधानी मैड्रिड है", "राजधानी"),
    ("Η Μαδρίτη είναι", "Μαδρίτη"),
    ("GPT模型2024年", "模型"),
    ("GPT模型2024年", "2024"),
    ("GPT模型2024年", "GPT"),
    ("Rome, the city", "Rome"),
    ("La capitale de l'Espagne", "Espagne"),
    ("  café e\u{301}te\u{301} 🦀", "e\u{301}te\u{301}"),
    ("a 🦀🦀 b", "🦀🦀"),
];

#[test]
fn words_are_found_in_any_script() {
    for (kind, tokenizer) in every_kind() {
        for (prompt, word) in FOUND {
            let case = format!("{kind}: {word} in {prompt}");
            let positions = tokenizer.positions_of(prompt, word);
            let positions = positions.unwrap_or_else(|error| panic!("{case}: {error}"));
            let ids = tokenizer.encode(prompt).expect("ids");
            assert!(
                positions.end <= ids.len() && !positions.is_empty(),
                "{case}"
            );
            let without = |range: &[u32]| tokenizer.decode(range).expect("text");
            // An unknown token, and normalized text, cannot be read back.
            let text = without(&ids[positions.clone()]);
            if !text.contains("<unk>") && !text.contains("⁇") && kind != "split" {
                assert!(text.contains(word), "{case}: {text:?} at {positions:?}");
                for fewer in [
                    positions.start + 1..positions.end,
                    positions.start..positions.end - 1,
                ] {
                    assert!(
                        !without(&ids[fewer]).contains(word),
                        "{case}: {positions:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn tokens_that_hold_a_part_of_a_character_belong_to_it() {
    let bytes = base("bytes.json");
    // Four bytes of a crab, with one token each, between one token before and after.
    assert_eq!(bytes.positions_of("a🦀b", "🦀"), Ok(1..5));
    assert_eq!(bytes.positions_of("🦀", "🦀"), Ok(0..4));
}

#[test]
fn what_a_normalizer_puts_in_front_is_no_part_of_a_word() {
    let spaces = base("spaces.json");
    let ids = spaces.encode("é Rome").expect("ids");
    assert_eq!(
        spaces.token_marks(&ids),
        ["<s>", "␣", "<0xC3>", "<0xA9>", " Rome"]
    );
    assert_eq!(spaces.positions_of("é Rome", "é"), Ok(2..4));
    assert_eq!(spaces.positions_of("é Rome", "Rome"), Ok(4..5));
    // If one token holds both, it belongs to the word.
    assert_eq!(spaces.positions_of("Rome", "Rome"), Ok(1..2));
    assert_eq!(spaces.positions_of("Rome is", "is"), Ok(2..3));
    assert_eq!(spaces.positions_of("西班牙的首都是", "西班牙"), Ok(2..6));
    assert_eq!(spaces.positions_of("<s>Rome is", "Rome"), Ok(1..2));
    assert_eq!(spaces.positions_of("Rome</s> Rome is", "is"), Ok(5..6));
    // Spaces of the text count.
    assert_eq!(spaces.positions_of("  Rome", "Rome"), Ok(3..4));
}

#[test]
fn a_part_of_a_word_is_told_from_none() {
    let bytes = base("bytes.json");
    for (prompt, word, within) in [
        ("Spaniards speak", "Spain", None),
        ("Espanjan pääkaupunki", "Espanja", Some("Espanjan")),
        ("The capitals of", "capital", Some("capitals")),
        ("The capital", "apital", Some("capital")),
        ("café", "caf", Some("café")),
        ("Столицами", "Столица", Some("Столицами")),
        ("والعاصمة", "العاصمة", Some("والعاصمة")),
        ("हिन्दी", "हिन", Some("हिन्दी")),
        // An accent belongs to its letter, and a vowel's sign to its consonant.
        ("cafe\u{301}", "cafe", Some("cafe\u{301}")),
        ("นี่", "น", Some("นี่")),
        ("word2vec", "word", Some("word2vec")),
    ] {
        let error = bytes.positions_of(prompt, word).expect_err(word);
        let (word, prompt) = (word.to_owned(), prompt.to_owned());
        let expected = match within {
            Some(within) => TokensError::WordInsideWord {
                word,
                prompt,
                within: within.to_owned(),
            },
            None => TokensError::WordNotFound { word, prompt },
        };
        assert_eq!(error, expected);
    }
    // A whole word takes precedence.
    assert_eq!(
        bytes
            .positions_of("capitals, capital", "capital")
            .map(|it| it.len()),
        {
            let ids = bytes.encode(" capital").expect("ids");
            Ok(ids.len())
        }
    );
}

#[test]
fn running_text_may_have_a_word_twice() {
    let bytes = base("bytes.json");
    for (prompt, word, count) in [
        ("罗马的罗马", "罗马", 2),
        ("ああああ", "ああ", 3), // each occurrence counts, even if they overlap
        ("스페인과 스페인의", "스페인", 2),
        ("Rome—Rome", "Rome", 2),
    ] {
        let error = bytes.positions_of(prompt, word).expect_err(word);
        assert_eq!(
            error,
            TokensError::WordAmbiguous {
                word: word.into(),
                prompt: prompt.into(),
                count
            }
        );
    }
}
