//! What loading a model ignored or decided, for the user to know.

use std::fmt;

/// Something about a checkpoint that loading ignored or decided, and that the user should know.
///
/// A note is never about a doubtful case: anything that might make the model compute something
/// other than its author intended is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadNote {
    /// An unknown key of `config.json` whose name does not suggest an effect on the computation.
    UnknownConfigKey {
        /// The key.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// A key that has no effect because of another one.
    UnusedConfigKey {
        /// The key.
        key: String,
        /// Why it has no effect.
        reason: String,
    },
    /// The configuration ties the unembedding to the embedding, but the checkpoint stores a
    /// different one, which is used.
    HeadNotTied {
        /// The stored tensor.
        tensor: String,
    },
    /// Tensors of heads other than the language-modelling one, which are not loaded.
    OtherHeads {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Tensors in files of the checkpoint that its index does not name, or maps to another file.
    NotInIndex {
        /// Their names.
        tensors: Vec<String>,
    },
    /// Text is not tokenized exactly as the folder describes.
    Tokenizer {
        /// What differs.
        what: String,
    },
}

impl fmt::Display for LoadNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownConfigKey { key, value } => {
                write!(f, "config.json: unknown key `{key}` = {value} was ignored")
            }
            Self::UnusedConfigKey { key, reason } => {
                write!(f, "config.json: `{key}` has no effect: {reason}")
            }
            Self::HeadNotTied { tensor } => write!(
                f,
                "config.json ties the unembedding to the embedding, but the checkpoint stores a \
                 different `{tensor}`: the stored one is used"
            ),
            Self::OtherHeads { tensors } => {
                write!(
                    f,
                    "tensors of other heads were not loaded: {}",
                    listed(tensors)
                )
            }
            Self::NotInIndex { tensors } => write!(
                f,
                "tensors that the checkpoint's index does not map to their file were not loaded: \
                 {}",
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
