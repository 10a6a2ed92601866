//! Blocks in two halves, attention and MLP.

use burn::tensor::{Tensor, backend::Backend};

use crate::dims::ModelDims;
use crate::site::{Component, Site};
use crate::tap::Tap;

/// The halves of a model's blocks, each of which reads the residual stream and adds to it:
///
/// ```text
/// x ← x + attention(x)
/// x ← x + mlp(x)
/// ```
///
/// In a [parallel](ModelDims::parallel) block both read the block's input:
///
/// ```text
/// x ← x + attention(x) + mlp(x)
/// ```
///
/// Between the halves the caller holds the residual stream, so rows can be shared per half, and
/// positions that are no longer needed can be left out of the second one.
pub trait BlockHalves<B: Backend, Pass> {
    /// What attention adds, with a tap at each activation from
    /// [`AttentionInput`](Component::AttentionInput) up to, and not including,
    /// [`ModelDims::added_by_attention`].
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

    /// What the MLP adds, position by position, with a tap at each activation from
    /// [`MlpInput`](Component::MlpInput) up to, and not including, [`ModelDims::added_by_mlp`].
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
        dims: &ModelDims,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &Pass,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);
        let input = tap.stream(site(Component::BlockInput), x);
        let added = self.attention(layer, input.clone(), pass, tap);
        let x = input.clone() + tap.stream(site(dims.added_by_attention()), added);
        let (read, x) = match dims.parallel {
            true => (input, x),
            false => {
                let x = tap.stream(site(Component::ResidualMid), x);
                (x.clone(), x)
            }
        };
        let added = self.mlp(layer, read, tap);
        let x = x + tap.stream(site(dims.added_by_mlp()), added);
        tap.stream(site(Component::BlockOutput), x)
    }
}
