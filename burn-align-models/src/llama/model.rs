//! LLaMA from token ids to logits, with a tap at every named activation.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{LlamaBlock, LlamaConfig};
use crate::dims::ModelDims;
use crate::halves::BlockHalves;
use crate::model::{AlignableTransformer, ModelInput};
use crate::nn::{
    CausalPass, LastPass, ParamInit, PassKey, Projection, RmsNorm, RotaryConfig, TokenEmbedding,
    mask_bytes, unembed,
};
use crate::site::{Component, Site};
use crate::suffixes::Suffixes;
use crate::tap::Tap;

/// LLaMA with a language-modelling head.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token embedding, `[vocab, d_model]`.
    pub embed_tokens: TokenEmbedding<B>,
    /// The blocks.
    pub layers: Vec<LlamaBlock<B>>,
    /// Norm before the unembedding.
    pub norm: RmsNorm<B>,
    /// Unembedding, `[d_model, vocab]`; `None` where it is tied to the embedding.
    pub lm_head: Option<Projection<B>>,
    #[module(skip)]
    dims: ModelDims,
    fused_attention: bool,
    #[module(skip)]
    rotary: RotaryConfig,
    #[module(skip)]
    window: Option<usize>,
    #[module(skip)]
    last_pass: LastPass,
}

impl<B: Backend> Llama<B> {
    pub(crate) fn new(config: &LlamaConfig, init: &mut ParamInit<'_, B>) -> Self {
        let dims = config.dims.clone();
        Self {
            embed_tokens: init.token_embedding(dims.vocab, dims.d_model),
            layers: (0..dims.layers)
                .map(|layer| LlamaBlock::new(config, layer, init))
                .collect(),
            norm: RmsNorm::new(dims.d_model, config.rms_norm_eps, init),
            lm_head: (!config.tie_word_embeddings)
                .then(|| init.linear(dims.d_model, dims.vocab, false)),
            dims,
            fused_attention: false,
            rotary: config.rotary.clone(),
            window: config.sliding_window.as_ref().map(|window| window.size),
            last_pass: LastPass::default(),
        }
    }

    /// The same model with or without the backend's fused attention, for layers whose attention
    /// scores and weights are not tapped. Default: without. On the CPU backends it is no faster
    /// (`cargo bench --bench workloads -- --fused`); on GPUs it has not been measured.
    pub fn with_fused_attention(mut self, fused: bool) -> Self {
        self.fused_attention = fused;
        self
    }
}

impl<B: Backend> BlockHalves<B, CausalPass<B>> for Llama<B> {
    fn attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let block = &self.layers[layer];
        let normed = block.input_layernorm.forward(x);
        let normed = tap.stream(Site::Block(layer, Component::AttentionInput), normed);
        block.self_attn.forward(layer, normed, pass, tap)
    }

    fn mlp(&self, layer: usize, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let block = &self.layers[layer];
        let normed = block.post_attention_layernorm.forward(x);
        let normed = tap.stream(Site::Block(layer, Component::MlpInput), normed);
        block.mlp.forward(layer, normed, tap)
    }
}

impl<B: Backend> AlignableTransformer<B> for Llama<B> {
    type Pass = CausalPass<B>;

    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn device(&self) -> B::Device {
        self.embed_tokens.weight.device()
    }

    fn begin(&self, pos: usize, device: &B::Device) -> CausalPass<B> {
        let key = PassKey {
            pos,
            device: device.clone(),
            dtype: self.embed_tokens.weight.dtype(),
            fused: self.fused_attention,
        };
        self.last_pass.or_begin(key, |key| {
            let tables = self.rotary.tables(pos, device).cast(key.dtype);
            CausalPass::new(pos, self.window, Some(tables), device).with_fused(key.fused)
        })
    }

    fn pass_bytes(&self, pos: usize) -> u64 {
        let dtype = self.embed_tokens.weight.dtype();
        mask_bytes::<B>(pos, self.window, dtype, &self.device())
    }

    fn computes_suffixes(&self) -> bool {
        true
    }

    fn begin_suffixes(&self, pass: &CausalPass<B>, suffixes: Suffixes<B>) -> CausalPass<B> {
        pass.clone().with_suffixes(suffixes)
    }

    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let x = match input {
            ModelInput::Tokens(tokens) => self.embed_tokens.forward(tokens),
            ModelInput::Features(features) => features,
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
        self.whole_block(layer, x, pass, tap)
    }

    fn final_norm(&self, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        tap.stream(Site::FinalNorm, self.norm.forward(x))
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        unembed(self.lm_head.as_ref(), &self.embed_tokens, x)
    }

    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        Some(self.layers[layer].self_attn.o_proj.head_output(head, mixed))
    }

    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Option<Tensor<B, 3>> {
        let block = &self.layers[layer];
        let normed = streams.map(|x| block.input_layernorm.forward(x));
        Some(block.self_attn.head_mixed(layer, head, normed, pass))
    }
}
