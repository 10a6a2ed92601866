//! GPT-2's MLP: two projections with an activation function in between.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::Gpt2Config;
use super::attention::residual_scale;
use crate::nn::{Activation, ParamInit, Projection};
use crate::site::{Component, Site};
use crate::tap::Tap;

/// `c_proj(activation(c_fc(x)))`.
#[derive(Module, Debug)]
pub struct Gpt2Mlp<B: Backend> {
    /// Into the hidden layer, `[d_model, d_mlp]`.
    pub c_fc: Projection<B>,
    /// Back into the residual stream, `[d_mlp, d_model]`.
    pub c_proj: Projection<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> Gpt2Mlp<B> {
    pub(super) fn new(config: &Gpt2Config, init: &mut ParamInit<'_, B>) -> Self {
        let (d_model, d_mlp) = (config.n_embd, config.dims().d_mlp);
        Self {
            c_fc: init.linear(d_model, d_mlp, true),
            c_proj: init.scaled_linear(d_mlp, d_model, true, residual_scale(config)),
            activation: config.activation,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub(super) fn forward(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let hidden = self.activation.forward(self.c_fc.forward(x)); // [batch, pos, d_mlp]
        let hidden = tap.stream(Site::Block(layer, Component::MlpActivation), hidden);
        self.c_proj.forward(hidden)
    }
}
