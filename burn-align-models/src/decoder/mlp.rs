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
        let hidden = match (&self.gate, &self.up, &self.gate_up) {
            (Some(gate), Some(up), _) => {
                let [gate, up] = Projection::forward_each([gate, up], x); // [batch, pos, d_mlp]
                self.gated(layer, gate, up, cx)
            }
            (None, Some(up), _) => self.activated(layer, up.forward(x), cx),
            (_, _, Some(both)) => {
                let [_d_model, width] = both.dims();
                let gate = both.forward_part(0..width / 2, x.clone());
                let up = both.forward_part(width / 2..width, x);
                self.gated(layer, gate, up, cx)
            }
            (_, None, None) => unreachable!("an MLP has an up projection"),
        };
        self.down.forward(hidden)
    }

    /// The hidden layer after its activation, `[batch, pos, d_mlp]`.
    fn activated(&self, layer: usize, x: Tensor<B, 3>, cx: &mut Cx<'_, B>) -> Tensor<B, 3> {
        let hidden = self.activation.forward(x);
        cx.stream(Site::Block(layer, Component::MlpActivation), hidden)
    }

    /// The activated gate, times what it lets through, `[batch, pos, d_mlp]`; in one go if nobody
    /// wants to see the former.
    fn gated(
        &self,
        layer: usize,
        gate: Tensor<B, 3>,
        up: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        match cx.wants(Site::Block(layer, Component::MlpActivation)) {
            true => self.activated(layer, gate, cx) * up,
            false => self.activation.gated(gate, up),
        }
    }
}
