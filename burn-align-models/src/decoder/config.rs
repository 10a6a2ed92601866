//! The knobs of a decoder.

use burn::tensor::{DType, backend::Backend};
use serde_json::Value;

use super::{Decoder, DecoderFamily};
use crate::dims::ModelDims;
use crate::layout::ModelLayout;
use crate::nn::{
    Activation, NormKind, ParamInit, QkNorm, QkvLayout, RotaryConfig, SelfAttentionConfig,
};
use crate::pretrained::{ConfigError, Fields};

/// The configuration of a [`Decoder`]: what its blocks compute, whatever its family calls it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family, which decides how the model is stored.
    pub family: DecoderFamily,
    /// The model's sizes.
    pub dims: ModelDims,
    /// The kind of all norms, except those of queries and keys.
    pub norm: NormKind,
    /// Added to the variance or the mean square in norms.
    pub norm_epsilon: f64,
    /// Whether attention and MLP read the residual stream through a norm.
    pub pre_norms: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// How the projections to queries, keys and values are stored.
    pub qkv: QkvLayout,
    /// Which projections have biases.
    pub biases: Biases,
    /// How positions enter.
    pub positions: Positions,
    /// Limit on how far back some layers look.
    pub sliding_window: Option<SlidingWindow>,
    /// Factor on query-key products.
    pub score_scale: f64,
    /// Whether that factor is divided by the layer's number, counted from 1.
    pub score_scale_by_layer: bool,
    /// Scores are limited to `±cap` as `cap · tanh(score / cap)`.
    pub score_cap: Option<f64>,
    /// The MLP's activation function; in a gated MLP, the gate's.
    pub activation: Activation,
    /// Whether a gated MLP stores gate and up projection as one matrix.
    pub fused_gate_up: bool,
    /// What the two halves of a block read.
    pub residual: Residual,
    /// Factor on the token embedding.
    pub embedding_scale: Option<f64>,
    /// Logits are limited to `±cap` as `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f64>,
    /// Whether the unembedding is the transposed token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

/// Which projections have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The attention's output projection.
    pub output: bool,
    /// The MLP's projections.
    pub mlp: bool,
    /// The unembedding, if it is not tied.
    pub head: bool,
}

/// How positions enter a decoder.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each of this many positions is added to the token embedding.
    Learned(usize),
    /// Queries and keys are rotated. If [`RotaryConfig::d_head`] is less than a head's width, the
    /// features after it are not.
    Rotary {
        /// The rotation of all layers, or of those without a window if there is a local one.
        global: RotaryConfig,
        /// The rotation of layers with a window.
        local: Option<RotaryConfig>,
    },
}

/// What the two halves of a block read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// The MLP reads what the attention has added to.
    Sequential,
    /// Both read the block's input.
    Parallel {
        /// Whether they share one norm.
        shared_norm: bool,
    },
}

/// A limit on how far back attention looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Number of positions that a query sees, itself included.
    pub size: usize,
    /// Which layers have this limit: an entry for each layer.
    pub layers: Vec<bool>,
}

impl DecoderConfig {
    /// Reads a `config.json`; its `model_type` names the family.
    ///
    /// # Errors
    /// If a value is missing, wrong or not supported, or an unknown key may change what the model
    /// computes.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
        let mut fields = Fields::parse(&json.to_string(), &[])?;
        let config = Self::read(&mut fields)?;
        fields.finish()?;
        Ok(config)
    }

    /// Writes a `config.json`.
    pub fn to_json(&self) -> Value {
        (self.family.mapping().write)(self)
    }

    pub(super) fn read(fields: &mut Fields) -> Result<Self, ConfigError> {
        let mut config = (DecoderFamily::read(fields)?.mapping().read)(fields)?;
        config.dims = config.dims_in_step();
        Ok(config)
    }

    /// The sizes, with what follows from the rest of the configuration.
    pub(super) fn dims_in_step(&self) -> ModelDims {
        ModelDims {
            max_positions: match self.positions {
                Positions::Learned(count) => Some(count),
                Positions::Rotary { .. } => None,
            },
            rotary: matches!(self.positions, Positions::Rotary { .. }),
            qk_norm: self.qk_norm.is_some(),
            parallel: self.is_parallel(),
            ..self.dims.clone()
        }
    }

    /// Whether both halves of a block read its input.
    pub fn is_parallel(&self) -> bool {
        matches!(self.residual, Residual::Parallel { .. })
    }

    /// Whether a layer has the sliding window.
    pub fn is_windowed(&self, layer: usize) -> bool {
        let window = self.sliding_window.as_ref();
        window.is_some_and(|window| window.layers.get(layer) == Some(&true))
    }

    /// What such a model is made of.
    pub fn layout(&self) -> ModelLayout {
        let layout = ModelLayout::transformer(self.dims.clone(), |layer| self.window(layer));
        let rotary = match &self.positions {
            Positions::Rotary { global, local } => [Some(global), local.as_ref()],
            Positions::Learned(_) => [None, None],
        };
        match rotary
            .into_iter()
            .flatten()
            .any(RotaryConfig::depends_on_length)
        {
            true => layout.depending_on_length(),
            false => layout,
        }
    }

    /// How many positions a query of a layer sees, itself included, if fewer than all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self
            .sliding_window
            .as_ref()
            .filter(|_| self.is_windowed(layer));
        window.map(|window| window.size)
    }

    /// The attention of a layer.
    pub(super) fn attention(&self, layer: usize) -> SelfAttentionConfig {
        let by_layer = if self.score_scale_by_layer {
            (layer + 1) as f64
        } else {
            1.0
        };
        SelfAttentionConfig {
            qkv: self.qkv,
            qkv_bias: self.biases.qkv,
            output_bias: self.biases.output,
            output_init_scale: self.residual_scale(),
            qk_norm: self.qk_norm,
            norm_epsilon: self.norm_epsilon,
            rotary: match &self.positions {
                Positions::Learned(_) => None,
                Positions::Rotary { global, local } => {
                    let local = local.as_ref().filter(|_| self.is_windowed(layer));
                    Some(local.unwrap_or(global).clone())
                }
            },
            scale: self.score_scale / by_layer,
            cap: self.score_cap,
            window: self.window(layer),
            ..SelfAttentionConfig::new(&self.dims)
        }
    }

    /// Factor on the initial size of projections into the residual stream.
    ///
    /// In GPT-2 they are initialised smaller, so that the variance does not grow with depth: `1 /
    /// √(number of projections)` (Radford et al. 2019, §2.3).
    pub(super) fn residual_scale(&self) -> f64 {
        match self.family {
            DecoderFamily::Gpt2 => 1.0 / ((2 * self.dims.layers) as f64).sqrt(),
            _ => 1.0,
        }
    }

    /// A model in f32 with random weights drawn from seed 0.
    ///
    /// # Panics
    /// If the parts of the configuration are inconsistent; see [`check`](Self::check).
    pub fn init<B: Backend>(&self, device: &B::Device) -> Decoder<B> {
        self.init_seeded(0, DType::F32, device)
    }

    /// A model with random weights drawn from `seed`, in `dtype`.
    ///
    /// Each parameter is drawn when it is first used.
    ///
    /// # Panics
    /// As [`init`](Self::init).
    pub fn init_seeded<B: Backend>(
        &self,
        seed: u64,
        dtype: DType,
        device: &B::Device,
    ) -> Decoder<B> {
        if let Err(error) = self.check() {
            panic!("{error}");
        }
        Decoder::new(
            self,
            &mut ParamInit::new(device, dtype, seed, self.initializer_range),
        )
    }
}
