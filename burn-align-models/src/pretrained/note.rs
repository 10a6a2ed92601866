//! What loading a model passed over, for whoever runs it to know.

use std::fmt;

/// Something about a checkpoint that loading passed over or decided, and that its user should know.
///
/// A note is never about a doubt: what might make the model compute something else than its author meant
/// is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadNote {
    /// A key of `config.json` that is not known, and does not sound as if it changed the computation.
    UnknownConfigKey {
        /// The key.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// A key that has no meaning beside another one.
    UnusedConfigKey {
        /// The key.
        key: String,
        /// Why it has none.
        reason: String,
    },
    /// The configuration ties the unembedding to the embedding, but the checkpoint stores another one,
    /// which is used.
    HeadNotTied {
        /// The stored tensor.
        tensor: String,
    },
    /// Tensors of another head than the language-modelling one, which are not loaded.
    OtherHeads {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Tensors in files of the checkpoint that its index does not name, or looks for elsewhere.
    NotInIndex {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Text is not turned into tokens as the folder says in every respect.
    Tokenizer {
        /// In what.
        what: String,
    },
}

impl fmt::Display for LoadNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownConfigKey { key, value } => {
                write!(
                    f,
                    "config.json: unknown key `{key}` = {value} was passed over"
                )
            }
            Self::UnusedConfigKey { key, reason } => {
                write!(f, "config.json: `{key}` has no effect: {reason}")
            }
            Self::HeadNotTied { tensor } => write!(
                f,
                "config.json ties the unembedding to the embedding, but the checkpoint stores \
                 another `{tensor}`: the stored one is used"
            ),
            Self::OtherHeads { tensors } => {
                write!(
                    f,
                    "tensors of another head were not loaded: {}",
                    listed(tensors)
                )
            }
            Self::NotInIndex { tensors } => write!(
                f,
                "tensors that the index of the checkpoint does not look for in their file were not \
                 loaded: {}",
                listed(tensors)
            ),
            Self::Tokenizer { what } => write!(f, "tokenizer: {what}"),
        }
    }
}

/// The first few names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
