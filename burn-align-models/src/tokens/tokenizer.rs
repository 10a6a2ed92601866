//! A tokenizer: text to ids, and ids to text.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::Encoding;

use super::folder::{self, Assembled};
use super::pieces::Pieces;
use super::{TokenBatch, TokenizerFiles, TokensError};

/// Which special tokens encoding puts around a text, such as a beginning of sequence (BOS).
///
/// Special tokens that are written out in a text are recognised in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Those of the tokenizer, unless the text already begins with them.
    #[default]
    Once,
    /// Those of the tokenizer, as with `AutoTokenizer` in `transformers`: a text that begins with
    /// `<s>` gets a second one.
    Always,
    /// None.
    Never,
}

/// The class that uses tokenizer.json as it is.
const PLAIN_CLASS: &str = "PreTrainedTokenizerFast";

/// Splits text into tokens, as described by the files of a model folder.
///
/// ```
/// use burn_align_models::{Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let ids = tokenizer.encode("The capital of Spain is")?;
/// assert_eq!(tokenizer.token_strings(&ids), ["The", "capital", "of", "Spain", "is"]);
/// assert_eq!(tokenizer.single_token("Spain")?, ids[3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    assembled: Assembled,
    pieces: Pieces,
    files: TokenizerFiles,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`, which alone determines the ids.
    ///
    /// # Errors
    /// If it is not a tokenizer.
    pub fn from_json(json: &str) -> Result<Self, TokensError> {
        Self::from_files(TokenizerFiles::default().with_deciding_tokenizer(json))
    }

    /// The tokenizer of a model folder.
    ///
    /// Its ids are those of `AutoTokenizer.from_pretrained` in `transformers` 4.57 for the folder.
    /// tokenizer.json does not determine them alone: the tokenizer's class may rebuild what comes
    /// before and after each text (`add_bos_token` and `add_eos_token` of LLaMA's and Gemma's), and
    /// the other files may add special tokens or change how they are matched. Without a
    /// tokenizer.json the tokenizer is built from vocab.json and merges.txt (GPT-2, Qwen2) or from
    /// SentencePiece's tokenizer.model (LLaMA, Gemma, T5).
    ///
    /// ```
    /// use burn_align_models::{Tokenizer, TokenizerFiles};
    ///
    /// let tokenizer = r#"{
    ///   "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
    ///   "pre_tokenizer": {"type": "WhitespaceSplit"},
    ///   "model": {
    ///     "type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "a": 2}
    ///   }
    /// }"#;
    /// let config = r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}"#;
    /// let files = TokenizerFiles::default().with_tokenizer(tokenizer).with_config(config);
    /// assert_eq!(Tokenizer::from_files(files)?.encode("a")?, [1, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If a file cannot be read, the files needed for a tokenizer of this class are missing, or the
    /// class is not supported.
    #[doc(alias = "AutoTokenizer")]
    pub fn from_files(files: TokenizerFiles) -> Result<Self, TokensError> {
        let assembled = folder::assemble(&files)?;
        let pieces = Pieces::of(&assembled.inner);
        Ok(Self(Arc::new(Parts {
            assembled,
            pieces,
            files,
        })))
    }

    /// The text of a `tokenizer.json` that by itself gives the same ids.
    ///
    /// # Errors
    /// If the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, TokensError> {
        no_panic(|| self.inner().to_string(false))
    }

    /// The files that this was read from. tokenizer_config.json also names the tokenizer's class
    /// and holds the chat templates, so a folder with these files gives the same ids, here and in
    /// `transformers`, whatever its config.json.
    pub fn files(&self) -> TokenizerFiles {
        let mut files = self.0.files.clone();
        let config = files.config.as_deref().unwrap_or("{}");
        // It was parsed before.
        let Ok(Value::Object(mut config)) = serde_json::from_str(config) else {
            return files;
        };
        let class = config.get("tokenizer_class").is_some_and(Value::is_string);
        if files.tokenizer_decides {
            self.let_tokenizer_decide(&mut config);
            files.tokenizer_decides = false;
        } else if !class {
            let class = match self.class() {
                "PreTrainedTokenizer" => PLAIN_CLASS,
                class => class,
            };
            config.insert("tokenizer_class".to_owned(), class.into());
        }
        if !files.chat_templates.is_empty() {
            let templates = std::mem::take(&mut files.chat_templates);
            let templates = templates.into_iter();
            let named = |(name, template)| serde_json::json!({"name": name, "template": template});
            let list: Vec<Value> = templates.map(named).collect();
            config.insert("chat_template".to_owned(), list.into());
        }
        files.config = Some(format!("{:#}\n", Value::Object(config)));
        files
    }

    /// Changes a tokenizer_config.json so that tokenizer.json determines the ids.
    fn let_tokenizer_decide(&self, config: &mut serde_json::Map<String, Value>) {
        config.insert("tokenizer_class".to_owned(), PLAIN_CLASS.into());
        // The class treats a missing key as false.
        let pre_tokenizer = self.inner().get_pre_tokenizer().map(serde_json::to_value);
        if let Some(Ok(Value::Object(step))) = pre_tokenizer
            && let Some(prefix_space) = step.get("add_prefix_space")
        {
            config.insert("add_prefix_space".to_owned(), prefix_space.clone());
        }
        // A special token that is not an added token would become one.
        let added = self.inner().get_added_tokens_decoder();
        let is_added = |content: &str| added.values().any(|token| token.content == content);
        config.retain(|key, value| match value {
            Value::String(content) if key.ends_with("_token") => is_added(content),
            Value::Object(_) if key.ends_with("_token") => false,
            _ => true,
        });
        for key in [
            "added_tokens_decoder",
            "additional_special_tokens",
            "extra_special_tokens",
            "split_special_tokens",
        ] {
            config.remove(key);
        }
    }

    /// The name of the tokenizer's class in `transformers`, without `Fast`.
    pub(crate) fn class(&self) -> &'static str {
        self.0.assembled.class
    }

    /// Notes on how the files were read. Usually none.
    pub fn notes(&self) -> &[String] {
        &self.0.assembled.notes
    }

    /// The special tokens by role, such as `bos_token` and `eos_token`.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.assembled.specials.iter();
        all.map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// The id of a token by its name in the vocabulary, such as `<s>` or `▁Rome`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner().token_to_id(token)
    }

    /// Token ids of one text, with the special tokens that the tokenizer adds.
    ///
    /// A text that already begins with its special tokens, such as a rendered chat, does not get
    /// them twice: see [`SpecialTokens`]. With a beginning of sequence, the first word of a text is
    /// at position 1.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        self.encode_with(text, SpecialTokens::Once)
    }

    /// Token ids of one text, with or without special tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    #[doc(alias = "add_special_tokens")]
    pub fn encode_with(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokensError> {
        Ok(self.encoding(text, special)?.ids)
    }

    /// Token ids of several texts.
    ///
    /// # Errors
    /// If there is no text, a text has no token, or the tokenizer fails.
    pub fn encode_batch<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<TokenBatch, TokensError> {
        self.encode_batch_with(texts, SpecialTokens::Once)
    }

    /// Token ids of several texts, with or without special tokens around each.
    ///
    /// # Errors
    /// If there is no text, a text has no token, or the tokenizer fails.
    pub fn encode_batch_with<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
        special: SpecialTokens,
    ) -> Result<TokenBatch, TokensError> {
        let ids = texts
            .into_iter()
            .map(|text| self.encode_with(text.as_ref(), special));
        TokenBatch::new(ids.collect::<Result<_, _>>()?)
    }

    /// The text of token ids, with special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        no_panic(|| self.inner().decode(ids, false))
    }

    /// The id of a text that is one token, such as `" Rome"` for GPT-2.
    ///
    /// # Errors
    /// If the text is not exactly one token.
    pub fn single_token(&self, text: &str) -> Result<u32, TokensError> {
        let encoding = no_panic(|| self.inner().encode(text, false))?;
        match encoding.get_ids() {
            [id] => Ok(*id),
            ids => Err(TokensError::NotOneToken {
                text: text.to_owned(),
                found: ids.len(),
                tokens: encoding.get_tokens().to_vec(),
            }),
        }
    }

    pub(super) fn encoding(
        &self,
        text: &str,
        special: SpecialTokens,
    ) -> Result<Encoded, TokensError> {
        let add = special != SpecialTokens::Never;
        let encoding = no_panic(|| self.inner().encode(text, add))?;
        let mut encoded = Encoded::from(&encoding);
        if special == SpecialTokens::Once {
            let mask = encoding.get_special_tokens_mask();
            let added = mask.iter().take_while(|it| **it == 1).count();
            let (first, rest) = encoded.ids.split_at(added);
            // The whole text may be special tokens, which cannot be told apart then.
            if added > 0 && rest.starts_with(first) {
                encoded.ids.drain(..added);
                encoded.offsets.drain(..added);
            }
        }
        Ok(encoded)
    }

    /// The bytes of a token's text; `None` if there is no such token.
    pub(super) fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner().id_to_token(id)?;
        let added = self.inner().get_added_vocabulary().simple_id_to_token(id);
        Some(self.0.pieces.bytes(&token, added.is_some()))
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.0.assembled.inner
    }

    pub(super) fn assembled(&self) -> &Assembled {
        &self.0.assembled
    }
}

/// Token ids with the part of the text that each covers, in bytes.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    pub(super) offsets: Vec<(usize, usize)>,
}

impl From<&Encoding> for Encoded {
    fn from(encoding: &Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        }
    }
}

/// A tokenizer from the text of tokenizer.json.
pub(super) fn parse(json: &str) -> Result<tokenizers::Tokenizer, TokensError> {
    // The `tokenizers` crate panics, and prints that, on some texts that are not JSON.
    serde_json::from_str::<IgnoredAny>(json).map_err(|error| TokensError::Tokenizer {
        reason: format!("not JSON: {error}"),
    })?;
    no_panic(|| json.parse())
}

pub(super) fn from_value(json: Value) -> Result<tokenizers::Tokenizer, TokensError> {
    no_panic(|| json.to_string().parse())
}

/// Runs a part of the `tokenizers` crate, which panics on some damaged files.
pub(super) fn no_panic<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokensError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(TokensError::Tokenizer {
            reason: "tokenizer.json is inconsistent".to_owned(),
        }),
    }
}

pub(super) fn failed(error: tokenizers::Error) -> TokensError {
    TokensError::Tokenizer {
        reason: error.to_string(),
    }
}
