//! A block of a decoder: attention and MLP, with their norms.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{DecoderConfig, Mlp, Residual};
use crate::nn::{Norm, ParamInit, SelfAttention};
use crate::pass::Cx;
use crate::site::{Component, Site};

/// One block. Attention and MLP read the residual stream through a norm, and what they add to it
/// may go through another one.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Norm before the attention; also before the MLP, if they share one.
    pub attention_norm: Option<Norm<B>>,
    /// The attention.
    pub attention: SelfAttention<B>,
    /// Norm after the attention.
    pub attention_post_norm: Option<Norm<B>>,
    /// Norm before the MLP.
    pub mlp_norm: Option<Norm<B>>,
    /// The MLP.
    pub mlp: Mlp<B>,
    /// Norm after the MLP.
    pub mlp_post_norm: Option<Norm<B>>,
    shared_norm: bool,
}

impl<B: Backend> Block<B> {
    pub(super) fn new(config: &DecoderConfig, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let shared_norm = config.residual == Residual::Parallel { shared_norm: true };
        let norm = |exists: bool, init: &mut ParamInit<'_, B>| {
            exists.then(|| Norm::new(config.norm, config.dims.d_model, config.norm_epsilon, init))
        };
        let post_norms = config.dims.post_norms;
        Self {
            attention_norm: norm(config.pre_norms, init),
            attention: SelfAttention::new(&config.attention(layer), init),
            attention_post_norm: norm(post_norms, init),
            mlp_norm: norm(config.pre_norms && !shared_norm, init),
            mlp: Mlp::new(config, init),
            mlp_post_norm: norm(post_norms, init),
            shared_norm,
        }
    }

    /// What the attention adds to the residual stream; its component is
    /// [`ModelDims::added_by_attention`](crate::ModelDims::added_by_attention), and is not tapped
    /// here.
    pub(super) fn attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let x = match &self.attention_norm {
            None => x,
            Some(norm) => norm.forward(x),
        };
        let x = cx.stream(Site::Block(layer, Component::AttentionInput), x);
        let output = self.attention.forward(layer, x, cx);
        match &self.attention_post_norm {
            None => output,
            Some(norm) => {
                let site = Site::Block(layer, Component::AttentionOutput);
                norm.forward(cx.stream(site, output))
            }
        }
    }

    /// The norm before the MLP, its own or the one that it shares with the attention.
    pub(super) fn norm_before_mlp(&self) -> Option<&Norm<B>> {
        match self.shared_norm {
            true => self.attention_norm.as_ref(),
            false => self.mlp_norm.as_ref(),
        }
    }

    /// What the MLP adds to the residual stream; its component is
    /// [`ModelDims::added_by_mlp`](crate::ModelDims::added_by_mlp), and is not tapped here.
    pub(super) fn mlp(&self, layer: usize, x: Tensor<B, 3>, cx: &mut Cx<'_, B>) -> Tensor<B, 3> {
        let x = match self.norm_before_mlp() {
            None => x,
            Some(norm) => norm.forward(x),
        };
        let x = cx.stream(Site::Block(layer, Component::MlpInput), x);
        let output = self.mlp.forward(layer, x, cx);
        match &self.mlp_post_norm {
            None => output,
            Some(norm) => {
                let site = Site::Block(layer, Component::MlpOutput);
                norm.forward(cx.stream(site, output))
            }
        }
    }
}
