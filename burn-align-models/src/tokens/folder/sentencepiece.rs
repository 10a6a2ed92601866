//! A tokenizer from SentencePiece's tokenizer.model, built like `LlamaConverter`, `GemmaConverter`
//! and `T5Converter` in `transformers` (`convert_slow_tokenizer.py`).

use std::collections::HashMap;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, ModelWrapper, normalizers::Precompiled};

use super::super::tokenizer::{failed, no_panic};
use super::super::{TokenizerFiles, TokensError};
use super::class::Source;
use super::settings::Settings;
use super::special::Special;

/// Replacement for a space.
const SPACE: &str = "▁";

/// The fields of `sentencepiece.ModelProto` that affect tokens (`sentencepiece_model.proto`).
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "40", default = "0")]
    unk_id: Option<i32>,
    #[prost(string, optional, tag = "45", default = "<unk>")]
    unk_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
}

const UNIGRAM: i32 = 1;
const BPE_MODEL: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

pub(super) fn convert(
    source: Source,
    bytes: &[u8],
    settings: &Settings,
) -> Result<tokenizers::Tokenizer, TokensError> {
    let bad = |reason: String| TokensError::File {
        file: TokenizerFiles::SENTENCEPIECE.to_owned(),
        reason,
    };
    let other = |reason: String| {
        bad(format!(
            "not a SentencePiece model ({reason}); to convert another format, save the folder \
             with `AutoTokenizer.from_pretrained(…).save_pretrained(…)` in `transformers`"
        ))
    };
    let model = Model::decode(bytes).map_err(|error| other(error.to_string()))?;
    if model.pieces.is_empty() {
        return Err(other("no pieces".to_owned()));
    }
    if source == Source::T5 {
        for (id, token) in settings.converted() {
            let piece = usize::try_from(*id)
                .ok()
                .and_then(|id| model.pieces.get(id));
            if let Some(piece) = piece.filter(|piece| piece.text() != token.content) {
                return Err(bad(format!(
                    "piece {id} is `{}`, but added tokens name it `{}`",
                    piece.text(),
                    token.content
                )));
            }
        }
    }
    let trainer = model.trainer.clone().unwrap_or_default();
    let vocab = vocabulary(source, &model, settings)
        .ok_or_else(|| bad("expected at least three pieces, for special tokens".to_owned()))?;
    let byte_fallback = source != Source::T5;
    let made: ModelWrapper = match trainer.model_type() {
        UNIGRAM => {
            let unk_id = match source {
                Source::Gemma => 3,
                Source::T5 => usize::try_from(trainer.unk_id()).unwrap_or(usize::MAX),
                _ => 0,
            };
            no_panic(|| Unigram::from(vocab, Some(unk_id), byte_fallback))?.into()
        }
        BPE_MODEL => {
            let merges = merges(&model, source, &vocab);
            let ids = vocab.iter().enumerate();
            let ids: Vocab = ids
                .map(|(id, (text, _))| (text.clone(), id as u32))
                .collect();
            let build = || {
                BPE::builder()
                    .vocab_and_merges::<Vocab>(ids, merges)
                    .unk_token(trainer.unk_piece().to_owned())
                    .fuse_unk(true)
                    .byte_fallback(byte_fallback)
                    .build()
            };
            no_panic(build)?.into()
        }
        other => {
            return Err(bad(format!(
                "model type {other}: expected unigram (1) or BPE (2)"
            )));
        }
    };
    let mut inner = tokenizers::Tokenizer::new(made);
    let added: Vec<AddedToken> = (model.pieces.iter())
        .filter(|piece| [CONTROL, USER_DEFINED].contains(&piece.kind()))
        .map(|piece| {
            let is_turn = ["<start_of_turn>", "<end_of_turn>"].contains(&piece.text());
            let special = piece.kind() == CONTROL || (source == Source::Gemma && is_turn);
            AddedToken::from(piece.text(), special).normalized(false)
        })
        .collect();
    no_panic(|| Ok(inner.add_tokens(&added)))?;
    set_steps(&mut inner, source, &model, settings)?;
    Ok(inner)
}

/// The pieces with their scores, including the special tokens that the class renames.
fn vocabulary(source: Source, model: &Model, settings: &Settings) -> Option<Vec<(String, f64)>> {
    let scored = |piece: &Piece| (piece.text().to_owned(), f64::from(piece.score()));
    let mut vocab: Vec<(String, f64)> = model.pieces.iter().map(scored).collect();
    match source {
        Source::Gemma => {
            for (slot, name) in ["pad_token", "eos_token", "bos_token"].iter().enumerate() {
                let token = settings.special(name).map_or("", Special::content);
                *vocab.get_mut(slot)? = (token.to_owned(), 0.0);
            }
            // Older models lack the tab; its byte is used instead.
            if !vocab.iter().any(|(text, _)| text == "\t") {
                let byte = vocab.iter_mut().find(|(text, _)| text == "<0x09>");
                if let Some(byte) = byte {
                    *byte = ("\t".to_owned(), 0.0);
                }
            }
        }
        Source::T5 => {
            let extra = (0..settings.extra_ids()).rev();
            vocab.extend(extra.map(|id| (format!("<extra_id_{id}>"), 0.0)));
        }
        _ => {
            for slot in 0..3 {
                let renamed = settings.converted().get(&(slot as i64));
                let piece = vocab.get_mut(slot)?;
                piece.1 = 0.0;
                if let Some(token) = renamed {
                    piece.0.clone_from(&token.content);
                }
            }
        }
    }
    Some(vocab)
}

