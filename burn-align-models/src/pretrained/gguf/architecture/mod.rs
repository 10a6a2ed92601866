//! Which model a GGUF file holds: its metadata as a Hugging Face `config.json`, and the names of
//! its tensors as those of a Hugging Face checkpoint.
//!
//! From there on, loading is the same as for any other checkpoint. Each family adds a file with two
//! tables: how the metadata map to `config.json`, and how the tensors map to Hugging Face names.

mod gated;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod olmo2;
mod phi;
mod phi3;
mod qwen;
mod rotary;
#[cfg(test)]
mod tests;

use serde_json::Value;

use super::{Gguf, GgufError};

/// How a GGUF architecture maps to the Hugging Face format.
pub(in crate::pretrained) struct Architecture {
    /// The name in `general.architecture`.
    name: &'static str,
    /// The configuration, as a `config.json`.
    config: fn(&Reader<'_>) -> Result<Value, GgufError>,
    /// What a tensor corresponds to in a Hugging Face checkpoint; `None` if it is unknown.
    tensor: fn(&Reader<'_>, &str) -> Result<Option<Role>, GgufError>,
}

const ALL: [&Architecture; 10] = [
    &llama::LLAMA,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gpt2::GPT2,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt_neox::GPT_NEOX,
    &phi::PHI2,
    &phi3::PHI3,
    &olmo2::OLMO2,
];

/// What a tensor of a GGUF file corresponds to in a Hugging Face checkpoint.
#[derive(Debug, PartialEq)]
pub(in crate::pretrained) enum Role {
    /// One tensor, or several that the file stores as one.
    Tensors(Vec<Target>),
    /// Part of the configuration.
    Configuration,
}

/// A tensor of a Hugging Face checkpoint, and how it follows from the one in the file.
#[derive(Debug, PartialEq)]
pub(in crate::pretrained) struct Target {
    pub(in crate::pretrained) name: String,
    /// Which rows of the file it has, and in which order.
    pub(in crate::pretrained) rows: Rows,
    /// Whether it is stored as `[d_output, d_input]` where Hugging Face has `[d_input, d_output]`.
    pub(in crate::pretrained) transposed: bool,
    /// What is added to every element of the file.
    pub(in crate::pretrained) offset: f32,
}

impl Target {
    /// A tensor that is the same in both, apart from its name.
    pub(in crate::pretrained) fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rows: Rows::AsTheyAre,
            transposed: false,
            offset: 0.0,
        }
    }

    fn with_rows(self, rows: Rows) -> Self {
        Self { rows, ..self }
    }

    fn with_offset(self, offset: f32) -> Self {
        Self { offset, ..self }
    }
}

impl From<Target> for Role {
    fn from(target: Target) -> Self {
        Self::Tensors(vec![target])
    }
}

/// The rows of a weight in the file, compared with those in a Hugging Face checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::pretrained) enum Rows {
    /// As in Hugging Face checkpoints.
    AsTheyAre,
    /// The two features of each rotated pair are adjacent, in each of `heads` heads; Hugging Face
    /// puts the first features of all pairs of a head first.
    Paired { heads: usize },
    /// The queries of all `heads` heads, then all keys, then all values; Hugging Face has queries,
    /// keys and values of one head next to each other.
    ByPart { heads: usize },
    /// The rows from `start` to `end`, out of `all`.
    Range {
        start: usize,
        end: usize,
        all: usize,
    },
}

impl Rows {
    /// What the number of rows in the file must be, if it is not that.
    pub(in crate::pretrained) fn expected(self, rows: usize) -> Option<String> {
        let multiple_of = |heads: usize, parts: usize| {
            rows > 0 && rows.is_multiple_of(heads.saturating_mul(parts))
        };
        match self {
            Self::AsTheyAre => None,
            Self::Paired { heads } => (!multiple_of(heads, 2))
                .then(|| format!("rows for {heads} heads of an even number of features")),
            Self::ByPart { heads } => (!multiple_of(heads, 3))
                .then(|| format!("rows for queries, keys and values of {heads} heads")),
            Self::Range { start, end, all } => {
                (rows != all || start > end || end > all).then(|| format!("{all} rows"))
            }
        }
    }

    /// The row of the file for each row of a Hugging Face checkpoint; `None` if all rows are in the
    /// same order.
    ///
    /// `rows`, the number in the file, must be as [expected](Self::expected).
    pub(in crate::pretrained) fn order(self, rows: usize) -> Option<Vec<usize>> {
        match self {
            Self::AsTheyAre => None,
            Self::Paired { heads } => {
                let d_head = rows / heads;
                let half = d_head / 2;
                let of_head = |head: usize| {
                    (0..2).flat_map(move |part| {
                        (0..half).map(move |pair| head * d_head + 2 * pair + part)
                    })
                };
                Some((0..heads).flat_map(of_head).collect())
            }
            Self::ByPart { heads } => {
                let d_head = rows / (3 * heads);
                let of_head = |head: usize| {
                    (0..3).flat_map(move |part| {
                        (0..d_head).map(move |feature| (part * heads + head) * d_head + feature)
                    })
                };
                Some((0..heads).flat_map(of_head).collect())
            }
            Self::Range { start, end, .. } => Some((start..end).collect()),
        }
    }

