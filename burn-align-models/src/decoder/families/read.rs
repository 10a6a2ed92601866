//! What readers and writers of several families share.

use serde_json::{Value, json};

use crate::decoder::{
    Biases, DecoderConfig, DecoderFamily, Positions, QkvLayout, Residual, SlidingWindow,
};
use crate::dims::ModelDims;
use crate::nn::{Activation, NormKind, RotaryConfig};
use crate::pretrained::{ConfigError, Fields, write_rotary_as};

/// Types of layers in `layer_types`.
pub(super) const FULL: &str = "full_attention";
pub(super) const WINDOWED: &str = "sliding_attention";

/// Names of modules that several families share.
pub(super) type Names = &'static [(&'static str, &'static str)];

pub(super) const EMBEDDING: Names = &[("embedding", "embed_tokens"), ("lm_head", "lm_head")];
pub(super) const FINAL_NORM: Names = &[("final_norm", "norm")];
/// Norms before attention and MLP, in LLaMA's words.
pub(super) const PRE_NORMS: Names = &[
    ("layers.*.attention_norm", "layers.*.input_layernorm"),
    ("layers.*.mlp_norm", "layers.*.post_attention_layernorm"),
];
/// Norms after attention and MLP.
pub(super) const POST_NORMS: Names = &[
    (
        "layers.*.attention_post_norm",
        "layers.*.post_attention_layernorm",
    ),
    (
        "layers.*.mlp_post_norm",
        "layers.*.post_feedforward_layernorm",
    ),
];
pub(super) const QKV: Names = &[
    ("layers.*.attention.q", "layers.*.self_attn.q_proj"),
    ("layers.*.attention.k", "layers.*.self_attn.k_proj"),
    ("layers.*.attention.v", "layers.*.self_attn.v_proj"),
];
pub(super) const QK_NORM: Names = &[
    ("layers.*.attention.query_norm", "layers.*.self_attn.q_norm"),
    ("layers.*.attention.key_norm", "layers.*.self_attn.k_norm"),
];
pub(super) const OUTPUT: Names = &[("layers.*.attention.output", "layers.*.self_attn.o_proj")];
pub(super) const GATED_MLP: Names = &[
    ("layers.*.mlp.gate", "layers.*.mlp.gate_proj"),
    ("layers.*.mlp.up", "layers.*.mlp.up_proj"),
    ("layers.*.mlp.down", "layers.*.mlp.down_proj"),
];

/// Whether a tensor is a table of angles, which old versions of `transformers` stored.
pub(super) fn is_rotary_table(name: &str) -> bool {
    let mut parts = name.split('.');
    parts.any(|part| part.starts_with("rotary_emb"))
}

