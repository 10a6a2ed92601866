//! Text to token ids and back, on a word-level tokenizer and a byte-level BPE like GPT-2's
//! (`tests/fixtures/tokenizers/make_tokenizer.py`). Model folders, chats, words in any script and
//! marks are in the submodules.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{ModelDims, TokenBatch, Tokenizer, TokensError, top_tokens};
use serde_json::json;

use crate::support::fixtures;

mod chats;
mod folders;
mod marks;
mod words;

on_every_backend!(batches_are_padded_on_the_right, most_probable_tokens);

/// One token per word.
fn words() -> Tokenizer {
    let json = json!({
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 7},
            "direction": "Left",
            "pad_to_multiple_of": null,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>"
        },
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": {"<unk>": 0, "the": 1, "capital": 2, "of": 3, "Spain": 4, "is": 5},
            "unk_token": "<unk>"
        }
    });
    Tokenizer::from_json(&json.to_string()).expect("a tokenizer")
}

fn bpe() -> Tokenizer {
    let file = fixtures().join("tokenizers/bpe.json");
    let json = std::fs::read_to_string(file).expect("the fixture");
    Tokenizer::from_json(&json).expect("a tokenizer")
}

/// The part of the prompt that the word's tokens cover, token by token.
fn covered(prompt: &str, word: &str) -> Result<Vec<String>, TokensError> {
    let tokenizer = bpe();
    let positions = tokenizer.positions_of(prompt, word)?;
    let ids = tokenizer.encode(prompt)?;
    Ok(tokenizer.token_strings(&ids[positions]))
}

fn batch(ids: &[&[u32]]) -> Result<TokenBatch, TokensError> {
    TokenBatch::new(ids.iter().map(|ids| ids.to_vec()).collect())
}

#[test]
fn words_become_ids() {
    let tokenizer = words();
    // Neither cut nor padded, whatever the file says.
    let ids = tokenizer.encode("the capital of Spain").expect("ids");
    assert_eq!(ids, [1, 2, 3, 4]);
    assert_eq!(tokenizer.encode("the Moon").expect("ids"), [1, 0]);
    assert_eq!(tokenizer.decode(&[2, 3]).expect("text"), "capital of");
    assert_eq!(
        tokenizer.token_strings(&[4, 0, 99]),
        ["Spain", "<unk>", "#99"]
    );
    assert_eq!(tokenizer.single_token("Spain"), Ok(4));
}

#[test]
fn bytes_become_ids_and_text_again() {
    let tokenizer = bpe();
    for text in [
        "The capital of Spain is",
        " Portugal and Spain",
        "two  spaces,\n a café and 🦀",
        "<|endoftext|>The",
    ] {
        let ids = tokenizer.encode(text).expect("ids");
        assert_eq!(tokenizer.decode(&ids).expect("text"), text);
    }
}

#[test]
fn token_strings_keep_the_space_before_a_word() {
    let tokenizer = bpe();
    let strings = |text: &str| tokenizer.token_strings(&tokenizer.encode(text).expect("ids"));
    assert_eq!(
        strings("The capital of Portugal"),
        ["The", " capital", " of", " Port", "ugal"]
    );
    assert_eq!(strings("<|endoftext|>Spain"), ["<|endoftext|>", "Spain"]);
    // Half a character is not text; it is replaced, never dropped.
    assert_eq!(strings("é"), ["\u{FFFD}", "\u{FFFD}"]);
}

#[test]
fn a_tokenizer_survives_writing_and_reading() {
    for tokenizer in [words(), bpe()] {
        let json = tokenizer.to_json().expect("JSON");
        let again = Tokenizer::from_json(&json).expect("a tokenizer");
        let text = "the capital of Spain is Madrid";
        assert_eq!(again.encode(text), tokenizer.encode(text));
    }
}

#[test]
fn a_file_that_is_no_tokenizer_is_refused() {
    for json in ["", "{", "[]", "{}", r#"{"model": {"type": "Nonsense"}}"#] {
        let error = Tokenizer::from_json(json).expect_err(json);
        assert!(matches!(error, TokensError::Tokenizer { .. }), "{error:?}");
    }
}

#[test]
fn one_token_is_told_from_several() {
    let tokenizer = bpe();
    assert_eq!(tokenizer.single_token(" Spain").map(|id| vec![id]), {
        tokenizer.encode(" Spain")
    });
    assert_ne!(
        tokenizer.single_token(" Spain"),
        tokenizer.single_token("Spain")
    );
    for (text, tokens) in [(" Portugal", 2), (" Rome", 5), ("", 0)] {
        let error = tokenizer.single_token(text).expect_err(text);
        let TokensError::NotOneToken {
            text: named,
            found,
            tokens: listed,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (named.as_str(), *found, listed.len()),
            (text, tokens, tokens)
        );
        assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
    }
}

#[test]
fn positions_of_a_word() {
    let prompt = "The capital of Spain is";
    assert_eq!(bpe().positions_of(prompt, "Spain"), Ok(3..4));
    assert_eq!(bpe().positions_of(prompt, " Spain"), Ok(3..4));
    assert_eq!(bpe().positions_of(prompt, "The"), Ok(0..1));
    assert_eq!(bpe().positions_of(prompt, "is"), Ok(4..5));
    assert_eq!(bpe().positions_of(prompt, "capital of"), Ok(1..3));
    assert_eq!(
        words().positions_of("the capital of Spain", "Spain"),
        Ok(3..4)
    );
}

