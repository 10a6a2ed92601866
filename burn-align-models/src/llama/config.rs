//! The sizes of a LLaMA, a Mistral or a Qwen2.

use burn::tensor::{DType, backend::Backend};

use super::Llama;
use crate::dims::ModelDims;
use crate::nn::{Activation, ParamInit, RotaryConfig, RotaryScaling};

/// The configuration of a LLaMA-like model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// The model's sizes.
    pub dims: ModelDims,
    /// The gate's activation function.
    pub activation: Activation,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rotary: RotaryConfig,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the unembedding is the transposed token embedding.
    pub tie_word_embeddings: bool,
    /// Limit on how far back some layers look.
    pub sliding_window: Option<SlidingWindow>,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

/// A limit on how far back attention looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Number of positions that a query sees, itself included.
    pub size: usize,
    /// Which layers have this limit: an entry for each layer.
    pub layers: Vec<bool>,
}

/// Where the presets differ.
struct Preset {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    d_model: usize,
    d_mlp: usize,
    vocab: usize,
    max_positions: usize,
    theta: f64,
    scaling: RotaryScaling,
    tied: bool,
}

impl From<Preset> for LlamaConfig {
    fn from(preset: Preset) -> Self {
        let d_head = preset.d_model / preset.heads;
        Self {
            dims: ModelDims {
                layers: preset.layers,
                heads: preset.heads,
                kv_heads: preset.kv_heads,
                d_model: preset.d_model,
                d_head,
                d_mlp: preset.d_mlp,
                gated_mlp: true,
                vocab: preset.vocab,
                max_positions: None,
                rotary: true,
            },
            activation: Activation::Silu,
            rms_norm_eps: 1e-5,
            rotary: RotaryConfig {
                d_head,
                theta: preset.theta,
                max_positions: preset.max_positions,
                scaling: preset.scaling,
            },
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            tie_word_embeddings: preset.tied,
            sliding_window: None,
            initializer_range: 0.02,
        }
    }
}

impl LlamaConfig {
    /// LLaMA 7B (2023).
    pub fn llama_7b() -> Self {
        Self {
            rms_norm_eps: 1e-6,
            ..Self::llama2_7b().with_max_positions(2048)
        }
    }

    /// LLaMA 2 7B: 6.7 billion parameters.
    pub fn llama2_7b() -> Self {
        Preset {
            layers: 32,
            heads: 32,
            kv_heads: 32,
            d_model: 4096,
            d_mlp: 11008,
            vocab: 32000,
            max_positions: 4096,
            theta: 10000.0,
            scaling: RotaryScaling::Default,
            tied: false,
        }
        .into()
    }

    /// LLaMA 3 8B: 8 billion parameters, grouped-query attention.
    pub fn llama3_8b() -> Self {
        Preset {
            layers: 32,
            heads: 32,
            kv_heads: 8,
            d_model: 4096,
            d_mlp: 14336,
            vocab: 128256,
            max_positions: 8192,
            theta: 500000.0,
            scaling: RotaryScaling::Default,
            tied: false,
        }
        .into()
    }

    /// LLaMA 3.2 1B: 1.2 billion parameters, grouped-query attention, tied embeddings.
    pub fn llama3_2_1b() -> Self {
        Preset {
            layers: 16,
            heads: 32,
            kv_heads: 8,
            d_model: 2048,
            d_mlp: 8192,
            vocab: 128256,
            max_positions: 131072,
            theta: 500000.0,
            scaling: RotaryScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original: 8192,
            },
            tied: true,
        }
        .into()
    }

    /// The same model for sequences of up to `max_positions`; see [`RotaryConfig::max_positions`].
    pub fn with_max_positions(mut self, max_positions: usize) -> Self {
        self.rotary.max_positions = max_positions;
        self
    }

    /// A model in f32 with random weights drawn from seed 0.
    ///
    /// # Panics
    /// If the parts of the configuration are inconsistent; see [`check`](Self::check).
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llama<B> {
        self.init_seeded(0, DType::F32, device)
    }

    /// A model with random weights drawn from `seed`, in `dtype`.
    ///
    /// Each parameter is drawn when it is first used.
    ///
    /// # Panics
    /// As [`init`](Self::init).
    pub fn init_seeded<B: Backend>(&self, seed: u64, dtype: DType, device: &B::Device) -> Llama<B> {
        if let Err(error) = self.check() {
            panic!("{error}");
        }
        Llama::new(
            self,
            &mut ParamInit::new(device, dtype, seed, self.initializer_range),
        )
    }
}