    /// How many of the rows of the file there are in a Hugging Face checkpoint.
    pub(in crate::pretrained) fn count(self, rows: usize) -> usize {
        match self {
            Self::AsTheyAre | Self::Paired { .. } | Self::ByPart { .. } => rows,
            Self::Range { start, end, .. } => end - start,
        }
    }
}

impl Architecture {
    /// The architecture of a file.
    ///
    /// # Errors
    /// If the file does not name one, or it is unknown.
    pub(in crate::pretrained) fn of(gguf: &Gguf) -> Result<&'static Self, GgufError> {
        const KEY: &str = "general.architecture";
        let expected = || {
            let names: Vec<&str> = ALL.iter().map(|architecture| architecture.name).collect();
            format!("one of {}", names.join(", "))
        };
        let name = gguf.metadata().text(KEY)?;
        let known = ALL
            .into_iter()
            .find(|architecture| Some(architecture.name) == name);
        known.ok_or_else(|| gguf.metadata().wrong(KEY, expected()))
    }

    /// The configuration, as a `config.json`.
    ///
    /// # Errors
    /// If something is missing or wrong, or the Hugging Face class cannot express the model.
    pub(in crate::pretrained) fn config(&self, gguf: &Gguf) -> Result<Value, GgufError> {
        (self.config)(&self.reader(gguf))
    }

    /// What a tensor corresponds to in a Hugging Face checkpoint; `None` if it is unknown.
    ///
    /// # Errors
    /// If the metadata needed for it are missing or wrong.
    pub(in crate::pretrained) fn tensor(
        &self,
        gguf: &Gguf,
        name: &str,
    ) -> Result<Option<Role>, GgufError> {
        (self.tensor)(&self.reader(gguf), name)
    }

    fn reader<'a>(&self, gguf: &'a Gguf) -> Reader<'a> {
        Reader {
            gguf,
            prefix: self.name,
        }
    }
}

/// A reader of the metadata of one architecture.
struct Reader<'a> {
    gguf: &'a Gguf,
    /// The prefix of its keys.
    prefix: &'static str,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> GgufError {
        self.gguf.metadata().wrong(&self.key(key), expected)
    }

    fn optional_size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.gguf.metadata().unsigned(&self.key(key))
    }

    fn size(&self, key: &str) -> Result<u64, GgufError> {
        let size = self.optional_size(key)?.filter(|size| *size > 0);
        size.ok_or_else(|| self.wrong(key, "a size of at least 1"))
    }

    /// A size that some converters write per layer, with the same value for all.
    fn size_of_all_layers(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Ok(Some(sizes)) = self.gguf.metadata().integers(&self.key(key)) else {
            return self.optional_size(key);
        };
        match sizes[..] {
            [first, ..] if first > 0 && sizes.iter().all(|size| *size == first) => {
                Ok(Some(first.unsigned_abs()))
            }
            _ => Err(self.wrong(key, "the same size for all layers")),
        }
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.gguf.metadata().float(&self.key(key))
    }

    fn float(&self, key: &str) -> Result<f64, GgufError> {
        let value = self.optional_float(key)?;
        value.ok_or_else(|| self.wrong(key, "a number"))
    }

    fn optional_text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.gguf.metadata().text(&self.key(key))
    }

    fn optional_flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.gguf.metadata().flag(&self.key(key))
    }

    fn flag(&self, key: &str) -> Result<bool, GgufError> {
        let flag = self.optional_flag(key)?;
        flag.ok_or_else(|| self.wrong(key, "a bool"))
    }

    /// Refuses a value of a key whose absence means `expected`.
    fn only_size(&self, key: &str, allowed: u64, expected: &str) -> Result<(), GgufError> {
        match self.optional_size(key)? {
            Some(size) if size != allowed => Err(self.wrong(key, expected)),
            _ => Ok(()),
        }
    }

    /// The number of layers: no more than there are tensors.
    fn layers(&self) -> Result<usize, GgufError> {
        const KEY: &str = "block_count";
        let tensors = self.gguf.tensors().len();
        let layers = usize::try_from(self.size(KEY)?).ok();
        let layers = layers.filter(|layers| *layers <= tensors);
        layers.ok_or_else(|| self.wrong(KEY, format!("at most {tensors}, the number of tensors")))
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor(tensor).is_some()
    }

    /// The number of rows of the token embedding.
    fn vocab(&self) -> Result<usize, GgufError> {
        const EMBEDDING: &str = "token_embd.weight";
        let shape = self.gguf.tensor(EMBEDDING).map(|tensor| &tensor.shape[..]);
        match shape {
            Some([vocab, _d_model]) => Ok(*vocab),
            found => Err(GgufError::WrongTensor {
                tensor: EMBEDDING.to_owned(),
                expected: "a matrix, [vocabulary, width of the model]".to_owned(),
                found: found.map_or("none".to_owned(), |shape| format!("{shape:?}")),
            }),
        }
    }
}

/// `blk.7.attn_q.weight` → layer 7, `attn_q.weight`.
fn of_block(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// `blk.7.attn_q.weight` → layer 7, `attn_q`, `weight`.
fn block_parts(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = of_block(name)?;
    let (module, kind) = module_and_kind(rest)?;
    Some((layer, module, kind))
}

/// `attn_q.weight` → `attn_q`, `weight`.
fn module_and_kind(name: &str) -> Option<(&str, &str)> {
    let (module, kind) = name.rsplit_once('.')?;
    matches!(kind, "weight" | "bias").then_some((module, kind))
}
