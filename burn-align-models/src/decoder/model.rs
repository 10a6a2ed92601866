//! A decoder from token ids to logits, with a tap at every named activation.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::{Block, DecoderConfig, Positions};
use crate::layout::ModelLayout;
use crate::model::{AlignableTransformer, ByHead, ModelInput, Readout};
use crate::nn::{Norm, ParamInit, Projection, TokenEmbedding, soft_cap, unembed};
use crate::pass::{Cx, Pass};

/// A decoder-only language model of any [family](super::DecoderFamily).
///
/// ```
/// use burn::tensor::DType;
/// use burn_align_models::{
///     AlignableTransformer, Decoder, DecoderFamily, FromPretrained, LoadOptions,
/// };
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
    layout: ModelLayout,
    #[module(skip)]
    embedding_scale: Option<f64>,
    #[module(skip)]
    logit_cap: Option<f64>,
}

impl<B: Backend> Decoder<B> {
    pub(super) fn new(config: &DecoderConfig, init: &mut ParamInit<'_, B>) -> Self {
        let dims = &config.dims;
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
            layout: config.layout(),
            embedding_scale: config.embedding_scale,
            logit_cap: config.logit_cap,
        }
    }

    /// The same model with or without the backend's fused attention, for layers whose attention
    /// scores and weights are not tapped, and that have neither a window nor a soft cap. Default:
    /// without. On the CPU backends it is no faster (`cargo bench --bench workloads -- --fused`);
    /// on GPUs it has not been measured.
    pub fn with_fused_attention(mut self, fused: bool) -> Self {
        for block in &mut self.layers {
            block.attention.set_fused(fused);
        }
        self
    }

    /// The token embedding, `[vocab, d_model]`.
    pub fn token_embedding(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }
}

impl<B: Backend> AlignableTransformer<B> for Decoder<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.embedding.weight.device()
    }

    fn embed(&self, input: ModelInput<B>, pass: &Pass<B>) -> Tensor<B, 3> {
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
        match &self.positions {
            None => x,
            Some(positions) => {
                let vectors = positions.weight.val();
                let vectors = match pass.suffixes() {
                    None => vectors.narrow(0, 0, pass.pos()),
                    Some(suffixes) => vectors.select(0, suffixes.positions.clone()),
                };
                x + vectors.unsqueeze()
            }
        }
    }

    fn sublayer(
        &self,
        layer: usize,
        sublayer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        match sublayer {
            0 => self.layers[layer].attention(layer, x, cx),
            _ => self.layers[layer].mlp(layer, x, cx),
        }
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.final_norm.forward(x)
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

    fn by_head(&self) -> Option<&dyn ByHead<B>> {
        Some(self)
    }

    fn readout(&self) -> Option<&dyn Readout<B>> {
        Some(self)
    }
}

impl<B: Backend> ByHead<B> for Decoder<B> {
    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        self.layers[layer].attention.head_output(head, mixed)
    }

    fn attention_norm(&self, layer: usize) -> Option<&Norm<B>> {
        self.layers[layer].attention_norm.as_ref()
    }

    fn mlp_norm(&self, layer: usize) -> Option<&Norm<B>> {
        self.layers[layer].norm_before_mlp()
    }

    fn head_mixed_normed(
        &self,
        layer: usize,
        head: usize,
        inputs: [Tensor<B, 3>; 3],
        pass: &Pass<B>,
    ) -> Tensor<B, 3> {
        let attention = &self.layers[layer].attention;
        attention.head_mixed(layer, head, inputs, pass)
    }
}

impl<B: Backend> Readout<B> for Decoder<B> {
    fn last_norm(&self) -> &Norm<B> {
        &self.final_norm
    }

    fn post_norm(&self, layer: usize, sublayer: usize) -> Option<&Norm<B>> {
        let block = &self.layers[layer];
        match sublayer {
            0 => block.attention_post_norm.as_ref(),
            _ => block.mlp_post_norm.as_ref(),
        }
    }

    fn unembedding(&self, tokens: &[u32]) -> (Tensor<B, 2>, Option<Tensor<B, 1>>) {
        let device = self.device();
        let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &device);
        let Some(head) = &self.lm_head else {
            let columns = self
                .embedding
                .forward(ids.clone().unsqueeze())
                .squeeze_dim(0);
            let biases = self.head_bias.as_ref();
            return (columns, biases.map(|bias| bias.val().select(0, ids)));
        };
        let biases = head.bias.as_ref();
        let biases = biases.map(|bias| bias.val().select(0, ids.clone()));
        let columns = match head.weight.quantized() {
            _ if tokens.is_empty() => head.weight.outputs(0..0).remove(0),
            None if head.weight.is_split() => {
                let columns = tokens.iter().flat_map(|token| {
                    let column = *token as usize;
                    head.weight.outputs(column..column + 1)
                });
                Tensor::cat(columns.collect(), 1)
            }
            None => head.weight.val().select(1, ids), // [d_model, token]
            Some(matrix) => {
                let columns = tokens.iter().map(|token| {
                    let row = *token as usize;
                    matrix
                        .rows(row..row + 1)
                        .to_transposed_tensor(&device, DType::F32)
                });
                Tensor::cat(columns.collect(), 1)
            }
        };
        (columns.transpose(), biases)
    }

    fn logit_cap(&self) -> Option<f64> {
        self.logit_cap
    }
}
