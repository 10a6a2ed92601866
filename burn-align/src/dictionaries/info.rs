//! What is known about a dictionary besides its weights.

use std::fmt;

use super::HookPoint;

/// Who wrote a dictionary's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DictionaryFormat {
    /// SAELens: `cfg.json` and `sae_weights.safetensors`.
    SaeLens,
    /// Gemma Scope: `params.npz`.
    GemmaScope,
    /// Gemma Scope 2: `params.safetensors`.
    GemmaScope2,
    /// Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.
    LlamaScope,
    /// dictionary_learning: `config.json` and `ae.pt`.
    DictionaryLearning,
    /// EleutherAI's sparsify: `cfg.json` and `sae.safetensors`.
    Sparsify,
    /// circuit-tracer: a safetensors file for each layer.
    CircuitTracer,
    /// Qwen Scope: a file `layerN.sae.pt` for each layer.
    QwenScope,
    /// A state dict of PyTorch with two linear layers.
    LinearLayers,
    /// A state dict with a `_cfg.json` beside it (Kissane et al. 2024, arXiv 2406.17759).
    AttentionOutputs,
}

impl fmt::Display for DictionaryFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SaeLens => "SAELens",
            Self::GemmaScope => "Gemma Scope",
            Self::GemmaScope2 => "Gemma Scope 2",
            Self::LlamaScope => "Llama Scope",
            Self::DictionaryLearning => "dictionary_learning",
            Self::Sparsify => "sparsify",
            Self::CircuitTracer => "circuit-tracer",
            Self::QwenScope => "Qwen Scope",
            Self::LinearLayers => "linear layers of PyTorch",
            Self::AttentionOutputs => "attention output SAEs",
        })
    }
}

/// What is known about a dictionary besides its weights. Only what the files say or their path
/// implies; nothing is guessed from the shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DictionaryInfo {
    /// Who wrote the files; `None` for a dictionary that was not loaded.
    pub format: Option<DictionaryFormat>,
    /// The model, as the publisher names it.
    pub model: Option<String>,
    /// The activation that is read.
    pub input: Option<HookPoint>,
    /// The activation that a transcoder reconstructs.
    pub output: Option<HookPoint>,
    /// The text that it was trained on.
    pub dataset: Option<String>,
    /// The number of tokens in a row of that text.
    pub context_size: Option<usize>,
    /// Whether rows began with the beginning-of-sequence token. Features of that token, and of
    /// texts without it, are otherwise off-distribution.
    pub prepend_bos: Option<bool>,
    /// Keys of the configuration that are unknown to this crate, with their values. Their names do
    /// not suggest an effect on the computation.
    pub notes: Vec<String>,
}

impl DictionaryInfo {
    /// The model.
    pub fn with_model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// The activation that is read.
    pub fn with_input(mut self, input: HookPoint) -> Self {
        self.input = Some(input);
        self
    }

    /// The activation that a transcoder reconstructs.
    pub fn with_output(mut self, output: HookPoint) -> Self {
        self.output = Some(output);
        self
    }

    /// The text that it was trained on, and the tokens in a row of it.
    pub fn with_dataset(mut self, dataset: impl Into<String>, context_size: usize) -> Self {
        self.dataset = Some(dataset.into());
        self.context_size = Some(context_size);
        self
    }

    /// Whether rows began with the beginning-of-sequence token.
    pub fn with_prepend_bos(mut self, prepend_bos: bool) -> Self {
        self.prepend_bos = Some(prepend_bos);
        self
    }
}
