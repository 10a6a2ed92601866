//! What a model family has to say about its Hugging Face checkpoints.

use burn::tensor::{DType, backend::Backend};
use serde_json::Value;

use super::{ConfigError, Fields};
use crate::model::AlignableTransformer;
use crate::nn::Weight;

/// How a model family is stored in the Hugging Face layout.
///
/// With it, [`FromPretrained`](super::FromPretrained) and [`SavePretrained`](super::SavePretrained)
/// are one line each, [`load_family`](super::load_family) and [`save_family`](super::save_family):
/// loading is then as strict as that of the families of this crate.
pub trait Family<B: Backend>: AlignableTransformer<B> {
    /// The family's configuration.
    type Config: PartialEq;

    /// Reads `config.json`. Keys that are not asked for are refused, if they may change what the
    /// model computes.
    ///
    /// # Errors
    /// If a value is missing, wrong or not supported.
    fn read_config(fields: &mut Fields) -> Result<Self::Config, ConfigError>;

    /// Writes `config.json`.
    fn write_config(config: &Self::Config) -> Value;

    /// The model of these sizes, with parameters of this dtype. Those that are initialized lazily, as
    /// by Burn's modules, cost nothing: the weights take their place.
    fn skeleton(config: &Self::Config, dtype: DType, device: &B::Device) -> Self;

    /// Gives the model an unembedding of its own, where a checkpoint stores one that differs from the
    /// embedding it should be tied to; `false` where the family can't, and the checkpoint is refused.
    fn untie_head(config: &mut Self::Config) -> bool {
        let _tied = config;
        false
    }

    /// How the weights are stored.
    fn layout(config: &Self::Config) -> WeightLayout;

    /// The weights that may stay quantised, by the paths of their parameters in the module. Default:
    /// none; what is stored quantised becomes a tensor then.
    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        Vec::new()
    }
}

/// How a family's tensors are named and laid out in a checkpoint.
///
/// Without the prefix, tensors have the names of the module's parameters.
#[derive(Clone, Copy, Debug)]
pub struct WeightLayout {
    /// What stands before the names of all parameters but the head's; a checkpoint may lack it.
    pub prefix: &'static str,
    /// Which matrices are stored transposed, `[d_output, d_input]`.
    pub is_transposed: fn(&str) -> bool,
    /// Which tensors are not parameters: masks and tables that old versions stored.
    pub is_ignored: fn(&str) -> bool,
    /// The embedding that the head is tied to, so that a stored copy is not needed; `None` where the head
    /// is not tied.
    pub tied_head: Option<&'static str>,
}

impl WeightLayout {
    /// The unembedding, which stands outside the prefixed part.
    pub(super) const HEAD: &'static str = "lm_head.weight";

    /// Whether a tensor without a parameter may be there.
    pub(super) fn may_ignore(&self, path: &str) -> bool {
        (self.is_ignored)(path) || (self.tied_head.is_some() && path == Self::HEAD)
    }

    /// The checkpoint's name of the parameter at `path` in the module.
    pub(super) fn name(&self, path: &str) -> String {
        if path == Self::HEAD {
            path.to_owned()
        } else {
            format!("{}{path}", self.prefix)
        }
    }
}
