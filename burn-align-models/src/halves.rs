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
/// Between the halves the caller holds the residual stream, so rows can be shared per half, and
/// positions that are no longer needed can be left out of the second one.
pub trait BlockHalves<B: Backend, Pass> {
    /// What attention adds, with a tap at each activation from
    /// [`AttentionInput`](Component::AttentionInput) to
    /// [`AttentionValueOutput`](Component::AttentionValueOutput).
    ///
    /// If a pass has [`Queries`](crate::Queries), only their tokens are computed; queries and mixed
    /// values are then those of these tokens.
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

    /// What the MLP adds, position by position, with a tap at [`MlpInput`](Component::MlpInput) and
    /// [`MlpActivation`](Component::MlpActivation).
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn mlp(&self, layer: usize, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// The whole block, with taps at the activations between the halves as well.
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
