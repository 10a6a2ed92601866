//! The interface between a model and the engine.

use std::fmt;

use burn::module::Module;
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::dims::{ModelDims, SiteDims};
use crate::halves::BlockHalves;
use crate::site::Site;
use crate::suffixes::RunsSuffixes;
use crate::tap::{NoTap, Tap};

/// What a model reads.
#[derive(Clone, Debug)]
pub enum ModelInput<B: Backend> {
    /// Token ids, `[batch, pos]`.
    Tokens(Tensor<B, 2, Int>),
    /// Vectors, `[batch, pos, feature]`: the inputs of a model that is not a language model, or the
    /// token embeddings of one.
    Features(Tensor<B, 3>),
}

impl<B: Backend> ModelInput<B> {
    /// Batch and position sizes.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Tokens(tokens) => tokens.dims(),
            Self::Features(features) => {
                let [batch, pos, _feature] = features.dims();
                [batch, pos]
            }
        }
    }

    /// Where the input lives.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Tokens(tokens) => tokens.device(),
            Self::Features(features) => features.device(),
        }
    }
}

/// Which inputs a model reads; see [`ModelInput`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputKinds {
    /// Whether it reads token ids.
    pub tokens: bool,
    /// The width of the vectors that it reads; `None` where it reads none.
    pub features: Option<usize>,
}

impl InputKinds {
    /// Vectors of this width, and no token ids.
    pub fn features(width: usize) -> Self {
        Self {
            tokens: false,
            features: Some(width),
        }
    }
}

impl fmt::Display for InputKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tokens, self.features) {
            (true, None) => write!(f, "token ids"),
            (true, Some(width)) => write!(f, "token ids, or vectors of {width} features"),
            (false, Some(width)) => write!(f, "vectors of {width} features"),
            (false, None) => write!(f, "no input at all"),
        }
    }
}

/// A model whose stages the engine drives one by one.
///
/// The model does not run from end to end by itself. The engine owns the loop, so it can start from
/// stored residuals, stop early, and change the batch between layers:
///
/// ```text
/// begin → embed → block(0) → … → block(layers - 1) → final_norm → unembed
/// ```
///
/// Each stage hands its named activations to the tap, see [`Tap`].
pub trait AlignableTransformer<B: Backend>: Module<B> {
    /// What the blocks of one pass share, computed once: masks, rotary tables.
    type Pass: Clone;

    /// The model's sizes.
    fn dims(&self) -> &ModelDims;

    /// Where the model's parameters are.
    fn device(&self) -> B::Device;

    /// Which inputs the model reads; the engine passes no others. Default: token ids, and vectors
    /// as wide as the residual stream.
    fn input_kinds(&self) -> InputKinds {
        InputKinds {
            tokens: true,
            features: Some(self.dims().d_model),
        }
    }

    /// Whether the model's layers are the time steps of a recurrent network, so that layer `t`
    /// computes position `t`.
    fn layers_are_steps(&self) -> bool {
        false
    }

    /// Whether what a block returns is the activation at
    /// [`Component::BlockOutput`](crate::Component::BlockOutput), so that it can also be read and
    /// changed between blocks. `false` if a block returns more than that.
    fn block_output_is_stream(&self) -> bool {
        true
    }

    /// How blocks run on suffixes of rows, if they can. Default: they can't.
    fn suffixes(&self) -> Option<&dyn RunsSuffixes<B, Self::Pass>> {
        None
    }

    /// The shape of the activation at `site`; `None` where the model has no such site.
    fn site(&self, site: Site) -> Option<SiteDims> {
        self.dims().site(site)
    }

    /// Prepares a pass over sequences of `pos` positions.
    fn begin(&self, pos: usize, device: &B::Device) -> Self::Pass;

    /// Bytes of what the blocks of such a pass share, if they are significant: masks, which have an
    /// entry for each pair of positions. They are part of a run's memory estimate. Default: none.
    fn pass_bytes(&self, pos: usize) -> u64 {
        let _none = pos;
        0
    }

    /// The residual stream that enters the first block, `[batch, pos, d_model]`.
    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// The halves of the blocks, if blocks have halves; [`block`](Self::block) is then
    /// [`BlockHalves::whole_block`].
    fn halves(&self) -> Option<&dyn BlockHalves<B, Self::Pass>> {
        None
    }

    /// Runs one block.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn block(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &Self::Pass,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3>;

    /// Normalises the residual stream that leaves the last block.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    fn final_norm(&self, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3>;

    /// Turns normalised residuals into logits; any selection of positions may be given.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_model]`
    /// - output: `[batch, pos, vocab]`
    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3>;

    /// What one head adds to the residual stream, from its mixed values
    /// ([`Component::AttentionValueOutput`](crate::Component::AttentionValueOutput)): their product
    /// with the head's rows of the output projection. The sum over heads, plus the projection's
    /// bias if it has one, is the output of the attention. `None` in a model without attention
    /// heads.
    ///
    /// # Shapes
    /// - mixed: `[batch, pos, d_head]`
    /// - output: `[batch, pos, d_model]`
    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let _without = (layer, head, mixed);
        None
    }

    /// What one head mixes, before the output projection, when its queries, keys and values read
    /// these residual streams at the block's input. If all three are the same, this is the head's
    /// part of [`Component::AttentionValueOutput`](crate::Component::AttentionValueOutput). `None`
    /// in a model without attention heads.
    ///
    /// # Shapes
    /// - streams, in the order queries, keys, values: `[batch, pos, d_model]`
    /// - output: `[batch, pos, d_head]`
    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &Self::Pass,
    ) -> Option<Tensor<B, 3>> {
        let _without = (layer, head, streams, pass);
        None
    }

    /// The plain forward pass: logits `[batch, pos, vocab]`.
    fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_tapped(input, &mut NoTap)
    }

    /// The forward pass under a tap: logits `[batch, pos, vocab]`.
    fn forward_tapped(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let [_batch, pos] = input.dims();
        let pass = self.begin(pos, &input.device());
        let mut x = self.embed(input, tap);
        for layer in 0..self.dims().layers {
            x = self.block(layer, x, &pass, tap);
        }
        let x = self.final_norm(x, tap);
        self.unembed(x)
    }
}
