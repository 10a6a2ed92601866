//! The files of a model folder that determine how text becomes token ids.

use std::collections::BTreeMap;

/// The contents of a model folder's tokenizer files, verbatim.
///
/// They are interpreted as by `AutoTokenizer` in `transformers`; see
/// [`Tokenizer::from_files`](super::Tokenizer::from_files).
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
    /// `vocab.json`, for byte-level BPE without a `tokenizer.json`.
    pub vocab: Option<String>,
    /// `merges.txt`, which accompanies `vocab.json`.
    pub merges: Option<String>,
    /// SentencePiece's `tokenizer.model` or `spiece.model`.
    pub sentencepiece: Option<Vec<u8>>,
    /// The model's own `config.json`, which determines the tokenizer's class if
    /// `tokenizer_config.json` does not name it.
    pub model_config: Option<String>,
    /// Whether tokenizer.json alone determines the ids; the other files then only name special
    /// tokens and hold chat templates.
    pub tokenizer_decides: bool,
    /// Chat templates by name: `chat_template.jinja` is named `default`, and
    /// `additional_chat_templates/NAME.jinja` is named `NAME`.
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
    /// The folder of named chat templates.
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

    /// Sets this `tokenizer.json`.
    pub fn with_tokenizer(mut self, json: impl Into<String>) -> Self {
        self.tokenizer = Some(json.into());
        self
    }

    /// Sets this `tokenizer.json`, which alone determines the ids, whatever the other files say.
    pub fn with_deciding_tokenizer(mut self, json: impl Into<String>) -> Self {
        self.tokenizer_decides = true;
        self.with_tokenizer(json)
    }

    /// Sets this `tokenizer_config.json`.
    pub fn with_config(mut self, json: impl Into<String>) -> Self {
        self.config = Some(json.into());
        self
    }

    /// Sets this `config.json` of the model.
    pub fn with_model_config(mut self, json: impl Into<String>) -> Self {
        self.model_config = Some(json.into());
        self
    }

    /// Adds a chat template; the default one is named `default`.
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

    /// The names of the available files with a vocabulary.
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
