//! The interface between a model and the engine.

use std::fmt;

use burn::module::Module;
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::dims::{ModelDims, SiteDims};
use crate::layout::{ModelLayout, Reads, SublayerOutput};
use crate::nn::{Norm, add_to_stream};
use crate::pass::{Cx, Pass};
use crate::site::Site;
use crate::tables::Tables;
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

/// A model whose sublayers the engine drives one by one.
///
/// The model does not run from end to end by itself. It says what it is made of ([`ModelLayout`]),
/// and the engine owns the loop, so it can start from stored residuals, stop early, and change the
/// batch between sublayers:
///
/// ```text
/// embed → sublayer(0, 0) → sublayer(0, 1) → … → final_norm → unembed
/// ```
///
/// The caller adds what a sublayer returns to the residual stream, or replaces the stream by it,
/// and taps the stream. A sublayer taps what is within it, through its [`Cx`].
pub trait AlignableTransformer<B: Backend>: Module<B> {
    /// What the model is made of.
    fn layout(&self) -> &ModelLayout;

    /// Where the model's parameters are.
    fn device(&self) -> B::Device;

    /// The residual stream that enters the first layer, `[batch, pos, width]`. In a pass over
    /// [suffixes](Pass::suffixes), the input is one row of tokens, `[1, token]`, at their
    /// positions. Unless a sublayer needs whole rows, a position must not depend on others here: the
    /// input ends where nothing of a row is needed any more.
    fn embed(&self, input: ModelInput<B>, pass: &Pass<B>) -> Tensor<B, 3>;

    /// Runs one sublayer: what it adds to the residual stream, or the new stream, as the layout
    /// says. Each of its [taps](crate::Sublayer::taps) must be passed to [`Cx::stream`] or
    /// [`Cx::heads`], in this order.
    ///
    /// # Shapes
    /// - x: what the sublayer [reads](Reads), `[batch, pos, width]`
    /// - output: `[batch, pos, width]`; if it is added to the stream, only the tokens with a
    ///   [query](Pass::queries)
    fn sublayer(
        &self,
        layer: usize,
        sublayer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3>;

    /// Normalises the residual stream that leaves the last layer.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, width]`
    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3>;

    /// Turns normalised residuals into logits; any selection of positions may be given.
    ///
    /// # Shapes
    /// - x: `[batch, pos, width]`
    /// - output: `[batch, pos, vocab]`
    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The attention heads one by one, if the model has heads that can be told apart. Default: it
    /// has none.
    fn by_head(&self) -> Option<&dyn ByHead<B>> {
        None
    }

    /// How logits follow from the residual stream, if they do so by a norm and a matrix. Default:
    /// it is not known.
    fn readout(&self) -> Option<&dyn Readout<B>> {
        None
    }

    /// The model's sizes.
    fn dims(&self) -> &ModelDims {
        self.layout().dims()
    }

    /// The shape of the activation at `site`; `None` if the model has no such site.
    fn site(&self, site: Site) -> Option<SiteDims> {
        self.layout().site(site)
    }

    /// The plain forward pass: logits `[batch, pos, vocab]`.
    fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        self.forward_tapped(input, &mut NoTap)
    }

    /// The forward pass under a tap: logits `[batch, pos, vocab]`.
    fn forward_tapped(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let [_batch, pos] = input.dims();
        let pass = Pass::new(pos, &input.device(), &Tables::new());
        let x = self.embed(input, &pass);
        let mut cx = Cx::new(tap, &pass);
        let is_activation = self.layout().stream_is_activation();
        let mut x = match is_activation {
            true => cx.stream(Site::Embedding, x),
            false => x,
        };
        for layer in 0..self.layout().layers().len() {
            x = self.layer(layer, x, &mut cx);
        }
        let x = self.final_norm(x);
        self.unembed(match is_activation {
            true => cx.stream(Site::FinalNorm, x),
            false => x,
        })
    }

    /// Runs a layer.
    ///
    /// # Shapes
    /// - x, output: the residual stream, `[batch, pos, width]`
    fn layer(&self, layer: usize, x: Tensor<B, 3>, cx: &mut Cx<'_, B>) -> Tensor<B, 3> {
        let x = match self.layout().layers()[layer].entry() {
            Some(component) => cx.stream(Site::Block(layer, component), x),
            None => x,
        };
        self.sublayers_from(layer, 0, x, cx)
    }

