//! LLaMA's gated MLP.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::LlamaConfig;
use crate::nn::{Activation, ParamInit, Projection};
use crate::site::{Component, Site};
use crate::tap::Tap;

/// `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct LlamaMlp<B: Backend> {
    /// Gate, `[d_model, d_mlp]`.
    pub gate_proj: Projection<B>,
    /// What the gate multiplies, `[d_model, d_mlp]`.
    pub up_proj: Projection<B>,
    /// Back into the residual stream, `[d_mlp, d_model]`.
    pub down_proj: Projection<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> LlamaMlp<B> {
    pub(super) fn new(config: &LlamaConfig, init: &mut ParamInit<'_, B>) -> Self {
        let (d_model, d_mlp, bias) = (config.dims.d_model, config.dims.d_mlp, config.mlp_bias);
        Self {
            gate_proj: init.linear(d_model, d_mlp, bias),
            up_proj: init.linear(d_model, d_mlp, bias),
            down_proj: init.linear(d_mlp, d_model, bias),
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
        let gate = self.activation.forward(self.gate_proj.forward(x.clone())); // [batch, pos, d_mlp]
        let gate = tap.stream(Site::Block(layer, Component::MlpActivation), gate);
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}
