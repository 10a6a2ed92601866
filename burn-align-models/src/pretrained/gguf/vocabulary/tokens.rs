//! The tokens, their types, and those with a role.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::super::{GgufError, Metadata};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// The type of a token, which determines how it is matched in a text; see `enum llama_token_type`
/// in llama.cpp's `llama.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece, formed by merging, or a type that llama.cpp treats as one.
    Piece,
    /// Matched in a text before anything is merged, and special: it should not occur in normal
    /// text.
    Control,
    /// Matched in a text before anything is merged.
    UserDefined,
}

/// All tokens by id.
pub(super) struct Tokens<'a> {
    texts: Vec<Cow<'a, str>>,
    kinds: Vec<TokenKind>,
    ids: HashMap<Cow<'a, str>, u32>,
    /// Whether matched tokens swallow the whitespace after them.
    swallow: bool,
}

impl<'a> Tokens<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let listed = metadata.texts(TOKENS)?;
        let listed = listed.ok_or_else(|| metadata.wrong(TOKENS, "the tokens"))?;
        if listed.is_empty() || u32::try_from(listed.len()).is_err() {
            let expected = "at least one token, and ids of 32 bits";
            return Err(metadata.wrong(TOKENS, expected));
        }
        let mut texts = Vec::with_capacity(listed.len());
        let mut ids = HashMap::with_capacity(listed.len());
        for (id, text) in (0..).zip(listed) {
            let text = match text.as_str() {
                // Named as in llama.cpp.
                "" => Cow::Owned(format!("[EMPTY_{id}]")),
                text => Cow::Borrowed(text),
            };
            match ids.entry(text.clone()) {
                Entry::Vacant(entry) => entry.insert(id),
                Entry::Occupied(entry) => {
                    return Err(GgufError::damaged(
                        format!("token {id} of {TOKENS}"),
                        "a unique text",
                        format!("`{text}`, which is also that of token {}", entry.get()),
                    ));
                }
            };
            texts.push(text);
        }
        let mut kinds = match metadata.integers(TOKEN_TYPE)? {
            None => vec![TokenKind::Piece; texts.len()],
            Some(types) if types.len() >= texts.len() => {
                let types = &types[..texts.len()];
                types.iter().map(|number| kind(*number)).collect()
            }
            Some(_) => {
                let expected = format!("{} types, one for each token", texts.len());
                return Err(metadata.wrong(TOKEN_TYPE, expected));
            }
        };
        mark_by_text(metadata, &ids, &mut kinds);
        let name = metadata.text("general.name")?.unwrap_or_default();
        let name = name.to_lowercase();
        Ok(Self {
            texts,
            kinds,
            ids,
            swallow: name.contains("phi-3") || name.contains("phi3"),
        })
    }

    pub(super) fn texts(&self) -> &[Cow<'a, str>] {
        &self.texts
    }

    pub(super) fn text(&self, id: u32) -> &str {
        &self.texts[id as usize]
    }

    pub(super) fn has(&self, text: &str) -> bool {
        self.ids.contains_key(text)
    }

    /// Whether a token is formed by merging rather than matched before.
    pub(super) fn is_piece(&self, text: &str) -> bool {
        let id = self.ids.get(text);
        id.is_some_and(|id| self.kinds[*id as usize] == TokenKind::Piece)
    }

    /// Those that are matched before anything is merged: ids, texts, and whether they are special.
    pub(super) fn found_first(&self) -> impl Iterator<Item = (u32, &str, bool)> {
        let all = (0..).zip(&self.texts).zip(&self.kinds);
        all.filter(|(_, kind)| **kind != TokenKind::Piece)
            .map(|((id, text), kind)| (id, text.as_ref(), *kind == TokenKind::Control))
    }

    /// Whether a matched token swallows the whitespace after it: those of Phi-3 do, with three
    /// exceptions.
    pub(super) fn swallows_whitespace(&self, text: &str) -> bool {
        self.swallow && !["<unk>", "<s>", "<|endoftext|>"].contains(&text)
    }
}

fn kind(number: i64) -> TokenKind {
    match number {
        // Unknown, control.
        2 | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        // Undefined, normal, unused, byte.
        _ => TokenKind::Piece,
    }
}

/// Tokens that end a turn or a text, whatever their type.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens for infilling, unless the metadata name them: their keys, their texts.
const INFILL: [(&[&str], &[&str]); 6] = [
    (
        &["fim_pre_token_id", "prefix_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["fim_suf_token_id", "suffix_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["fim_mid_token_id", "middle_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (
        &["fim_pad_token_id"],
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    ),
    (
        &["fim_rep_token_id"],
        &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
    ),
    (&["fim_sep_token_id"], &["<|file_sep|>"]),
];

/// Tokens of the harmony format that remain in texts.
const KEPT: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Corrects token types that converters often get wrong, as llama.cpp does when it loads a
/// vocabulary.
fn mark_by_text(metadata: &Metadata, ids: &HashMap<Cow<'_, str>, u32>, kinds: &mut [TokenKind]) {
    let mut mark = |text: &str, kind| {
        if let Some(id) = ids.get(text) {
            kinds[*id as usize] = kind;
        }
    };
    for (keys, texts) in INFILL {
        let mut keys = keys.iter().map(|key| format!("tokenizer.ggml.{key}"));
        if keys.all(|key| metadata.get(&key).is_none()) {
            texts.iter().for_each(|text| mark(text, TokenKind::Control));
        }
    }
    ENDS.iter().for_each(|text| mark(text, TokenKind::Control));
    KEPT.iter()
        .for_each(|text| mark(text, TokenKind::UserDefined));
}

/// Tokens with a role, and whether they are put around a text.
pub(super) struct Roles {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) adds_bos: bool,
    pub(super) adds_eos: bool,
}

impl Roles {
    /// - `defaults`: beginning, end and unknown, if the metadata do not name them
    pub(super) fn read(
        metadata: &Metadata,
        tokens: &Tokens<'_>,
        defaults: [Option<u32>; 3],
        adds_bos: bool,
    ) -> Result<Self, GgufError> {
        let known = |id: &u32| (*id as usize) < tokens.texts.len();
        let role = |key: &str, default: Option<u32>| {
            let id = metadata
                .unsigned(key)?
                .and_then(|id| u32::try_from(id).ok());
            // llama.cpp ignores ids without a token; converters write them for padding.
            Ok::<_, GgufError>(id.filter(known).or(default.filter(known)))
        };
        let [bos, eos, unk] = defaults;
        let bos = role(BOS, bos)?;
        let eos = role(EOS, eos)?;
        let adds_bos = metadata.flag(ADD_BOS)?.unwrap_or(adds_bos);
        let adds_eos = metadata.flag(ADD_EOS)?.unwrap_or(false);
        for (adds, id, key) in [(adds_bos, bos, BOS), (adds_eos, eos, EOS)] {
            if adds && id.is_none() {
                return Err(metadata.wrong(key, "the id of a token that is put around texts"));
            }
        }
        Ok(Self {
            bos,
            eos,
            unk: role("tokenizer.ggml.unknown_token_id", unk)?,
            pad: role("tokenizer.ggml.padding_token_id", None)?,
            adds_bos,
            adds_eos,
        })
    }
}

const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