#[test]
fn positions_of_a_word_of_several_tokens() {
    let prompt = "The capital of Portugal is";
    assert_eq!(
        covered(prompt, "Portugal"),
        Ok(vec![" Port".into(), "ugal".into()])
    );
    // Positions count tokens and not bytes or characters.
    let prompt = "<|endoftext|>é🦀 in café of Spain";
    assert_eq!(covered(prompt, "Spain"), Ok(vec![" Spain".into()]));
    let positions = bpe().positions_of(prompt, "café").expect("positions");
    assert_eq!(positions.len(), 4); // ` ca`, `f` and the two bytes of `é`
}

#[test]
fn a_word_must_occur_exactly_once() {
    let prompt = "Spain and Spain";
    let error = bpe().positions_of(prompt, "Spain").expect_err("ambiguous");
    assert_eq!(
        error,
        TokensError::WordAmbiguous {
            word: "Spain".into(),
            prompt: prompt.into(),
            count: 2
        }
    );
    assert!(error.to_string().contains("2 times"), "{error}");

    for (prompt, word) in [
        ("The capital of Spain", "Rome"),
        ("The capital of Spain", "spain"),
        ("The capital", ""),
        ("The capital", " "),
        ("", ""),
        ("", "Spain"),
    ] {
        let error = bpe().positions_of(prompt, word).expect_err(word);
        assert_eq!(
            error,
            TokensError::WordNotFound {
                word: word.into(),
                prompt: prompt.into()
            },
        );
    }
    // The word alone counts, not the longer word that contains it.
    assert_eq!(bpe().positions_of("The in Spain", "in"), Ok(1..2));
}

#[test]
fn a_batch_keeps_the_lengths() {
    let texts = ["The capital of Spain is", " Portugal", "The"];
    let batch = bpe().encode_batch(texts).expect("a batch");
    assert_eq!(batch.lengths(), [5, 2, 1]);
    assert_eq!((batch.batch(), batch.pos()), (3, 5));
    for (ids, text) in batch.ids().iter().zip(texts) {
        assert_eq!(*ids, bpe().encode(text).expect("ids"));
    }
}

fn batches_are_padded_on_the_right<B: Backend>(device: &B::Device) {
    let batch = batch(&[&[7], &[1, 2, 3], &[4, 5]]).expect("a batch");
    let tensor = batch.to_tensor::<B>(device);
    assert_eq!(tensor.dims(), [3, 3]);
    let ids: Vec<i64> = tensor.into_data().iter().collect();
    assert_eq!(ids, [7, 0, 0, 1, 2, 3, 4, 5, 0]);
    assert_eq!(batch.last_positions(), [0, 2, 1]);
}

fn most_probable_tokens<B: Backend>(device: &B::Device) {
    // In a softmax, e^ln n counts n times. Token 6 has no word.
    let logs = [
        [1_f32, 4., 2., 8., 1., 1., 3.],
        [5., 1., 1., 1., 1., 1., 0.],
    ]
    .map(|row| row.map(f32::ln));
    let logits = Tensor::<B, 2>::from_data(logs, device);
    let found = words().top_tokens(logits.clone(), 3);
    let words_of = |row: usize| found[row].iter().map(|it| (it.id, it.text.as_str()));
    // Equally probable ones in the order of their ids.
    assert!(words_of(0).eq([(3, "of"), (1, "the"), (6, "#6")]));
    assert!(words_of(1).eq([(0, "<unk>"), (1, "the"), (2, "capital")]));
    let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found}");
    near(found[0][0].probability, 8. / 20.);
    near(found[0][2].probability, 3. / 20.);
    near(found[1][0].probability, 5. / 10.);
    assert_eq!(found[0][0].to_string(), "\"of\" 0.4000");

    // The same by id, from logits with more axes; all of them where fewer are there.
    let by_id = top_tokens(logits.unsqueeze_dim::<3>(1), 9);
    assert_eq!(by_id.len(), 2);
    let all: Vec<u32> = by_id[0].iter().map(|(id, _)| *id).collect();
    assert_eq!(all, [3, 1, 6, 2, 0, 4, 5]);
    near(by_id[1].iter().map(|(_, p)| p).sum(), 1.0);
    assert!(words().top_tokens(Tensor::<B, 2>::zeros([2, 7], device), 0) == [vec![], vec![]]);
}

#[test]
fn a_batch_without_tokens_is_refused() {
    assert_eq!(batch(&[]), Err(TokensError::EmptyBatch));
    let empty = Err(TokensError::EmptyExample { example: 1 });
    assert_eq!(batch(&[&[3], &[], &[]]), empty);
    assert_eq!(bpe().encode_batch(["The", ""]), empty);
    assert_eq!(bpe().encode_batch([""; 0]), Err(TokensError::EmptyBatch));
}

#[test]
fn a_batch_must_suit_the_model() {
    let mut dims = burn_align_models::DecoderConfig::gpt2().dims;
    dims.vocab = 41;
    dims.max_positions = Some(3);
    let check = |ids: &[&[u32]], dims: &ModelDims| batch(ids).expect("a batch").check(dims);

    assert_eq!(check(&[&[0, 40, 1], &[40]], &dims), Ok(()));
    let error = check(&[&[1], &[2, 41]], &dims).expect_err("unknown token");
    let unknown = TokensError::UnknownToken {
        example: 1,
        pos: 1,
        found: 41,
        vocab: 41,
    };
    assert_eq!(error, unknown);
    assert!(
        error.to_string().contains("example 1, position 1"),
        "{error}"
    );
    assert!(check(&[&[u32::MAX]], &dims).is_err());

    let error = check(&[&[1], &[1], &[1, 2, 3, 4]], &dims).expect_err("too long");
    let too_long = TokensError::TooLong {
        example: 2,
        found: 4,
        max_positions: 3,
    };
    assert_eq!(error, too_long);
    dims.max_positions = None;
    assert_eq!(check(&[&[1; 5000]], &dims), Ok(()));
}
