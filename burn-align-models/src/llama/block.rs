use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{LlamaAttention, LlamaConfig, LlamaMlp};
use crate::nn::{CausalPass, ParamInit, RmsNorm};
use crate::site::{Component, Site};
use crate::tap::Tap;

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

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub(super) fn forward(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);

        let x = tap.stream(site(Component::BlockInput), x);
        let normed = self.input_layernorm.forward(x.clone());
        let normed = tap.stream(site(Component::AttentionInput), normed);
        let attention = self.self_attn.forward(layer, normed, pass, tap);
        let attention = tap.stream(site(Component::AttentionOutput), attention);
        let x = tap.stream(site(Component::ResidualMid), x + attention);

        let normed = self.post_attention_layernorm.forward(x.clone());
        let normed = tap.stream(site(Component::MlpInput), normed);
        let mlp = self.mlp.forward(layer, normed, tap);
        let mlp = tap.stream(site(Component::MlpOutput), mlp);
        tap.stream(site(Component::BlockOutput), x + mlp)
    }
}
