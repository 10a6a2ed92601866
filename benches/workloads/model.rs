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
