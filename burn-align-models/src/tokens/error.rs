//! What can be wrong with tokens.

/// What can be wrong with tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The tokenizer cannot be built, or fails on a text.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What it says.
        reason: String,
    },
    /// One of a tokenizer's files cannot be read.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files name a tokenizer class whose rules are not implemented.
    #[error(
        "tokenizer class `{class}` is not supported, so its token ids are unknown: expected one of \
         {expected}. If tokenizer.json alone determines the ids, write \
         \"tokenizer_class\": \"PreTrainedTokenizerFast\" into tokenizer_config.json"
    )]
    UnknownClass {
        /// The class.
        class: String,
        /// The classes that are supported.
        expected: String,
    },
    /// Files from which a tokenizer of this class cannot be built.
    #[error("cannot build a tokenizer of class `{class}` from {found}: {reason}")]
    CannotConvert {
        /// The files.
        found: String,
        /// The tokenizer class.
        class: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The tokenizer has no chat template, or none of the requested name.
    #[error(
        "the tokenizer has no chat template{}: expected `chat_template` in tokenizer_config.json, \
         or chat_template.jinja",
        named(name)
    )]
    NoChatTemplate {
        /// The requested name, if any.
        name: Option<String>,
        /// The names of the available templates.
        available: Vec<String>,
    },
    /// A chat template fails, or rejects these messages.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// What it says.
        reason: String,
    },
    /// Invalid messages, tools or variables of a chat.
    #[error("{what}: {reason}")]
    ChatInput {
        /// Which of them.
        what: String,
        /// What is wrong.
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
    #[error("expected an example index below {batch}, found {found}")]
    NoSuchExample {
        /// Its index.
        found: usize,
        /// Number of examples.
        batch: usize,
    },
    /// A word that does not occur in a prompt.
    #[error("`{word}` does not occur in `{prompt}`")]
    WordNotFound {
        /// The word.
        word: String,
        /// The prompt.
        prompt: String,
    },
    /// A word that occurs in a prompt only as part of longer words.
    #[error(
        "`{word}` occurs in `{prompt}` only as part of `{within}`: name that word, or give the \
         position instead"
    )]
    WordInsideWord {
        /// The word.
        word: String,
        /// The prompt.
        prompt: String,
        /// The first longer word that contains it.
        within: String,
    },
    /// A word that occurs in a prompt more than once.
    #[error("`{word}` occurs {count} times in `{prompt}`: give the position instead")]
    WordAmbiguous {
        /// The word.
        word: String,
        /// The prompt.
        prompt: String,
        /// How often it occurs.
        count: usize,
    },
    /// A text that is not exactly one token.
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

fn named(name: &Option<String>) -> String {
    name.as_ref()
        .map_or_else(String::new, |name| format!(" named `{name}`"))
}
