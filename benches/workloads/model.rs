//! Shapes of models by name with random weights, or models from files.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::tensor::{DType, backend::Backend, f16};
use burn_align_models::nn::keeps_quantized;
use burn_align_models::pretrained::Family;
use burn_align_models::quants::{BlockFormat, QuantizedMatrix};
use burn_align_models::{Decoder, DecoderConfig, FromPretrained, LoadOptions, ModelDims};
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
    /// The preset's name, or that of the file.
    pub(crate) preset: String,
    /// The configuration, cut to the requested layers.
    pub(crate) config: DecoderConfig,
    /// The folder or GGUF file with the weights; without one they are random.
    weights: Option<String>,
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
        Ok(Shape {
            preset,
            config,
            weights: None,
        })
    }
}

impl Shape {
    /// The model's sizes.
    pub(crate) fn dims(&self) -> ModelDims {
        self.config.dims.clone()
    }

    /// The model in a folder or a GGUF file.
    pub(crate) fn of_file<B: Backend>(weights: &str, device: &B::Device) -> Result<Self> {
        // Blocks of a GGUF file stay where they are, so this reads little of it.
        let options = LoadOptions::default().with_keep_quantised(true);
        let loaded = Decoder::<B>::from_pretrained(weights, &options, device)?;
        let name = Path::new(weights).file_name();
        Ok(Self {
            preset: name.map_or(weights.into(), |name| name.to_string_lossy().into_owned()),
            config: loaded.config,
            weights: Some(weights.to_owned()),
        })
    }

    /// The model; random weights are the same ones every time on one backend.
    pub(crate) fn init<B: Backend>(
        &self,
        dtype: DType,
        fused_attention: bool,
        device: &B::Device,
    ) -> Result<Decoder<B>> {
        let model = match &self.weights {
            None => self.config.init_seeded(0, dtype, device),
            Some(weights) => {
                let options = LoadOptions::default().with_dtype(dtype);
                Decoder::from_pretrained(weights.as_str(), &options, device)?.model
            }
        };
        Ok(model.with_fused_attention(fused_attention))
    }

    /// The model with its matrices in blocks that products read: those of its GGUF file, or, where
    /// it has none, the nearest of Q8_0.
    pub(crate) fn quantised<B: Backend>(
        &self,
        model: &Decoder<B>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Decoder<B>> {
        ensure!(
            dtype == DType::F32 && keeps_quantized::<B>(),
            "weights stay quantised on the backend flex in f32 only"
        );
        if let Some(weights) = &self.weights {
            let options = LoadOptions::default().with_keep_quantised(true);
            let mut kept = Decoder::<B>::from_pretrained(weights.as_str(), &options, device)?.model;
            let of_kept = matrices(&mut kept);
            if of_kept.iter().any(|matrix| matrix.block_bytes.is_some()) {
                return Ok(kept);
            }
        }
        let mut model = model.clone();
        for (path, weight) in Family::<B>::weights_mut(&mut model) {
            let rows = match path.as_str() {
                EMBEDDING => weight.val(),
                _ => weight.val().transpose(),
            };
            let shape = rows.dims();
            let elements = rows.into_data().convert::<f32>();
            let elements: Vec<f32> = elements.to_vec().expect("converted to f32");
            let matrix = QuantizedMatrix::new(BlockFormat::Q8_0, shape, q8_0(&elements))?;
            weight.set_quantized(matrix, dtype)?;
        }
        Ok(model)
    }
}

/// The path of the token embedding in the module.
const EMBEDDING: &str = "embedding.weight";

/// The nearest blocks of Q8_0: a scale for each 32, by which the largest is 127.
fn q8_0(elements: &[f32]) -> Vec<u8> {
    let mut blocks = Vec::new();
    for elements in elements.chunks(32) {
        let largest = elements.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = match scale.to_f32() {
            0.0 => 0.0,
            scale => 1.0 / scale,
        };
        blocks.extend(scale.to_le_bytes());
        blocks.extend(elements.iter().map(|x| (x * inverse).round() as i8 as u8));
    }
    blocks
}

/// A matrix of a model.
struct Matrix {
    /// Its path in the module.
    path: String,
    elements: usize,
    /// Bytes of its blocks, if it is quantised.
    block_bytes: Option<usize>,
}

fn matrices<B: Backend>(model: &mut Decoder<B>) -> Vec<Matrix> {
    let weights = Family::<B>::weights_mut(model).into_iter();
    let matrices = weights.map(|(path, weight)| {
        let [rows, cols] = weight.dims();
        Matrix {
            path,
            elements: rows * cols,
            block_bytes: weight.quantized().map(QuantizedMatrix::num_bytes),
        }
    });
    matrices.collect()
}

/// Bytes of the matrices that a pass reads in full: no embedding, unless it is the unembedding too.
pub(crate) fn weight_bytes<B: Backend>(model: &Decoder<B>, dtype: DType) -> u64 {
    let untied = model.lm_head.is_some();
    let matrices = matrices(&mut model.clone()).into_iter();
    let read = matrices.filter(|matrix| !(untied && matrix.path == EMBEDDING));
    let bytes = read.map(|matrix| {
        let dense = matrix.elements * dtype.size();
        matrix.block_bytes.unwrap_or(dense) as u64
    });
    bytes.sum()
}
