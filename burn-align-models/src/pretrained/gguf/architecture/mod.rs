//! Which model a GGUF file holds: its metadata as a Hugging Face `config.json`, and the names of its
//! tensors as those of a Hugging Face checkpoint.
//!
//! From there on, loading is the same as for any other checkpoint. Each family adds a file with two
//! tables: how the metadata map to `config.json`, and how the tensors map to Hugging Face names.

mod gpt2;
mod llama;
mod rotary;

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

const ALL: [&Architecture; 3] = [&llama::LLAMA, &llama::QWEN2, &gpt2::GPT2];

/// What a tensor of a GGUF file corresponds to in a Hugging Face checkpoint.
#[derive(Debug, PartialEq)]
pub(in crate::pretrained) enum Role {
    /// A tensor with this name.
    Tensor {
        name: String,
        /// The order of its rows.
        rows: Rows,
        /// Whether it is stored as `[d_output, d_input]` where Hugging Face has `[d_input, d_output]`.
        transposed: bool,
    },
    /// Part of the configuration.
    Configuration,
}

/// The order of the rows of a weight in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::pretrained) enum Rows {
    /// As in Hugging Face checkpoints.
    AsTheyAre,
    /// The two features of each rotated pair are adjacent, in each of `heads` heads; Hugging Face
    /// puts the first features of all pairs of a head first.
    Paired { heads: usize },
}

impl Rows {
    /// The row of the file for each row of a Hugging Face checkpoint; `None` if the order is the
    /// same.
    ///
    /// `rows` must be a multiple of twice the number of heads.
    pub(in crate::pretrained) fn order(self, rows: usize) -> Option<Vec<usize>> {
        let Self::Paired { heads } = self else {
            return None;
        };
        let d_head = rows / heads;
        let half = d_head / 2;
        let of_head = |head: usize| {
            (0..2).flat_map(move |part| (0..half).map(move |pair| head * d_head + 2 * pair + part))
        };
        Some((0..heads).flat_map(of_head).collect())
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

/// `attn_q.weight` → `attn_q`, `weight`.
fn module_and_kind(name: &str) -> Option<(&str, &str)> {
    let (module, kind) = name.rsplit_once('.')?;
    matches!(kind, "weight" | "bias").then_some((module, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_put_in_halves() {
        // Two heads of four features: pairs (0, 1), (2, 3) of each head.
        let order = Rows::Paired { heads: 2 }.order(8);
        assert_eq!(order, Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        assert_eq!(Rows::AsTheyAre.order(8), None);
    }

    #[test]
    fn names_come_apart() {
        assert_eq!(
            of_block("blk.12.attn_q.weight"),
            Some((12, "attn_q.weight"))
        );
        assert_eq!(of_block("output.weight"), None);
        assert_eq!(module_and_kind("attn_q.bias"), Some(("attn_q", "bias")));
        assert_eq!(module_and_kind("attn_q.scale"), None);
    }
}
