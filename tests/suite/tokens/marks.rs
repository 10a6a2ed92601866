//! What tokens look like: their text, and how it is displayed.

use burn_align_models::Tokenizer;

use crate::support::fixtures;

pub(super) fn base(name: &str) -> Tokenizer {
    let file = fixtures().join("tokenizers/base").join(name);
    let json = std::fs::read_to_string(file).expect("a file");
    Tokenizer::from_json(&json).expect("a tokenizer")
}

#[test]
fn a_token_with_a_space_differs_from_one_without() {
    for (tokenizer, with, without) in [
        (base("spaces.json"), "▁Rome", "Rome"),
        (base("bytes.json"), "Ġcapital", "capital"),
        (base("llama.json"), "▁capital", "capital"),
        (base("gemma.json"), "▁capital", "capital"),
    ] {
        let Some(id) = tokenizer.token_id(with) else {
            // A vocabulary that splits differently.
            continue;
        };
        let plain = with.chars().skip(1).collect::<String>();
        assert_eq!(tokenizer.token_strings(&[id]), [format!(" {plain}")]);
        assert_eq!(tokenizer.token_marks(&[id]), [format!(" {plain}")]);
        if let Some(id) = tokenizer.token_id(without) {
            assert_eq!(tokenizer.token_strings(&[id]), [without]);
            assert_eq!(tokenizer.token_marks(&[id]), [without]);
        }
    }
    let spaces = base("spaces.json");
    assert!(spaces.token_id("▁Rome").is_some() && spaces.token_id("Rome").is_some());
    // Decoding drops the first space, as Python does, but no token loses it.
    let ids = spaces.encode("Rome").expect("ids");
    assert_eq!(spaces.token_strings(&ids), ["<s>", " Rome"]);
    assert_eq!(spaces.decode(&ids).expect("text"), "<s> Rome");
}

#[test]
fn the_text_of_whole_characters_is_that_of_their_tokens() {
    let text = "The capital\n\tof  Spain, café";
    for name in ["bytes.json", "gemma.json"] {
        let tokenizer = base(name);
        let ids = tokenizer.encode(text).expect("ids");
        let strings = tokenizer.token_strings(&ids);
        if !strings.concat().contains('\u{FFFD}') {
            assert_eq!(strings.concat().trim_start_matches("<bos>"), text, "{name}");
        }
        assert!(
            tokenizer.decode(&ids).expect("text").ends_with(text),
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_seen_is_shown_on_one_line() {
    let spaces = base("spaces.json");
    let marks = |tokenizer: &Tokenizer, text: &str| {
        let ids = tokenizer.encode(text).expect("ids");
        tokenizer.token_marks(&ids).join("|")
    };
    assert_eq!(marks(&spaces, "The\n\nRome"), "<s>| The|↵|↵|Rome");
    assert_eq!(marks(&spaces, "is\t\r\u{1b}\u{7f}\0"), "<s>| is|⇥|␍|␛|␡|␀");
    assert_eq!(marks(&spaces, "é"), "<s>|␣|<0xC3>|<0xA9>");
    assert_eq!(marks(&spaces, "Rome  Rome"), "<s>| Rome|␣| Rome");
    let bytes = base("bytes.json");
    assert_eq!(marks(&bytes, " capital\n"), " capital|↵");
    assert_eq!(marks(&bytes, "<|endoftext|>"), "<|endoftext|>");
    let crab = marks(&bytes, "🦀");
    assert_eq!(crab, "<0xF0>|<0x9F>|<0xA6>|<0x80>");
    let id = bytes.encode("🦀").expect("ids")[0];
    assert_eq!(bytes.token_strings(&[id]), ["\u{FFFD}"]);
    assert_eq!(bytes.token_marks(&[99_999]), ["#99999"]);
    // Invisible characters that a vocabulary may have as separate tokens.
    let json = r#"{
        "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {
            "a": 0, "b\u00a0c": 1, "\u200b": 2, "\u3000": 3, " ": 4, "x\u2028y": 5, "\u202e": 6
        }}
    }"#;
    let odd = Tokenizer::from_json(json).expect("a tokenizer");
    assert_eq!(
        odd.token_marks(&[1, 2, 3, 4, 5, 6]),
        [
            "b<U+00A0>c",
            "<U+200B>",
            "<U+3000>",
            "␣",
            "x<U+2028>y",
            "<U+202E>"
        ]
    );
    assert_eq!(odd.token_strings(&[1, 4]), ["b\u{a0}c", " "]);
}

#[test]
fn parts_of_words_lose_their_signs() {
    let pieces = |model: &str, decoder: &str| {
        let json = format!(
            r###"{{"added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                "post_processor": null, "decoder": {decoder}, "model": {model}}}"###
        );
        Tokenizer::from_json(&json).expect("a tokenizer")
    };
    let word_piece = pieces(
        r###"{"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"?": 0, "sp": 1, "##ain": 2}}"###,
        r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###,
    );
    assert_eq!(word_piece.token_strings(&[1, 2]), ["sp", "ain"]);
    let ended = pieces(
        r#"{"type": "BPE", "unk_token": null, "end_of_word_suffix": "</w>", "fuse_unk": false,
            "dropout": null, "continuing_subword_prefix": null,
            "vocab": {"a</w>": 0, "a": 1}, "merges": []}"#,
        r#"{"type": "BPEDecoder", "suffix": "</w>"}"#,
    );
    assert_eq!(ended.token_strings(&[0, 1]), ["a ", "a"]);
}
