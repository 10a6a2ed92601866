use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Gpt2Attention, Gpt2Config, Gpt2Mlp};
use crate::nn::{CausalPass, LayerNorm, ParamInit};
use crate::site::{Component, Site};
use crate::tap::Tap;

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
        let normed = tap.stream(
            site(Component::AttentionInput),
            self.ln_1.forward(x.clone()),
        );
        let attention = self.attn.forward(layer, normed, pass, tap);
        let attention = tap.stream(site(Component::AttentionOutput), attention);
        let x = tap.stream(site(Component::ResidualMid), x + attention);

        let normed = tap.stream(site(Component::MlpInput), self.ln_2.forward(x.clone()));
        let mlp = self.mlp.forward(layer, normed, tap);
        let mlp = tap.stream(site(Component::MlpOutput), mlp);
        tap.stream(site(Component::BlockOutput), x + mlp)
    }
}
