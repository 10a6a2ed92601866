//! The sizes of a GPT-2, named as in `config.json`.

use burn::tensor::{DType, backend::Backend};

use super::Gpt2;
use crate::dims::ModelDims;
use crate::nn::{Activation, ParamInit};

/// The configuration of a GPT-2, with the names used in its Hugging Face `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Number of heads.
    pub n_head: usize,
    /// Width of the MLP's hidden layer; `4 * n_embd` if absent.
    pub n_inner: Option<usize>,
    /// The MLP's activation function.
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_epsilon: f64,
    /// Whether attention scores are divided by `√d_head`.
    pub scale_attn_weights: bool,
    /// Whether attention scores are divided by the layer's number, counted from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the unembedding is the transposed token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self::gpt2()
    }
}

impl Gpt2Config {
    /// GPT-2 small: 124 million parameters.
    pub fn gpt2() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation: Activation::GeluTanh,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }

    /// DistilGPT-2: 82 million parameters.
    pub fn distilgpt2() -> Self {
        Self {
            n_layer: 6,
            ..Self::gpt2()
        }
    }

    /// GPT-2 medium: 355 million parameters.
    pub fn gpt2_medium() -> Self {
        Self {
            n_embd: 1024,
            n_layer: 24,
            n_head: 16,
            ..Self::gpt2()
        }
    }

    /// GPT-2 large: 774 million parameters.
    pub fn gpt2_large() -> Self {
        Self {
            n_embd: 1280,
            n_layer: 36,
            n_head: 20,
            ..Self::gpt2()
        }
    }

    /// GPT-2 XL: 1.56 billion parameters.
    pub fn gpt2_xl() -> Self {
        Self {
            n_embd: 1600,
            n_layer: 48,
            n_head: 25,
            ..Self::gpt2()
        }
    }

    /// The model's sizes.
    pub fn dims(&self) -> ModelDims {
        ModelDims {
            layers: self.n_layer,
            heads: self.n_head,
            kv_heads: self.n_head,
            d_model: self.n_embd,
            d_head: self.n_embd / self.n_head,
            d_mlp: self.n_inner.unwrap_or(4 * self.n_embd),
            gated_mlp: false,
            vocab: self.vocab_size,
            max_positions: Some(self.n_positions),
            rotary: false,
        }
    }

    /// A model in f32 with random weights drawn from seed 0.
    ///
    /// # Panics
    /// If `n_head` does not divide `n_embd`.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Gpt2<B> {
        self.init_seeded(0, DType::F32, device)
    }

    /// A model with random weights drawn from `seed`, in `dtype`.
    ///
    /// Each parameter is drawn when it is first used.
    ///
    /// # Panics
    /// As [`init`](Self::init).
    pub fn init_seeded<B: Backend>(&self, seed: u64, dtype: DType, device: &B::Device) -> Gpt2<B> {
        Gpt2::new(
            self,
            &mut ParamInit::new(device, dtype, seed, self.initializer_range),
        )
    }
}