/// The merges implied by the scores of the pieces, best first.
fn merges(model: &Model, source: Source, vocab: &[(String, f64)]) -> Vec<(String, String)> {
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        ids.insert(piece.text(), id);
    }
    if source == Source::Gemma
        && !ids.contains_key("\t")
        && let Some(byte) = ids.get("<0x09>").copied()
    {
        ids.insert("\t", byte);
    }
    // A piece that occurs twice keeps its first position and its last score.
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut scores: Vec<(&str, f64)> = Vec::new();
    for (text, score) in vocab {
        let place = *places.entry(text).or_insert_with(|| {
            scores.push((text, *score));
            scores.len() - 1
        });
        scores[place].1 = *score;
    }
    let mut merges: Vec<(&str, &str, f64)> = Vec::new();
    for (text, score) in scores {
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut local: Vec<_> = splits
            .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), left, right)))
            .collect();
        local.sort_by_key(|(ids, _, _)| *ids);
        merges.extend(
            local
                .into_iter()
                .map(|(_, left, right)| (left, right, score)),
        );
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        let by_score = b.2.total_cmp(&a.2);
        let by_left = length(b.0).cmp(&length(a.0));
        by_score.then(by_left).then(length(b.1).cmp(&length(a.1)))
    });
    merges
        .into_iter()
        .map(|(left, right, _)| (left.to_owned(), right.to_owned()))
        .collect()
}

/// Sets the steps before and after the model.
fn set_steps(
    inner: &mut tokenizers::Tokenizer,
    source: Source,
    model: &Model,
    settings: &Settings,
) -> Result<(), TokensError> {
    let legacy = source == Source::CodeLlama || settings.value("legacy").is_none() || {
        settings.flag("legacy", true)
    };
    let prefix_space = source == Source::CodeLlama || settings.flag("add_prefix_space", true);
    let scheme = match (prefix_space, legacy) {
        (true, true) => "always",
        (true, false) => "first",
        (false, _) => "never",
    };
    let metaspace = |split: bool| {
        json!({
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split,
        })
    };
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let (normalizer, pre_tokenizer, decoder, post_processor) = match source {
        Source::Gemma => {
            let split = json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": false,
            });
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            (spaces, split, decoder, Value::Null)
        }
        Source::T5 => {
            let mut steps = Vec::new();
            let normalizer = model.normalizer.clone().unwrap_or_default();
            let map = normalizer.precompiled_charsmap();
            if !map.is_empty() {
                let map = no_panic(|| Precompiled::from(map).map_err(Into::into))?;
                let mut step = serde_json::to_value(map).map_err(|error| failed(error.into()))?;
                step["type"] = "Precompiled".into();
                steps.push(step);
            }
            steps.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
            steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE}));
            let normalizer = json!({"type": "Sequence", "normalizers": steps});
            let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
            let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
            let id = settings
                .added_id("</s>")
                .or_else(|| inner.token_to_id("</s>"));
            let id = id.unwrap_or_default();
            let post_processor = json!({
                "type": "TemplateProcessing",
                "single": [text("A"), end],
                "pair": [text("A"), end, text("B"), end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [id], "tokens": ["</s>"]}},
            });
            (normalizer, metaspace(true), metaspace(true), post_processor)
        }
        _ => {
            if prefix_space {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            if legacy {
                let prepend = json!({"type": "Prepend", "prepend": SPACE});
                let mut steps = vec![prepend, spaces];
                if !prefix_space {
                    steps.remove(0);
                }
                let normalizer = json!({"type": "Sequence", "normalizers": steps});
                (normalizer, Value::Null, decoder, Value::Null)
            } else {
                (Value::Null, metaspace(false), decoder, Value::Null)
            }
        }
    };
    inner.with_normalizer(part::<tokenizers::NormalizerWrapper>(normalizer)?);
    inner.with_pre_tokenizer(part::<tokenizers::PreTokenizerWrapper>(pre_tokenizer)?);
    inner.with_decoder(part::<tokenizers::DecoderWrapper>(decoder)?);
    inner.with_post_processor(part::<tokenizers::PostProcessorWrapper>(post_processor)?);
    Ok(())
}

/// A part of a tokenizer from its JSON; null means none.
fn part<T: serde::de::DeserializeOwned>(value: Value) -> Result<Option<T>, TokensError> {
    serde_json::from_value(value).map_err(|error| failed(error.into()))
}
