//! A decoder from token ids to logits, with a tap at every named activation.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{Block, DecoderConfig, Positions};
use crate::dims::ModelDims;
use crate::halves::BlockHalves;
use crate::model::{AlignableTransformer, ModelInput};
use crate::nn::{
    CausalPass, LastPass, Norm, ParamInit, PassKey, Projection, RotaryConfig, TokenEmbedding,
    mask_bytes, soft_cap, unembed,
};
use crate::site::Site;
use crate::suffixes::{RunsSuffixes, Suffixes};
use crate::tap::Tap;

/// A decoder-only language model of any [family](super::DecoderFamily).
///
/// ```
/// use burn::tensor::DType;
/// use burn_align_models::{AlignableTransformer, Decoder, DecoderFamily, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// // A folder, a GGUF file, the name of a model on the hub, or one that is part of this crate.
/// let options = LoadOptions::default().with_dtype(DType::BF16);
/// let device = Default::default();
/// let loaded = Decoder::<B>::from_pretrained("bundled:price-tagging", &options, &device)?;
/// assert_eq!(loaded.config.family, DecoderFamily::Llama);
/// assert_eq!(loaded.model.dims().layers, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Token embedding, `[vocab, d_model]`.
    pub embedding: TokenEmbedding<B>,
    /// Position embedding, `[max_positions, d_model]`, in models with learned positions.
    pub positions: Option<Embedding<B>>,
    /// The blocks.
    pub layers: Vec<Block<B>>,
    /// Norm before the unembedding.
    pub final_norm: Norm<B>,
    /// Unembedding, `[d_model, vocab]`; `None` where it is tied to the embedding.
    pub lm_head: Option<Projection<B>>,
    /// Bias of a tied unembedding, `[vocab]`.
    pub head_bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    dims: ModelDims,
    #[module(skip)]
    embedding_scale: Option<f64>,
    #[module(skip)]
    logit_cap: Option<f64>,
    fused_attention: bool,
    /// The rotary embeddings of each kind of layer.
    #[module(skip)]
    rotary: Vec<RotaryConfig>,
    #[module(skip)]
    window: Option<usize>,
    #[module(skip)]
    last_pass: LastPass,
}

impl<B: Backend> Decoder<B> {
    pub(super) fn new(config: &DecoderConfig, init: &mut ParamInit<'_, B>) -> Self {
        let dims = config.dims.clone();
        let (vocab, d_model) = (dims.vocab, dims.d_model);
        Self {
            embedding: init.token_embedding(vocab, d_model),
            positions: match &config.positions {
                Positions::Learned(count) => Some(init.embedding(*count, d_model)),
                Positions::Rotary { .. } => None,
            },
            layers: (0..dims.layers)
                .map(|layer| Block::new(config, layer, init))
                .collect(),
            final_norm: Norm::new(config.norm, d_model, config.norm_epsilon, init),
            lm_head: (!config.tie_word_embeddings)
                .then(|| init.linear(d_model, vocab, config.biases.head)),
            head_bias: (config.tie_word_embeddings && config.biases.head)
                .then(|| init.constant([vocab], 0.0)),
            dims,
            embedding_scale: config.embedding_scale,
            logit_cap: config.logit_cap,
            fused_attention: false,
            rotary: match &config.positions {
                Positions::Learned(_) => Vec::new(),
                Positions::Rotary { global, local } => {
                    [global].into_iter().chain(local).cloned().collect()
                }
            },
            window: config.sliding_window.as_ref().map(|window| window.size),
            last_pass: LastPass::default(),
        }
    }

    /// The same model with or without the backend's fused attention, for layers whose attention
    /// scores and weights are not tapped, and that have neither a window nor a soft cap. Default:
    /// without. On the CPU backends it is no faster (`cargo bench --bench workloads -- --fused`); on
    /// GPUs it has not been measured.
    pub fn with_fused_attention(mut self, fused: bool) -> Self {
        self.fused_attention = fused;
        self
    }

    /// The token embedding, `[vocab, d_model]`.
    pub fn token_embedding(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }
}

impl<B: Backend> BlockHalves<B, CausalPass<B>> for Decoder<B> {
    fn attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        self.layers[layer].attention(layer, x, pass, tap)
    }

    fn mlp(&self, layer: usize, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        self.layers[layer].mlp(layer, x, tap)
    }
}

impl<B: Backend> RunsSuffixes<B, CausalPass<B>> for Decoder<B> {
    fn begin_suffixes(&self, pass: &CausalPass<B>, suffixes: Suffixes<B>) -> CausalPass<B> {
        pass.clone().with_suffixes(suffixes)
    }
}

impl<B: Backend> AlignableTransformer<B> for Decoder<B> {
    type Pass = CausalPass<B>;

    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn device(&self) -> B::Device {
        self.embedding.weight.device()
    }

    fn begin(&self, pos: usize, device: &B::Device) -> CausalPass<B> {
        let key = PassKey {
            pos,
            device: device.clone(),
            dtype: self.embedding.weight.dtype(),
            fused: self.fused_attention,
        };
        self.last_pass.or_begin(key, |key| {
            let tables = self.rotary.iter().map(|rotary| rotary.tables(pos, device));
            let tables = tables.map(|tables| tables.cast(key.dtype)).collect();
            CausalPass::new(pos, self.window, tables, device).with_fused(key.fused)
        })
    }

    fn pass_bytes(&self, pos: usize) -> u64 {
        let dtype = self.embedding.weight.dtype();
        mask_bytes::<B>(pos, self.window, dtype, &self.device())
    }

    fn suffixes(&self) -> Option<&dyn RunsSuffixes<B, CausalPass<B>>> {
        Some(self)
    }

    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let [_batch, pos] = input.dims();
        let x = match input {
            ModelInput::Tokens(tokens) => {
                let x = self.embedding.forward(tokens);
                match self.embedding_scale {
                    None => x,
                    Some(scale) => {
                        // Rounded to the model's dtype, as in `transformers`.
                        let (device, dtype) = (x.device(), DType::F32);
                        let scale = Tensor::<B, 1>::full([1], scale, (&device, dtype));
                        let scale = scale.cast(x.dtype());
                        x * scale.unsqueeze()
                    }
                }
            }
            ModelInput::Features(features) => features,
        };
        let x = match &self.positions {
            None => x,
            Some(positions) => x + positions.weight.val().narrow(0, 0, pos).unsqueeze(),
        };
        tap.stream(Site::Embedding, x)
    }

    fn halves(&self) -> Option<&dyn BlockHalves<B, CausalPass<B>>> {
        Some(self)
    }

    fn block(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        self.whole_block(&self.dims, layer, x, pass, tap)
    }

    fn final_norm(&self, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        tap.stream(Site::FinalNorm, self.final_norm.forward(x))
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let logits = unembed(self.lm_head.as_ref(), &self.embedding, x);
        let logits = match &self.head_bias {
            None => logits,
            Some(bias) => logits + bias.val().unsqueeze(),
        };
        match self.logit_cap {
            None => logits,
            Some(cap) => soft_cap(logits, cap),
        }
    }

    /// `None` in models with norms after the attention: the sum of the heads goes through the norm,
    /// so no head adds something of its own.
    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let output = &self.layers[layer].attention.output;
        (!self.dims.post_norms).then(|| output.head_output(head, mixed))
    }

    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Option<Tensor<B, 3>> {
        let block = &self.layers[layer];
        let inputs = streams.map(|x| block.attention_input(x));
        Some(block.attention.head_mixed(layer, head, inputs, pass))
    }
}
