//! A block of LLaMA: RMS norm, attention, RMS norm, MLP, each half added to the residual stream.

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::{LlamaAttention, LlamaConfig, LlamaMlp};
use crate::nn::{ParamInit, RmsNorm};

/// One block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Module, Debug)]
pub struct LlamaBlock<B: Backend> {
    /// Norm before the attention.
    pub input_layernorm: RmsNorm<B>,
    /// The attention.
    pub self_attn: LlamaAttention<B>,
    /// Norm before the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// The MLP.
    pub mlp: LlamaMlp<B>,
}

impl<B: Backend> LlamaBlock<B> {
    pub(super) fn new(config: &LlamaConfig, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let (d_model, epsilon) = (config.dims.d_model, config.rms_norm_eps);
        Self {
            input_layernorm: RmsNorm::new(d_model, epsilon, init),
            self_attn: LlamaAttention::new(config, layer, init),
            post_attention_layernorm: RmsNorm::new(d_model, epsilon, init),
            mlp: LlamaMlp::new(config, init),
        }
    }
}
