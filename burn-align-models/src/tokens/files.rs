//! The files of a model folder that decide how text becomes token ids.

use std::collections::BTreeMap;

/// The contents of a model folder's tokenizer files, each as it is in the file.
///
/// Which of them matters, and how, is what `AutoTokenizer` of `transformers` does with the same
/// folder; see [`Tokenizer::from_files`](super::Tokenizer::from_files).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Option<String>,
    /// `tokenizer_config.json`.
    pub config: Option<String>,
    /// `special_tokens_map.json`, which older releases of `transformers` wrote.
    pub special_tokens_map: Option<String>,
    /// `added_tokens.json`, which older releases of `transformers` wrote.
    pub added_tokens: Option<String>,
    /// `vocab.json`, of byte-level BPE without a `tokenizer.json`.
    pub vocab: Option<String>,
    /// `merges.txt`, which belongs to `vocab.json`.
    pub merges: Option<String>,
    /// `tokenizer.model` or `spiece.model`, of SentencePiece.
    pub sentencepiece: Option<Vec<u8>>,
    /// The model's own `config.json`, which names the tokenizer's class where
    /// `tokenizer_config.json` does not.
    pub model_config: Option<String>,
    /// Whether tokenizer.json alone decides the ids: the other files then only name special tokens and
    /// hold chat templates.
    pub tokenizer_decides: bool,
    /// Chat templates by name: `chat_template.jinja` is the one named `default`, and
    /// `additional_chat_templates/NAME.jinja` the one named `NAME`.
    pub chat_templates: BTreeMap<String, String>,
}

impl TokenizerFiles {
    /// The names of the files in a model folder, without those of chat templates.
    pub const NAMES: [&str; 9] = [
        Self::TOKENIZER,
        Self::CONFIG,
        Self::SPECIAL_TOKENS_MAP,
        Self::ADDED_TOKENS,
        Self::VOCAB,
        Self::MERGES,
        Self::SENTENCEPIECE,
        Self::SENTENCEPIECE_OF_T5,
        Self::CHAT_TEMPLATE,
    ];
    /// The folder of chat templates with names of their own.
    pub const CHAT_TEMPLATES: &str = "additional_chat_templates";

    pub(crate) const TOKENIZER: &str = "tokenizer.json";
    pub(crate) const CONFIG: &str = "tokenizer_config.json";
    pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
    pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
    pub(crate) const VOCAB: &str = "vocab.json";
    pub(crate) const MERGES: &str = "merges.txt";
    pub(crate) const SENTENCEPIECE: &str = "tokenizer.model";
    pub(crate) const SENTENCEPIECE_OF_T5: &str = "spiece.model";
    pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

    /// With this `tokenizer.json`.
    pub fn with_tokenizer(mut self, json: impl Into<String>) -> Self {
        self.tokenizer = Some(json.into());
        self
    }

    /// With this `tokenizer.json`, which alone decides the ids, whatever other files say.
    pub fn with_deciding_tokenizer(mut self, json: impl Into<String>) -> Self {
        self.tokenizer_decides = true;
        self.with_tokenizer(json)
    }

    /// With this `tokenizer_config.json`.
    pub fn with_config(mut self, json: impl Into<String>) -> Self {
        self.config = Some(json.into());
        self
    }

    /// With this `config.json` of the model.
    pub fn with_model_config(mut self, json: impl Into<String>) -> Self {
        self.model_config = Some(json.into());
        self
    }

    /// With a chat template; the one that is used by default is named `default`.
    pub fn with_chat_template(
        mut self,
        name: impl Into<String>,
        template: impl Into<String>,
    ) -> Self {
        self.chat_templates.insert(name.into(), template.into());
        self
    }

    /// Whether there is a file from which a vocabulary can be read.
    pub fn has_vocabulary(&self) -> bool {
        self.tokenizer.is_some() || self.vocab.is_some() || self.sentencepiece.is_some()
    }

    /// The names of the files with a vocabulary that are there.
    pub(super) fn vocabularies(&self) -> String {
        let there = [
            (Self::TOKENIZER, self.tokenizer.is_some()),
            (Self::VOCAB, self.vocab.is_some()),
            (Self::MERGES, self.merges.is_some()),
            (Self::SENTENCEPIECE, self.sentencepiece.is_some()),
        ];
        let names: Vec<&str> = there
            .iter()
            .filter_map(|(name, is_there)| is_there.then_some(*name))
            .collect();
        if names.is_empty() {
            "no file with a vocabulary".to_owned()
        } else {
            names.join(", ")
        }
    }
}
