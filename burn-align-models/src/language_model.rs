//! A language model of whichever family a checkpoint holds.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::dims::ModelDims;
use crate::gpt2::{Gpt2, Gpt2Config};
use crate::halves::BlockHalves;
use crate::llama::{Llama, LlamaConfig};
use crate::model::{AlignableTransformer, InputKinds, ModelInput};
use crate::nn::CausalPass;
use crate::pretrained::{
    ConfigError, Fields, FromPretrained, LoadError, LoadOptions, Pretrained, Repository, SaveError,
    SavePretrained,
};
use crate::suffixes::Suffixes;
use crate::tap::Tap;
use crate::tokens::Tokenizer;

/// A language model of any family, chosen by the `model_type` of its `config.json`.
///
/// ```
/// use burn::tensor::DType;
/// use burn_align_models::{AlignableTransformer, FromPretrained, LanguageModel, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// // A folder, the name of a model on the hub, or one that is part of this crate.
/// let options = LoadOptions::default().with_dtype(DType::BF16);
/// let device = Default::default();
/// let loaded = LanguageModel::<B>::from_pretrained("bundled:price-tagging", &options, &device)?;
/// assert!(matches!(loaded.model, LanguageModel::Llama(_)));
/// assert_eq!(loaded.model.dims().layers, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub enum LanguageModel<B: Backend> {
    /// GPT-2.
    Gpt2(Gpt2<B>),
    /// LLaMA, Mistral or Qwen2.
    Llama(Llama<B>),
}

/// The configuration of a [`LanguageModel`].
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageModelConfig {
    /// Of a GPT-2.
    Gpt2(Gpt2Config),
    /// Of a LLaMA, Mistral or Qwen2.
    Llama(LlamaConfig),
}

/// Calls the same method on the model of the family.
macro_rules! of_any_family {
    ($self:ident, $model:ident => $call:expr) => {
        match $self {
            LanguageModel::Gpt2($model) => $call,
            LanguageModel::Llama($model) => $call,
        }
    };
}

impl<B: Backend> LanguageModel<B> {
    /// The same model with or without the backend's fused attention; see
    /// [`Gpt2::with_fused_attention`].
    pub fn with_fused_attention(self, fused: bool) -> Self {
        match self {
            Self::Gpt2(model) => Self::Gpt2(model.with_fused_attention(fused)),
            Self::Llama(model) => Self::Llama(model.with_fused_attention(fused)),
        }
    }

    /// The token embedding, `[vocab, d_model]`.
    pub fn token_embedding(&self) -> Tensor<B, 2> {
        match self {
            Self::Gpt2(model) => model.wte.weight.val(),
            Self::Llama(model) => model.embed_tokens.weight.val(),
        }
    }
}

impl<B: Backend> AlignableTransformer<B> for LanguageModel<B> {
    type Pass = CausalPass<B>;

    fn dims(&self) -> &ModelDims {
        of_any_family!(self, model => model.dims())
    }

    fn device(&self) -> B::Device {
        of_any_family!(self, model => model.device())
    }

    fn input_kinds(&self) -> InputKinds {
        of_any_family!(self, model => model.input_kinds())
    }

    fn begin(&self, pos: usize, device: &B::Device) -> CausalPass<B> {
        of_any_family!(self, model => model.begin(pos, device))
    }

    fn pass_bytes(&self, pos: usize) -> u64 {
        of_any_family!(self, model => model.pass_bytes(pos))
    }

    fn computes_suffixes(&self) -> bool {
        of_any_family!(self, model => model.computes_suffixes())
    }

    fn begin_suffixes(&self, pass: &CausalPass<B>, suffixes: Suffixes<B>) -> CausalPass<B> {
        of_any_family!(self, model => model.begin_suffixes(pass, suffixes))
    }

    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        of_any_family!(self, model => model.embed(input, tap))
    }

    fn halves(&self) -> Option<&dyn BlockHalves<B, CausalPass<B>>> {
        of_any_family!(self, model => model.halves())
    }

    fn block(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        of_any_family!(self, model => model.block(layer, x, pass, tap))
    }

    fn final_norm(&self, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        of_any_family!(self, model => model.final_norm(x, tap))
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        of_any_family!(self, model => model.unembed(x))
    }

    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        of_any_family!(self, model => model.head_output(layer, head, mixed))
    }

    fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        streams: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Option<Tensor<B, 3>> {
        of_any_family!(self, model => model.head_mixed(layer, head, streams, pass))
    }
}

impl<B: Backend> FromPretrained<B> for LanguageModel<B> {
    type Config = LanguageModelConfig;

    fn from_repository(
        repository: &Repository,
        mut fields: Fields,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<Self, LanguageModelConfig>, LoadError> {
        let model_type = fields
            .optional_text("model_type")
            .map_err(|error| repository.config_error(error))?;
        match model_type.as_deref() {
            Some("gpt2") => {
                let loaded = Gpt2::from_repository(repository, fields, options, device)?;
                Ok(loaded.map(Self::Gpt2, LanguageModelConfig::Gpt2))
            }
            Some("llama" | "mistral" | "qwen2") => {
                let loaded = Llama::from_repository(repository, fields, options, device)?;
                Ok(loaded.map(Self::Llama, LanguageModelConfig::Llama))
            }
            found => Err(repository.config_error(ConfigError::Unsupported {
                key: "model_type".to_owned(),
                found: found.map_or("nothing".to_owned(), |found| format!("`{found}`")),
                reason: "expected gpt2, llama, mistral or qwen2".to_owned(),
            })),
        }
    }
}

impl<B: Backend> SavePretrained<B> for LanguageModel<B> {
    /// # Panics
    /// If the configuration belongs to a different family than the model.
    fn save_pretrained(
        &self,
        config: &LanguageModelConfig,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError> {
        match (self, config) {
            (Self::Gpt2(model), LanguageModelConfig::Gpt2(config)) => {
                model.save_pretrained(config, tokenizer, folder)
            }
            (Self::Llama(model), LanguageModelConfig::Llama(config)) => {
                model.save_pretrained(config, tokenizer, folder)
            }
            _ => panic!("the configuration belongs to a different family than the model"),
        }
    }
}
