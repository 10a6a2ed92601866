//! The vocabulary of a GGUF file, as the two files from which Hugging Face libraries read
//! tokenizers.
//!
//! llama.cpp (`src/llama-vocab.cpp`) defines the meaning of the metadata: which tokens are matched
//! in a text first, which pieces are merged first, where a text is split, and what is put before
//! it. The tokenizer written here gives the same ids, except as described in `pre_tokenizer.rs`.

mod json;
mod merges;
mod pre_tokenizer;
#[cfg(test)]
mod tests;
mod tokens;

use super::{Gguf, GgufError, Metadata};
use json::{Parts, byte_level, sentence_piece};
use pre_tokenizer::PreTokenizer;
use tokens::{Roles, Tokens};

/// A tokenizer in the Hugging Face format: the contents of two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerTexts {
    /// `tokenizer.json`.
    pub tokenizer_json: String,
    /// `tokenizer_config.json`: the special tokens by role, and the chat template.
    pub tokenizer_config_json: String,
}

const MODEL: &str = "tokenizer.ggml.model";

/// The tokenizer of a GGUF file; `None` for a file without a vocabulary.
///
/// # Errors
/// If the vocabulary is of an unsupported type, or inconsistent.
pub fn vocabulary(gguf: &Gguf) -> Result<Option<TokenizerTexts>, GgufError> {
    from_metadata(gguf.metadata())
}

pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<TokenizerTexts>, GgufError> {
    let kind = match metadata.text(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(kind) => kind,
    };
    match kind {
        "gpt2" => {
            let pre_tokenizer = PreTokenizer::of(metadata)?;
            let tokens = Tokens::read(metadata)?;
            let roles = Roles::read(metadata, &tokens, [None; 3], pre_tokenizer.adds_bos)?;
            let merges = merges::listed(metadata, &tokens)?;
            texts(
                metadata,
                byte_level(&tokens, &roles, &pre_tokenizer, merges),
            )
        }
        "llama" => {
            let tokens = Tokens::read(metadata)?;
            let roles = Roles::read(metadata, &tokens, [Some(1), Some(2), Some(0)], true)?;
            let merges = merges::from_scores(metadata, &tokens)?;
            let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?;
            let prefix = prefix.unwrap_or(true);
            texts(metadata, sentence_piece(&tokens, &roles, prefix, merges))
        }
        other => Err(GgufError::UnsupportedVocabulary {
            key: MODEL,
            found: other.to_owned(),
            expected: "`gpt2` or `llama`",
        }),
    }
    .map(Some)
}

fn texts(metadata: &Metadata, parts: Parts<'_>) -> Result<TokenizerTexts, GgufError> {
    Ok(TokenizerTexts {
        tokenizer_config_json: parts.tokenizer_config(metadata)?,
        tokenizer_json: parts.tokenizer(),
    })
}