/// Keys that all families have, under different names, and their values if they are absent.
pub(super) struct Keys {
    pub(super) norm_epsilon: (&'static str, f64),
    pub(super) activation: (&'static str, Activation),
    /// `tie_word_embeddings`.
    pub(super) tied: bool,
}

/// The names of sizes in a family whose heads divide the model's width.
pub(super) struct SizeKeys {
    pub(super) d_model: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    /// `4 * d_model` if absent.
    pub(super) d_mlp: &'static str,
}

/// The configuration of a LLaMA without biases and windows, but for the values of `keys`.
pub(super) fn config(
    fields: &mut Fields,
    family: DecoderFamily,
    dims: ModelDims,
    positions: Positions,
    keys: &Keys,
) -> Result<DecoderConfig, ConfigError> {
    let (epsilon, default_epsilon) = keys.norm_epsilon;
    let (activation, default_activation) = keys.activation;
    Ok(DecoderConfig {
        family,
        norm: NormKind::Rms,
        norm_epsilon: fields.optional_number(epsilon)?.unwrap_or(default_epsilon),
        pre_norms: true,
        qk_norm: None,
        qkv: QkvLayout::Split,
        biases: Biases::default(),
        sliding_window: None,
        score_scale: score_scale(&dims),
        score_scale_by_layer: false,
        score_cap: None,
        activation: Activation::read(fields, activation, default_activation)?,
        fused_gate_up: false,
        residual: Residual::Sequential,
        embedding_scale: None,
        logit_cap: None,
        tie_word_embeddings: fields.flag("tie_word_embeddings", keys.tied)?,
        initializer_range: fields.optional_number("initializer_range")?.unwrap_or(0.02),
        dims,
        positions,
    })
}

/// The usual factor on scores.
pub(super) fn score_scale(dims: &ModelDims) -> f64 {
    (dims.d_head as f64).sqrt().recip()
}

/// The sizes of a model with a gated MLP. Without a default, there are as many key-value heads as
/// query heads, and heads divide the model's width.
pub(super) fn dims(
    fields: &mut Fields,
    default_kv_heads: Option<usize>,
    default_d_head: Option<usize>,
) -> Result<ModelDims, ConfigError> {
    Ok(ModelDims {
        gated_mlp: true,
        ..fields.dims_or(default_kv_heads, default_d_head)?
    })
}

/// Sizes of a model with an MLP without a gate, whose heads divide its width and have their own
/// keys and values.
pub(super) fn multi_head(fields: &mut Fields, keys: &SizeKeys) -> Result<ModelDims, ConfigError> {
    let d_model = fields.size(keys.d_model)?;
    let heads = fields.size(keys.heads)?;
    if !d_model.is_multiple_of(heads) {
        return Err(ConfigError::Invalid {
            key: keys.heads.to_owned(),
            expected: format!("a divisor of {} = {d_model}", keys.d_model),
            found: heads.to_string(),
        });
    }
    Ok(ModelDims {
        heads,
        kv_heads: heads,
        d_head: d_model / heads,
        d_mlp: fields.optional_size(keys.d_mlp)?.unwrap_or(4 * d_model),
        vocab: fields.size("vocab_size")?,
        ..ModelDims::features(fields.layers(keys.layers)?, d_model, 0)
    })
}

/// The same rotation in all layers.
pub(super) fn everywhere(global: RotaryConfig) -> Positions {
    Positions::Rotary {
        global,
        local: None,
    }
}

/// Checks that `layer_types`, if present, has the same type for every layer: the one that is
/// computed.
pub(super) fn only_layer_types(fields: &mut Fields, kind: &str) -> Result<(), ConfigError> {
    let types = fields.optional_texts("layer_types")?.unwrap_or_default();
    match types.into_iter().find(|found| found != kind) {
        None => Ok(()),
        Some(found) => Err(ConfigError::Unsupported {
            key: "layer_types".to_owned(),
            found: format!("`{found}`"),
            reason: format!("all layers of this model are of type `{kind}`"),
        }),
    }
}

/// Which layers have a window, if `layer_types` says so.
pub(super) fn layer_types(
    fields: &mut Fields,
    layers: usize,
) -> Result<Option<Vec<bool>>, ConfigError> {
    let types = fields.optional_texts("layer_types")?;
    let types = types.map(|types| by_kind("layer_types", &types, layers, [FULL, WINDOWED]));
    types.transpose()
}

/// Whether each layer is of the second kind.
pub(super) fn by_kind(
    key: &str,
    found: &[String],
    layers: usize,
    kinds: [&str; 2],
) -> Result<Vec<bool>, ConfigError> {
    let invalid = |expected: String, found: String| ConfigError::Invalid {
        key: key.to_owned(),
        expected,
        found,
    };
    if found.len() != layers {
        let expected = format!("{layers} entries, one for each layer");
        return Err(invalid(expected, found.len().to_string()));
    }
    let second = |kind: &String| match kinds.iter().position(|known| known == kind) {
        Some(index) => Ok(index == 1),
        None => Err(invalid(kinds.join(" or "), format!("`{kind}`"))),
    };
    found.iter().map(second).collect()
}

/// The window of these layers, if any has one.
pub(super) fn window(size: usize, layers: Vec<bool>) -> Option<SlidingWindow> {
    let any = layers.contains(&true);
    any.then_some(SlidingWindow { size, layers })
}

/// The window of families in which all layers have the same; `default` if the key is absent.
pub(super) fn window_of_all(
    fields: &mut Fields,
    layers: usize,
    default: Option<usize>,
) -> Result<Option<SlidingWindow>, ConfigError> {
    let size = fields.size_or("sliding_window", default)?;
    only_layer_types(fields, if size.is_some() { WINDOWED } else { FULL })?;
    Ok(size.and_then(|size| window(size, vec![true; layers])))
}

/// What [`config`] reads, as JSON.
pub(super) fn to_json(config: &DecoderConfig, architecture: &str, keys: &Keys) -> Value {
    let mut json = json!({
        "architectures": [architecture],
        "model_type": config.family.model_type(),
        "vocab_size": config.dims.vocab,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
    });
    json[keys.norm_epsilon.0] = config.norm_epsilon.into();
    json[keys.activation.0] = config.activation.to_string().into();
    json
}

/// Adds what [`multi_head`] reads.
pub(super) fn put_multi_head(json: &mut Value, dims: &ModelDims, keys: &SizeKeys) {
    json[keys.d_model] = dims.d_model.into();
    json[keys.layers] = dims.layers.into();
    json[keys.heads] = dims.heads.into();
    json[keys.d_mlp] = dims.d_mlp.into();
}

/// The rotation of all layers, or of those without a window.
pub(super) fn global(config: &DecoderConfig) -> Option<&RotaryConfig> {
    match &config.positions {
        Positions::Rotary { global, .. } => Some(global),
        Positions::Learned(_) => None,
    }
}

/// Adds what [`Fields::rotary`] reads, without the rotated share; the base of the frequencies under
/// `theta`.
pub(super) fn put_rotary(json: &mut Value, config: &DecoderConfig, theta: &str) {
    if let Some(rotary) = global(config) {
        write_rotary_as(json, rotary, theta);
    }
}

/// The share of the features of a head that are rotated. Multiplied by their number and rounded
/// down, it gives the number of rotated ones.
pub(super) fn rotated_share(config: &DecoderConfig) -> f64 {
    let d_head = config.dims.d_head as f64;
    let rotated = global(config).map_or(0, |rotary| rotary.d_head) as f64;
    let share = rotated / d_head;
    match share * d_head < rotated {
        true => share.next_up(),
        false => share,
    }
}

/// `layer_types` of layers with and without a window.
pub(super) fn layer_types_json(windowed: &[bool]) -> Value {
    let kind = |windowed: &bool| if *windowed { WINDOWED } else { FULL };
    windowed.iter().map(kind).collect()
}
