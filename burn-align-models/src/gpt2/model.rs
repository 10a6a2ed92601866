//! GPT-2 from token ids to logits, with a tap at every named activation.

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Tensor, backend::Backend};

use super::{Gpt2Block, Gpt2Config};
use crate::dims::ModelDims;
use crate::halves::BlockHalves;
use crate::model::{AlignableTransformer, ModelInput};
use crate::nn::{
    CausalPass, LastPass, LayerNorm, ParamInit, PassKey, Projection, TokenEmbedding, mask_bytes,
    unembed,
};
use crate::site::{Component, Site};
use crate::suffixes::Suffixes;
use crate::tap::Tap;

/// GPT-2 with a language-modelling head.
#[derive(Module, Debug)]
pub struct Gpt2<B: Backend> {
    /// Token embedding, `[vocab, d_model]`.
    pub wte: TokenEmbedding<B>,
    /// Position embedding, `[max_positions, d_model]`.
    pub wpe: Embedding<B>,
    /// The blocks.
    pub h: Vec<Gpt2Block<B>>,
    /// Norm before the unembedding.
    pub ln_f: LayerNorm<B>,
    /// Unembedding, `[d_model, vocab]`; `None` where it is tied to `wte`.
    pub lm_head: Option<Projection<B>>,
    dims: ModelDims,
    fused_attention: bool,
    #[module(skip)]
    last_pass: LastPass,
}

impl<B: Backend> Gpt2<B> {
    pub(crate) fn new(config: &Gpt2Config, init: &mut ParamInit<'_, B>) -> Self {
        let dims = config.dims();
        assert_eq!(
            dims.heads * dims.d_head,
            dims.d_model,
            "n_head must divide n_embd"
        );
        Self {
            wte: init.token_embedding(dims.vocab, dims.d_model),
            wpe: init.embedding(config.n_positions, dims.d_model),
            h: (0..dims.layers)
                .map(|layer| Gpt2Block::new(config, layer, init))
                .collect(),
            ln_f: LayerNorm::new(dims.d_model, config.layer_norm_epsilon, init),
            lm_head: (!config.tie_word_embeddings)
                .then(|| init.linear(dims.d_model, dims.vocab, false)),
            dims,
            fused_attention: false,
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

impl<B: Backend> BlockHalves<B, CausalPass<B>> for Gpt2<B> {
    fn attention(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let block = &self.h[layer];
        let normed = block.ln_1.forward(x);
        let normed = tap.stream(Site::Block(layer, Component::AttentionInput), normed);
        block.attn.forward(layer, normed, pass, tap)
    }

    fn mlp(&self, layer: usize, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let block = &self.h[layer];
        let normed = block.ln_2.forward(x);
        let normed = tap.stream(Site::Block(layer, Component::MlpInput), normed);
        block.mlp.forward(layer, normed, tap)
    }
}

impl<B: Backend> AlignableTransformer<B> for Gpt2<B> {
    type Pass = CausalPass<B>;

    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn device(&self) -> B::Device {
        self.wte.weight.device()
    }

    fn begin(&self, pos: usize, device: &B::Device) -> CausalPass<B> {
        let key = PassKey {
            pos,
            device: device.clone(),
            dtype: self.wte.weight.dtype(),
            fused: self.fused_attention,
        };
        self.last_pass.or_begin(key, |key| {
            CausalPass::new(pos, None, None, device).with_fused(key.fused)
        })
    }

    fn pass_bytes(&self, pos: usize) -> u64 {
        mask_bytes::<B>(pos, None, self.wte.weight.dtype(), &self.device())
    }

    fn computes_suffixes(&self) -> bool {
        true
    }

    fn begin_suffixes(&self, pass: &CausalPass<B>, suffixes: Suffixes<B>) -> CausalPass<B> {
        pass.clone().with_suffixes(suffixes)
    }

    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let [_batch, pos] = input.dims();
        let tokens = match input {
            ModelInput::Tokens(tokens) => self.wte.forward(tokens),
            ModelInput::Features(features) => features,
        };
        let positions = self.wpe.weight.val().narrow(0, 0, pos).unsqueeze();
        tap.stream(Site::Embedding, tokens + positions)
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
        tap.stream(Site::FinalNorm, self.ln_f.forward(x))
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        unembed(self.lm_head.as_ref(), &self.wte, x)
    }

    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        Some(self.h[layer].attn.c_proj.head_output(head, mixed))
    }

    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Option<Tensor<B, 3>> {
        let block = &self.h[layer];
        let normed = streams.map(|x| block.ln_1.forward(x));
        Some(block.attn.head_mixed(layer, head, normed, pass))
    }
}
