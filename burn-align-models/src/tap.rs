//! How activations leave a model, and how changed ones enter it.

use burn::tensor::{Tensor, backend::Backend};

use crate::site::{Component, Site};

/// Sees, and may replace, the activations of a running model.
///
/// A model hands over the activation of every site for which [`wants`](Self::wants) says `true`,
/// and goes on with what [`visit`](Self::visit) returns. A site that nobody wants costs nothing,
/// and a model may use fused attention whenever scores and weights are not wanted.
pub trait Tap<B: Backend> {
    /// Whether the activation at `site` is to be handed over.
    fn wants(&self, site: Site) -> bool;

    /// Takes the activation at `site` and returns the one to go on with, of the same shape.
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

/// What a model's code says at each named activation: one line, no cost where nobody taps.
impl<B: Backend> dyn Tap<B> + '_ {
    /// Hands over an activation without heads, `[batch, pos, width]`.
    pub fn stream(&mut self, site: Site, x: Tensor<B, 3>) -> Tensor<B, 3> {
        if !self.wants(site) {
            return x;
        }
        let [batch, pos, width] = x.dims();
        self.visit(site, x.reshape([batch, 1, pos, width]))
            .reshape([batch, pos, width])
    }

    /// Hands over an activation with heads, `[batch, head, pos, width]`.
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
