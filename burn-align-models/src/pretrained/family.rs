//! How a model family describes its Hugging Face checkpoints.

use burn::tensor::{DType, backend::Backend};
use serde_json::Value;

use super::{ConfigError, Fields};
use crate::model::AlignableTransformer;
use crate::nn::Weight;

/// How a model family is stored in the Hugging Face layout.
///
/// With this, [`FromPretrained`](super::FromPretrained) and
/// [`SavePretrained`](super::SavePretrained) take one line each,
/// [`load_family`](super::load_family) and [`save_family`](super::save_family), and loading is as
/// strict as for the families of this crate.
pub trait Family<B: Backend>: AlignableTransformer<B> {
    /// The family's configuration.
    type Config: PartialEq;

    /// Reads `config.json`. Keys that it does not read are rejected if they may change what the
    /// model computes.
    ///
    /// # Errors
    /// If a value is missing, wrong or not supported.
    fn read_config(fields: &mut Fields) -> Result<Self::Config, ConfigError>;

    /// Writes `config.json`.
    fn write_config(config: &Self::Config) -> Value;

    /// The model of these sizes, with parameters of this dtype. Lazily initialized parameters, such
    /// as those of Burn's modules, cost nothing: the weights replace them.
    fn skeleton(config: &Self::Config, dtype: DType, device: &B::Device) -> Self;

    /// Unties the unembedding from the embedding, for a checkpoint that stores a different one;
    /// `false` if the family can't, and the checkpoint is rejected.
    fn untie_head(config: &mut Self::Config) -> bool {
        let _tied = config;
        false
    }

    /// How the weights are stored.
    fn layout(config: &Self::Config) -> WeightLayout;

    /// The weights that may stay quantised, by the paths of their parameters in the module.
    /// Default: none; quantised weights are then dequantised.
    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        Vec::new()
    }
}

/// How a family's tensors are named and laid out in a checkpoint.
///
/// Apart from the prefix, tensors are named like the module's parameters.
#[derive(Clone, Copy, Debug)]
pub struct WeightLayout {
    /// Prefix of the names of all parameters but the head's; a checkpoint may lack it.
    pub prefix: &'static str,
    /// Which matrices are stored transposed, `[d_output, d_input]`.
    pub is_transposed: fn(&str) -> bool,
    /// Which tensors are not parameters: masks and tables that old versions stored.
    pub is_ignored: fn(&str) -> bool,
    /// The embedding that the head is tied to, so that a stored copy is not needed; `None` if the
    /// head is not tied.
    pub tied_head: Option<&'static str>,
}

impl WeightLayout {
    /// The unembedding, whose name has no prefix.
    pub(super) const HEAD: &'static str = "lm_head.weight";

    /// Whether a tensor without a parameter may be ignored.
    pub(super) fn may_ignore(&self, path: &str) -> bool {
        (self.is_ignored)(path) || (self.tied_head.is_some() && path == Self::HEAD)
    }

    /// The name in the checkpoint of the parameter at `path` in the module.
    pub(super) fn name(&self, path: &str) -> String {
        if path == Self::HEAD {
            path.to_owned()
        } else {
            format!("{}{path}", self.prefix)
        }
    }
}
