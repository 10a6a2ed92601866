//! Blocks in two halves, attention and MLP.

use burn::tensor::{Tensor, backend::Backend};

use crate::site::{Component, Site};
use crate::tap::Tap;

/// The halves of a model's blocks, each of which reads the residual stream and adds to it:
///
/// ```text
/// x ← x + attention(x)
/// x ← x + mlp(x)
/// ```
///
/// Between the halves the residual stream is in the caller's hands, so rows can be shared by half,
/// and positions that nobody reads any more be left out of the second one.
pub trait BlockHalves<B: Backend, Pass> {
    /// What attention adds, with a tap at each activation from
    /// [`AttentionInput`](Component::AttentionInput) to
    /// [`AttentionValueOutput`](Component::AttentionValueOutput).
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &Pass,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3>;

    /// What the MLP adds, to each position from that position alone, with a tap at
    /// [`MlpInput`](Component::MlpInput) and [`MlpActivation`](Component::MlpActivation).
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn mlp(&self, layer: usize, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// The whole block, tapped at the activations between the halves, too.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn whole_block(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &Pass,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);
        let x = tap.stream(site(Component::BlockInput), x);
        let added = self.attention(layer, x.clone(), pass, tap);
        let x = x + tap.stream(site(Component::AttentionOutput), added);
        let x = tap.stream(site(Component::ResidualMid), x);
        let added = self.mlp(layer, x.clone(), tap);
        let x = x + tap.stream(site(Component::MlpOutput), added);
        tap.stream(site(Component::BlockOutput), x)
    }
}
