//! How activations leave a model, and how changed ones come back.

use burn::tensor::{Tensor, backend::Backend};

use crate::site::{Component, Site};

/// Sees, and may replace, the activations of a running model.
///
/// A model passes the activation of every site for which [`wants`](Self::wants) is `true` to
/// [`visit`](Self::visit), and continues with what that returns. Other sites cost nothing, and a
/// model may use fused attention whenever scores and weights are not wanted.
pub trait Tap<B: Backend> {
    /// Whether to visit the activation at `site`.
    fn wants(&self, site: Site) -> bool;

    /// Takes the activation at `site` and returns the one to continue with, of the same shape.
    ///
    /// # Shapes
    /// - activation: `[batch, head, pos, width]`, with one head where the site has no heads
    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4>;
}

/// A tap that wants nothing: the plain forward pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTap;

impl<B: Backend> Tap<B> for NoTap {
    fn wants(&self, _site: Site) -> bool {
        false
    }

    fn visit(&mut self, _site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        activation
    }
}

/// What a model calls at each named activation: one line, at no cost if it is not tapped.
impl<B: Backend> dyn Tap<B> + '_ {
    /// Passes an activation without heads, `[batch, pos, width]`.
    pub fn stream(&mut self, site: Site, x: Tensor<B, 3>) -> Tensor<B, 3> {
        if !self.wants(site) {
            return x;
        }
        let [batch, pos, width] = x.dims();
        self.visit(site, x.reshape([batch, 1, pos, width]))
            .reshape([batch, pos, width])
    }

    /// Passes an activation with heads, `[batch, head, pos, width]`.
    pub fn heads(&mut self, site: Site, x: Tensor<B, 4>) -> Tensor<B, 4> {
        if self.wants(site) {
            self.visit(site, x)
        } else {
            x
        }
    }

    /// Whether attention scores or weights of this layer are wanted.
    pub fn wants_attention_pattern(&self, layer: usize) -> bool {
        self.wants(Site::Block(layer, Component::AttentionScores))
            || self.wants(Site::Block(layer, Component::AttentionWeights))
    }
}
