//! A block of GPT-2: norm, attention, norm, MLP, each half added to the residual stream.

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::{Gpt2Attention, Gpt2Config, Gpt2Mlp};
use crate::nn::{LayerNorm, ParamInit};

/// One block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Module, Debug)]
pub struct Gpt2Block<B: Backend> {
    /// Norm before the attention.
    pub ln_1: LayerNorm<B>,
    /// The attention.
    pub attn: Gpt2Attention<B>,
    /// Norm before the MLP.
    pub ln_2: LayerNorm<B>,
    /// The MLP.
    pub mlp: Gpt2Mlp<B>,
}

impl<B: Backend> Gpt2Block<B> {
    pub(super) fn new(config: &Gpt2Config, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let epsilon = config.layer_norm_epsilon;
        Self {
            ln_1: LayerNorm::new(config.n_embd, epsilon, init),
            attn: Gpt2Attention::new(config, layer, init),
            ln_2: LayerNorm::new(config.n_embd, epsilon, init),
            mlp: Gpt2Mlp::new(config, init),
        }
    }
}
