//! A decoder's MLP, plain or gated.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::DecoderConfig;
use crate::nn::{Activation, ParamInit, Projection};
use crate::pass::Cx;
use crate::site::{Component, Site};

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Gate of a gated MLP, `[d_model, d_mlp]`.
    pub gate: Option<Projection<B>>,
    /// Into the hidden layer, or what the gate multiplies, `[d_model, d_mlp]`.
    pub up: Option<Projection<B>>,
    /// Gate and up projection as one matrix, `[d_model, 2 * d_mlp]`.
    pub gate_up: Option<Projection<B>>,
    /// Back into the residual stream, `[d_mlp, d_model]`.
    pub down: Projection<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn new(config: &DecoderConfig, init: &mut ParamInit<'_, B>) -> Self {
        let (d_model, d_mlp) = (config.dims.d_model, config.dims.d_mlp);
        let (bias, fused) = (config.biases.mlp, config.fused_gate_up);
        let gated = config.dims.gated_mlp;
        Self {
            gate: (gated && !fused).then(|| init.linear(d_model, d_mlp, bias)),
            up: (!fused).then(|| init.linear(d_model, d_mlp, bias)),
            gate_up: fused.then(|| init.linear(d_model, 2 * d_mlp, bias)),
            down: init.scaled_linear(d_mlp, d_model, bias, config.residual_scale()),
            activation: config.activation,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub(super) fn forward(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let mut activated = |x| {
            let hidden = self.activation.forward(x); // [batch, pos, d_mlp]
            cx.stream(Site::Block(layer, Component::MlpActivation), hidden)
        };
        let hidden = match (&self.gate, &self.up, &self.gate_up) {
            (Some(gate), Some(up), _) => activated(gate.forward(x.clone())) * up.forward(x),
            (None, Some(up), _) => activated(up.forward(x)),
            (_, _, Some(both)) => {
                let [_d_model, width] = both.dims();
                let gate = both.forward_part(0..width / 2, x.clone());
                activated(gate) * both.forward_part(width / 2..width, x)
            }
            (_, None, None) => unreachable!("an MLP has an up projection"),
        };
        self.down.forward(hidden)
    }
}
