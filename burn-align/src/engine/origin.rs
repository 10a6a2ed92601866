//! The model that a run has begun on, so that it does not go on in another.

use std::sync::Arc;

use burn::tensor::{DType, backend::Backend};
use burn_align_models::{AlignableTransformer, ModelLayout};

use super::memory::dtype;

/// What the engine knows of a model: what it is made of, and what it computes in. Copies of a model
/// on other devices or backends have the same origin, and so do models of the same layout with
/// other weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Origin {
    layout: Arc<ModelLayout>,
    dtype: DType,
}

/// Where two models differ: in what, and what each of them has.
pub(super) struct Difference {
    pub(super) what: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
}

impl Origin {
    pub(super) fn of<B: Backend, M: AlignableTransformer<B>>(model: &M) -> Self {
        Self {
            layout: Arc::new(model.layout().clone()),
            dtype: dtype(model),
        }
    }

    /// The first difference of another model from this one, if there is one.
    pub(super) fn difference(&self, other: &Self) -> Option<Difference> {
        if self == other {
            return None;
        }
        let mut facts = self.facts().into_iter().zip(other.facts());
        let named = facts.find(|((_, expected), (_, found))| expected != found);
        Some(match named {
            Some(((what, expected), (_, found))) => Difference {
                what,
                expected,
                found,
            },
            None => Difference {
                what: "layout of its layers",
                expected: "that of the first model".to_owned(),
                found: "another".to_owned(),
            },
        })
    }

    fn facts(&self) -> [(&'static str, String); 9] {
        let dims = self.layout.dims();
        let longest = match dims.max_positions {
            Some(longest) => longest.to_string(),
            None => "no limit".to_owned(),
        };
        [
            ("number of layers", dims.layers.to_string()),
            ("d_model", dims.d_model.to_string()),
            ("number of heads", dims.heads.to_string()),
            ("number of key-value heads", dims.kv_heads.to_string()),
            ("d_head", dims.d_head.to_string()),
            ("d_mlp", dims.d_mlp.to_string()),
            ("number of logits", dims.vocab.to_string()),
            ("longest sequence", longest),
            ("dtype", format!("{:?}", self.dtype)),
        ]
    }
}
