//! From text to token ids and back.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use serde::de::IgnoredAny;

use crate::dims::ModelDims;

/// What can be wrong with tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The tokenizer cannot be built or fails on a text.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What it says.
        reason: String,
    },
    /// A batch without examples.
    #[error("the batch is empty: expected at least one example")]
    EmptyBatch,
    /// An example without tokens.
    #[error("example {example} is empty: expected at least one token")]
    EmptyExample {
        /// Its index in the batch.
        example: usize,
    },
    /// A token id that the model does not have.
    #[error("example {example}, position {pos}: expected a token id below {vocab}, found {found}")]
    UnknownToken {
        /// Index in the batch.
        example: usize,
        /// Position in the example.
        pos: usize,
        /// The id.
        found: u32,
        /// Number of tokens.
        vocab: usize,
    },
    /// An example that is longer than the model can read.
    #[error("example {example}: expected at most {max_positions} tokens, found {found}")]
    TooLong {
        /// Index in the batch.
        example: usize,
        /// Its length.
        found: usize,
        /// The model's limit.
        max_positions: usize,
    },
    /// An example that is not in the batch.
    #[error("expected an example below {batch}, found {found}")]
    NoSuchExample {
        /// Its index.
        found: usize,
        /// Number of examples.
        batch: usize,
    },
    /// A word that does not stand in a prompt.
    #[error("`{word}` does not occur in `{prompt}`")]
    WordNotFound {
        /// The word.
        word: String,
        /// The prompt.
        prompt: String,
    },
    /// A word that stands in a prompt more than once.
    #[error("`{word}` occurs {count} times in `{prompt}`: give the position itself")]
    WordAmbiguous {
        /// The word.
        word: String,
        /// The prompt.
        prompt: String,
        /// How often it occurs.
        count: usize,
    },
    /// A text that was to be one token.
    #[error("expected `{text}` to be one token, found {found}: {tokens:?}")]
    NotOneToken {
        /// The text.
        text: String,
        /// Number of tokens.
        found: usize,
        /// The tokens.
        tokens: Vec<String>,
    },
}

/// Token ids of a batch of examples, each with its own length.
///
/// As a tensor the batch is padded on the right. Under a causal mask the padding cannot reach the
/// real positions, so it changes nothing there; what a model computes *at* padding is meaningless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<Vec<u32>>,
}

impl TokenBatch {
    /// A batch of examples.
    ///
    /// # Errors
    /// If there is no example, or an example has no token.
    pub fn new(ids: Vec<Vec<u32>>) -> Result<Self, TokensError> {
        if ids.is_empty() {
            return Err(TokensError::EmptyBatch);
        }
        if let Some(example) = ids.iter().position(Vec::is_empty) {
            return Err(TokensError::EmptyExample { example });
        }
        Ok(Self { ids })
    }

    /// The ids of each example.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// Number of examples.
    pub fn batch(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions of the longest example.
    pub fn pos(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Number of real tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.ids.iter().map(Vec::len).collect()
    }

    /// The position of the last token of each example.
    pub fn last_positions(&self) -> Vec<usize> {
        self.ids.iter().map(|ids| ids.len() - 1).collect()
    }

    /// Some of the examples, in this order; one may be named several times.
    ///
    /// # Errors
    /// If none is named, or one that is not there.
    pub fn select(&self, examples: &[usize]) -> Result<Self, TokensError> {
        let batch = self.batch();
        let ids = examples.iter().map(|example| {
            let ids = self.ids.get(*example).cloned();
            ids.ok_or(TokensError::NoSuchExample {
                found: *example,
                batch,
            })
        });
        Self::new(ids.collect::<Result<_, _>>()?)
    }

    /// Checks that a model of these sizes can read the batch.
    ///
    /// # Errors
    /// If a token is unknown to the model or an example is too long for it.
    pub fn check(&self, dims: &ModelDims) -> Result<(), TokensError> {
        for (example, ids) in self.ids.iter().enumerate() {
            if let Some(max_positions) = dims.max_positions.filter(|max| ids.len() > *max) {
                return Err(TokensError::TooLong {
                    example,
                    found: ids.len(),
                    max_positions,
                });
            }
            if let Some(pos) = ids.iter().position(|id| *id as usize >= dims.vocab) {
                return Err(TokensError::UnknownToken {
                    example,
                    pos,
                    found: ids[pos],
                    vocab: dims.vocab,
                });
            }
        }
        Ok(())
    }

    /// The ids, padded on the right with 0.
    ///
    /// # Shapes
    /// - output: `[batch, pos]`
    pub fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2, Int> {
        let (batch, pos) = (self.batch(), self.pos());
        let mut padded = vec![0_i64; batch * pos];
        for (row, ids) in padded.chunks_mut(pos).zip(&self.ids) {
            for (slot, id) in row.iter_mut().zip(ids) {
                *slot = i64::from(*id);
            }
        }
        Tensor::from_data(TensorData::new(padded, [batch, pos]), device)
    }
}

/// Splits text into tokens, from a `tokenizer.json`.
///
/// ```
/// use burn_align_models::{FromPretrained, Gpt2, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded = Gpt2::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let ids = tokenizer.encode("The capital of Spain is")?;
/// assert_eq!(tokenizer.token_strings(&ids), ["The", "capital", "of", "Spain", "is"]);
/// assert_eq!(tokenizer.single_token("Spain")?, ids[3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: String,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is not a tokenizer.
    pub fn from_json(json: &str) -> Result<Self, TokensError> {
        // The `tokenizers` crate panics on some texts that are no JSON, which would be printed.
        serde_json::from_str::<IgnoredAny>(json).map_err(|error| TokensError::Tokenizer {
            reason: format!("not JSON: {error}"),
        })?;
        let mut inner: tokenizers::Tokenizer = no_panic(|| json.parse())?;
        // Batches are padded here, and prompts are never cut silently.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(tokenizer_error)?;
        Ok(Self {
            inner,
            json: json.to_owned(),
        })
    }

