//! Shapes of models by name, with random weights.

use anyhow::{Result, ensure};
use burn::tensor::{DType, backend::Backend};
use burn_align_models::{Decoder, DecoderConfig, ModelDims};
use clap::ValueEnum;

/// A shape of a published model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// GPT-2 small, 124 million parameters.
    #[value(name = "gpt2")]
    Gpt2,
    /// 82 million parameters.
    #[value(name = "distilgpt2")]
    DistilGpt2,
    /// 355 million parameters.
    #[value(name = "gpt2-medium")]
    Gpt2Medium,
    /// 774 million parameters.
    #[value(name = "gpt2-large")]
    Gpt2Large,
    /// 1.56 billion parameters.
    #[value(name = "gpt2-xl")]
    Gpt2Xl,
    /// 1.2 billion parameters.
    #[value(name = "llama3.2-1b")]
    Llama32x1b,
    /// 6.7 billion parameters, 2048 positions.
    #[value(name = "llama-7b")]
    Llama7b,
    /// 6.7 billion parameters.
    #[value(name = "llama2-7b")]
    Llama2x7b,
    /// 8 billion parameters.
    #[value(name = "llama3-8b")]
    Llama3x8b,
    /// 135 million parameters.
    #[value(name = "smollm2-135m")]
    SmolLm2x135m,
    /// 7.2 billion parameters, sliding window.
    #[value(name = "mistral-7b")]
    Mistral7b,
    /// 494 million parameters.
    #[value(name = "qwen2.5-0.5b")]
    Qwen2x5x0x5b,
    /// 596 million parameters, norms of queries and keys.
    #[value(name = "qwen3-0.6b")]
    Qwen3x0x6b,
    /// 2.6 billion parameters, soft caps, every other layer with a window.
    #[value(name = "gemma2-2b")]
    Gemma2x2b,
    /// 268 million parameters, five of six layers with a window.
    #[value(name = "gemma3-270m")]
    Gemma3x270m,
    /// 1 billion parameters, five of six layers with a window.
    #[value(name = "gemma3-1b")]
    Gemma3x1b,
    /// 70 million parameters, parallel blocks.
    #[value(name = "pythia-70m")]
    Pythia70m,
    /// 1 billion parameters, parallel blocks.
    #[value(name = "pythia-1b")]
    Pythia1b,
    /// 125 million parameters, every other layer with a window.
    #[value(name = "gpt-neo-125m")]
    GptNeo125m,
    /// 2.8 billion parameters, parallel blocks.
    #[value(name = "phi-2")]
    Phi2,
    /// 3.8 billion parameters.
    #[value(name = "phi3-mini")]
    Phi3Mini,
    /// 1.5 billion parameters, norms after attention and MLP.
    #[value(name = "olmo2-1b")]
    Olmo2x1b,
}

/// A model that workloads run on.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The preset's name.
    pub(crate) preset: String,
    /// The configuration, cut to the requested layers.
    pub(crate) config: DecoderConfig,
}

impl Preset {
    /// The whole shape, or the first `layers` of it.
    pub(crate) fn shape(self, layers: Option<usize>) -> Result<Shape> {
        let mut config = match self {
            Self::Gpt2 => DecoderConfig::gpt2(),
            Self::DistilGpt2 => DecoderConfig::distilgpt2(),
            Self::Gpt2Medium => DecoderConfig::gpt2_medium(),
            Self::Gpt2Large => DecoderConfig::gpt2_large(),
            Self::Gpt2Xl => DecoderConfig::gpt2_xl(),
            Self::Llama32x1b => DecoderConfig::llama3_2_1b(),
            Self::Llama7b => DecoderConfig::llama_7b(),
            Self::Llama2x7b => DecoderConfig::llama2_7b(),
            Self::Llama3x8b => DecoderConfig::llama3_8b(),
            Self::SmolLm2x135m => DecoderConfig::smollm2_135m(),
            Self::Mistral7b => DecoderConfig::mistral_7b(),
            Self::Qwen2x5x0x5b => DecoderConfig::qwen2_5_0_5b(),
            Self::Qwen3x0x6b => DecoderConfig::qwen3_0_6b(),
            Self::Gemma2x2b => DecoderConfig::gemma2_2b(),
            Self::Gemma3x270m => DecoderConfig::gemma3_270m(),
            Self::Gemma3x1b => DecoderConfig::gemma3_1b(),
            Self::Pythia70m => DecoderConfig::pythia_70m(),
            Self::Pythia1b => DecoderConfig::pythia_1b(),
            Self::GptNeo125m => DecoderConfig::gpt_neo_125m(),
            Self::Phi2 => DecoderConfig::phi_2(),
            Self::Phi3Mini => DecoderConfig::phi3_mini(),
            Self::Olmo2x1b => DecoderConfig::olmo2_1b(),
        };
        let preset = self.to_possible_value().expect("no preset is hidden");
        let preset = preset.get_name().to_owned();
        if let Some(wanted) = layers {
            let there = &mut config.dims.layers;
            ensure!(
                (1..=*there).contains(&wanted),
                "--layers {wanted}: {preset} has {there} layers; expected 1 to {there}"
            );
            *there = wanted;
            if let Some(window) = &mut config.sliding_window {
                window.layers.truncate(wanted);
            }
        }
        Ok(Shape { preset, config })
    }
}

impl Shape {
    /// The model's sizes.
    pub(crate) fn dims(&self) -> ModelDims {
        self.config.dims.clone()
    }

    /// A model with random weights, the same ones every time on one backend.
    pub(crate) fn init<B: Backend>(
        &self,
        dtype: DType,
        fused_attention: bool,
        device: &B::Device,
    ) -> Decoder<B> {
        self.config
            .init_seeded(0, dtype, device)
            .with_fused_attention(fused_attention)
    }
}
