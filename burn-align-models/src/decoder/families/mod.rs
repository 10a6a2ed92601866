//! How each family is stored: its `config.json`, and the names of its tensors.

mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod llama;
mod olmo2;
mod phi;
mod phi3;
mod read;

use serde_json::Value;

use super::DecoderConfig;
use crate::pretrained::{ConfigError, Fields};

/// A family of models that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecoderFamily {
    /// GPT-2 (Radford et al., 2019).
    Gpt2,
    /// GPT-Neo (Black et al., 2021).
    GptNeo,
    /// GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373).
    GptNeoX,
    /// LLaMA 1, 2 and 3 (arXiv 2302.13971), and what has its shape: SmolLM2, TinyLlama, Yi,
    /// DeepSeek.
    Llama,
    /// Mistral (arXiv 2310.06825).
    Mistral,
    /// Qwen2 (arXiv 2407.10671).
    Qwen2,
    /// Qwen3 (arXiv 2505.09388).
    Qwen3,
    /// Gemma 2 (arXiv 2408.00118).
    Gemma2,
    /// The text model of Gemma 3 (arXiv 2503.19786).
    Gemma3,
    /// Phi-1 (arXiv 2306.11644), Phi-1.5 and Phi-2.
    Phi,
    /// Phi-3 (arXiv 2404.14219) and Phi-4.
    Phi3,
    /// OLMo 2 (arXiv 2501.00656).
    Olmo2,
}

/// How a family is stored.
pub(crate) struct Mapping {
    /// `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// Reads `config.json`.
    pub(crate) read: fn(&mut Fields) -> Result<DecoderConfig, ConfigError>,
    /// Writes `config.json`.
    pub(crate) write: fn(&DecoderConfig) -> Value,
    /// Prefix of the names of all tensors but the head's; a checkpoint may lack it.
    pub(crate) prefix: &'static str,
    /// Modules of [`Decoder`](super::Decoder) by their paths, with `*` for the layer, and their
    /// names in checkpoints, without the prefix; lists that some families share. The head is
    /// `lm_head`.
    pub(crate) names: &'static [&'static [(&'static str, &'static str)]],
    /// Whether the matrices of blocks are stored `[d_input, d_output]`, as in GPT-2's `Conv1D`.
    pub(crate) input_first: bool,
    /// Buffers that old versions of `transformers` stored with the weights.
    pub(crate) is_buffer: fn(&str) -> bool,
}

impl DecoderFamily {
    /// Every family.
    pub const ALL: [Self; 12] = [
        Self::Gpt2,
        Self::GptNeo,
        Self::GptNeoX,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi,
        Self::Phi3,
        Self::Olmo2,
    ];

    pub(crate) fn mapping(self) -> &'static Mapping {
        match self {
            Self::Gpt2 => &gpt2::GPT2,
            Self::GptNeo => &gpt_neo::GPT_NEO,
            Self::GptNeoX => &gpt_neox::GPT_NEOX,
            Self::Llama => &llama::LLAMA,
            Self::Mistral => &llama::MISTRAL,
            Self::Qwen2 => &llama::QWEN2,
            Self::Qwen3 => &llama::QWEN3,
            Self::Gemma2 => &gemma::GEMMA2,
            Self::Gemma3 => &gemma::GEMMA3,
            Self::Phi => &phi::PHI,
            Self::Phi3 => &phi3::PHI3,
            Self::Olmo2 => &olmo2::OLMO2,
        }
    }

    /// Its `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        self.mapping().model_type
    }

    /// Reads `model_type`.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ConfigError> {
        let found = fields.optional_text("model_type")?;
        let known = Self::ALL
            .into_iter()
            .find(|family| Some(family.model_type()) == found.as_deref());
        known.ok_or_else(|| ConfigError::Unsupported {
            key: "model_type".to_owned(),
            found: found.map_or("nothing".to_owned(), |found| format!("`{found}`")),
            reason: format!(
                "expected one of {}",
                Self::ALL.map(Self::model_type).join(", ")
            ),
        })
    }
}