    /// The text of the `tokenizer.json` that this was read from.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Token ids of one text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// Token ids of several texts.
    ///
    /// # Errors
    /// If there is no text, a text has no token, or the tokenizer fails.
    pub fn encode_batch<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<TokenBatch, TokensError> {
        let ids = texts.into_iter().map(|text| self.encode(text.as_ref()));
        TokenBatch::new(ids.collect::<Result<_, _>>()?)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        no_panic(|| self.inner.decode(ids, false))
    }

    /// Each token as readable text, including any space before it.
    pub fn token_strings(&self, ids: &[u32]) -> Vec<String> {
        ids.iter()
            .map(|id| match no_panic(|| self.inner.decode(&[*id], false)) {
                Ok(text) if !text.is_empty() => text,
                // A special token, or a part of a character.
                _ => self
                    .inner
                    .id_to_token(*id)
                    .unwrap_or_else(|| format!("#{id}")),
            })
            .collect()
    }

    /// The id of a text that is one token, such as `" Rome"` for GPT-2.
    ///
    /// # Errors
    /// If the text is not exactly one token.
    pub fn single_token(&self, text: &str) -> Result<u32, TokensError> {
        let encoding = no_panic(|| self.inner.encode(text, false))?;
        match encoding.get_ids() {
            [id] => Ok(*id),
            ids => Err(TokensError::NotOneToken {
                text: text.to_owned(),
                found: ids.len(),
                tokens: encoding.get_tokens().to_vec(),
            }),
        }
    }

    /// The token positions of a word in a prompt, so that nobody needs to count them.
    ///
    /// The word may be any part of the prompt; all tokens that touch it are meant.
    ///
    /// # Errors
    /// If the word is empty, does not occur in the prompt, or occurs more than once.
    pub fn positions_of(&self, prompt: &str, word: &str) -> Result<Range<usize>, TokensError> {
        let wanted = word.trim();
        let starts: Vec<usize> = prompt
            .match_indices(wanted)
            .map(|(start, _)| start)
            .filter(|start| is_whole_word(prompt, *start..*start + wanted.len()))
            .collect();
        let not_found = || TokensError::WordNotFound {
            word: word.to_owned(),
            prompt: prompt.to_owned(),
        };
        let start = match starts[..] {
            _ if wanted.is_empty() => return Err(not_found()),
            [] => return Err(not_found()),
            [start] => start,
            _ => {
                return Err(TokensError::WordAmbiguous {
                    word: word.to_owned(),
                    prompt: prompt.to_owned(),
                    count: starts.len(),
                });
            }
        };
        let end = start + wanted.len();
        let encoding = self.encoding(prompt)?;
        let touches = |(from, to): &(usize, usize)| *from < end && start < *to;
        let offsets = encoding.get_offsets();
        let first = offsets.iter().position(touches).ok_or_else(not_found)?;
        let last = offsets.iter().rposition(touches).ok_or_else(not_found)?;
        Ok(first..last + 1)
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding, TokensError> {
        no_panic(|| self.inner.encode(text, true))
    }
}

/// Whether the part of the text is not embedded in a longer word.
fn is_whole_word(text: &str, part: Range<usize>) -> bool {
    let before = text[..part.start].chars().next_back();
    let after = text[part.end..].chars().next();
    let first = text[part.clone()].chars().next();
    let last = text[part].chars().next_back();
    let joined = |a: Option<char>, b: Option<char>| {
        a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric)
    };
    !joined(before, first) && !joined(last, after)
}

/// Runs a part of the `tokenizers` crate, which panics on some damaged files.
fn no_panic<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokensError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(tokenizer_error),
        Err(_) => Err(TokensError::Tokenizer {
            reason: "tokenizer.json contradicts itself".to_owned(),
        }),
    }
}

fn tokenizer_error(error: tokenizers::Error) -> TokensError {
    TokensError::Tokenizer {
        reason: error.to_string(),
    }
}