    /// Runs the sublayers of a layer from one on that comes after the layer's
    /// [entry](crate::LayerLayout::entry). No sublayer from the second on may read the layer's
    /// input, unless the first is this one.
    ///
    /// # Shapes
    /// - x, output: the residual stream, `[batch, pos, width]`
    fn sublayers_from(
        &self,
        layer: usize,
        first: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let input = x.clone();
        let mut x = x;
        let sublayers = self.layout().layers()[layer].sublayers();
        for (index, sublayer) in sublayers.iter().enumerate().skip(first) {
            let read = match sublayer.reads() {
                Reads::Stream => x.clone(),
                Reads::LayerInput => input.clone(),
            };
            let output = self.sublayer(layer, index, read, cx);
            x = match sublayer.output() {
                SublayerOutput::Adds(component) => {
                    add_to_stream(x, cx.stream(Site::Block(layer, component), output))
                }
                SublayerOutput::Replaces => output,
            };
            if let Some(component) = sublayer.exit() {
                x = cx.stream(Site::Block(layer, component), x);
            }
        }
        x
    }
}

/// What single attention heads compute, and the norms through which sublayers read the residual
/// stream: what path patching and the attribution of edges need.
pub trait ByHead<B: Backend> {
    /// What one head adds to the output of the attention
    /// ([`Component::AttentionOutput`](crate::Component::AttentionOutput)), from its mixed values
    /// ([`Component::AttentionValueOutput`](crate::Component::AttentionValueOutput)): their product
    /// with the head's rows of the output projection. The sum over heads, plus the projection's
    /// bias if it has one, is that output. If a norm follows, no head adds something of its own to
    /// the residual stream.
    ///
    /// # Shapes
    /// - mixed: `[batch, pos, d_head]`
    /// - output: `[batch, pos, d_model]`
    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The norm through which the attention of a layer reads the residual stream, if there is one.
    fn attention_norm(&self, layer: usize) -> Option<&Norm<B>>;

    /// The norm through which the MLP of a layer reads the residual stream, if there is one. In a
    /// parallel block it may be that of the attention.
    fn mlp_norm(&self, layer: usize) -> Option<&Norm<B>>;

    /// What one head mixes, before the output projection, from what its queries, keys and values
    /// are computed from: residual streams after [`attention_norm`](Self::attention_norm).
    ///
    /// # Shapes
    /// - inputs, in the order queries, keys, values: `[batch, pos, d_model]`
    /// - output: `[batch, pos, d_head]`
    fn head_mixed_normed(
        &self,
        layer: usize,
        head: usize,
        inputs: [Tensor<B, 3>; 3],
        pass: &Pass<B>,
    ) -> Tensor<B, 3>;

    /// What one head mixes, before the output projection, when its queries, keys and values read
    /// these residual streams at the layer's input. If all three are the same, this is the head's
    /// part of [`Component::AttentionValueOutput`](crate::Component::AttentionValueOutput).
    ///
    /// # Shapes
    /// - streams, in the order queries, keys, values: `[batch, pos, d_model]`
    /// - output: `[batch, pos, d_head]`
    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &Pass<B>,
    ) -> Tensor<B, 3> {
        let inputs = streams.map(|x| match self.attention_norm(layer) {
            None => x,
            Some(norm) => norm.forward(x),
        });
        self.head_mixed_normed(layer, head, inputs, pass)
    }
}

/// The way from what sublayers compute to the logits, which direct logit attribution takes apart.
pub trait Readout<B: Backend> {
    /// The norm before the unembedding, which [`AlignableTransformer::final_norm`] applies.
    fn last_norm(&self) -> &Norm<B>;

    /// The norm that a sublayer's output goes through before it is added to the residual stream, if
    /// there is one.
    fn post_norm(&self, layer: usize, sublayer: usize) -> Option<&Norm<B>>;

    /// The columns of the unembedding for these tokens, and their biases. The product of a column
    /// with a normalised residual, plus the bias, is the logit before any [cap](Self::logit_cap).
    ///
    /// # Shapes
    /// - output: `[token, d_model]`, `[token]`
    fn unembedding(&self, tokens: &[u32]) -> (Tensor<B, 2>, Option<Tensor<B, 1>>);

    /// Logits are limited to `±cap` as `cap · tanh(logit / cap)`.
    fn logit_cap(&self) -> Option<f64>;
}
