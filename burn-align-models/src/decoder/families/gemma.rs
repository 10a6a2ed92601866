//! Gemma 2 (arXiv 2408.00118), and the text model of Gemma 3 (arXiv 2503.19786).

use serde_json::Value;

use super::read::{self, Keys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{DecoderConfig, Positions, QkNorm};
use crate::dims::ModelDims;
use crate::nn::{Activation, NormKind};
use crate::pretrained::{
    ConfigError, Fields, RotaryDefaults, check_even, read_rotary_kinds, write_dims,
};

pub(super) const GEMMA2: Mapping = mapping("gemma2", read_gemma2, write_gemma2);
pub(super) const GEMMA3: Mapping = mapping("gemma3_text", read_gemma3, write_gemma3);

const fn mapping(
    model_type: &'static str,
    read: fn(&mut Fields) -> Result<DecoderConfig, ConfigError>,
    write: fn(&DecoderConfig) -> Value,
) -> Mapping {
    Mapping {
        model_type,
        read,
        write,
        prefix: "model.",
        names: &[
            read::EMBEDDING,
            read::FINAL_NORM,
            &[
                ("layers.*.attention_norm", "layers.*.input_layernorm"),
                ("layers.*.mlp_norm", "layers.*.pre_feedforward_layernorm"),
            ],
            read::POST_NORMS,
            read::QKV,
            read::QK_NORM,
            read::OUTPUT,
            read::GATED_MLP,
        ],
        input_first: false,
        is_buffer: read::is_rotary_table,
    }
}

const KEYS: Keys = Keys {
    norm_epsilon: ("rms_norm_eps", 1e-6),
    activation: ("hidden_activation", Activation::GeluTanh),
    tied: true,
};

/// What both have. Without `layer_types`, `windowed` says which layers have a window.
fn read_config(
    fields: &mut Fields,
    family: DecoderFamily,
    dims: ModelDims,
    positions: Positions,
    windowed: fn(layer: usize, period: usize) -> bool,
) -> Result<DecoderConfig, ConfigError> {
    // Keys of published models that no release reads, and one that decides on memory alone.
    fields.optional_text("hidden_act")?;
    fields.optional_index("sliding_window_size")?;
    fields.optional_text("cache_implementation")?;
    // `transformers` saves its default here, whatever `layer_types` is.
    fields.optional_index("_sliding_window_pattern")?;
    fields.only("use_bidirectional_attention", &[false.into()])?;

    let mut config = read::config(fields, family, dims, positions, &KEYS)?;
    config.norm = NormKind::RmsPlusOne;
    config.dims.post_norms = true;
    config.embedding_scale = Some((config.dims.d_model as f64).sqrt());
    let scalar = fields.optional_positive("query_pre_attn_scalar")?;
    config.score_scale = scalar.unwrap_or(256.0).sqrt().recip();
    let attention_bias = fields.flag("attention_bias", false)?;
    config.biases.qkv = attention_bias;
    config.biases.output = attention_bias;

    const WINDOW: &str = "sliding_window";
    let layers = config.dims.layers;
    let size = fields.size_or(WINDOW, Some(4096))?;
    let period = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let by_period = || (0..layers).map(|layer| windowed(layer, period)).collect();
    let windowed = read::layer_types(fields, layers)?.unwrap_or_else(by_period);
    config.sliding_window = match size {
        Some(size) => read::window(size, windowed),
        None if windowed.contains(&true) => {
            let key = WINDOW.to_owned();
            return Err(ConfigError::Missing { key });
        }
        None => None,
    };
    Ok(config)
}

fn write_config(config: &DecoderConfig, architecture: &str) -> Value {
    let mut json = read::to_json(config, architecture, &KEYS);
    write_dims(&mut json, &config.dims);
    read::put_rotary(&mut json, config, "rope_theta");
    json["query_pre_attn_scalar"] = scalar(config.score_scale);
    json["attention_bias"] = config.biases.qkv.into();
    json["attn_logit_softcapping"] = config.score_cap.into();
    json["final_logit_softcapping"] = config.logit_cap.into();
    let windowed: Vec<bool> = (0..config.dims.layers)
        .map(|layer| config.is_windowed(layer))
        .collect();
    json["layer_types"] = read::layer_types_json(&windowed);
    if let Some(window) = &config.sliding_window {
        json["sliding_window"] = window.size.into();
    }
    json
}

/// A number whose power of -1/2 is `scale`, to the last bit if there is one.
fn scalar(scale: f64) -> Value {
    let is_it = |scalar: f64| scalar.sqrt().recip() == scale;
    let scalar = (scale * scale).recip();
    let whole = scalar.round();
    if (scalar - whole).abs() <= 1e-9 * whole && is_it(whole) {
        return (whole as u64).into();
    }
    let bits = scalar.to_bits();
    let mut near = (bits.saturating_sub(8)..=bits.saturating_add(8)).map(f64::from_bits);
    near.find(|scalar| is_it(*scalar)).unwrap_or(scalar).into()
}

fn read_gemma2(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let dims = read::dims(fields, Some(4), Some(256))?;
    let rotary = fields.rotary_or(dims.d_head, 10000.0, None)?;
    let (family, positions) = (DecoderFamily::Gemma2, read::everywhere(rotary));
    let mut config = read_config(fields, family, dims, positions, |layer: usize, _| {
        layer.is_multiple_of(2)
    })?;
    // `null` stands for no cap, and an absent key does not.
    let mut cap = |key: &str, default: f64| -> Result<Option<f64>, ConfigError> {
        let default = (!fields.has(key)).then_some(default);
        Ok(fields.optional_positive(key)?.or(default))
    };
    config.score_cap = cap("attn_logit_softcapping", 50.0)?;
    config.logit_cap = cap("final_logit_softcapping", 30.0)?;
    Ok(config)
}

fn write_gemma2(config: &DecoderConfig) -> Value {
    write_config(config, "Gemma2ForCausalLM")
}

fn read_gemma3(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let dims = read::dims(fields, Some(4), Some(256))?;
    check_even(dims.d_head)?;
    let defaults = RotaryDefaults {
        d_head: dims.d_head,
        max_positions: fields.size("max_position_embeddings")?,
        theta: 1e6,
        partial: None,
    };
    let [global, local] = read_rotary_kinds(fields, &defaults, 10000.0)?;
    let local = Some(local);
    let (family, positions) = (DecoderFamily::Gemma3, Positions::Rotary { global, local });
    let windowed = |layer: usize, period: usize| !(layer + 1).is_multiple_of(period);
    let mut config = read_config(fields, family, dims, positions, windowed)?;
    config.qk_norm = Some(QkNorm {
        kind: NormKind::RmsPlusOne,
        all_heads: false,
    });
    // Stored by `transformers`, and not passed on to its attention.
    fields.optional_number("attn_logit_softcapping")?;
    config.logit_cap = fields.optional_positive("final_logit_softcapping")?;
    Ok(config)
}

fn write_gemma3(config: &DecoderConfig) -> Value {
    let mut json = write_config(config, "Gemma3ForCausalLM");
    if let Positions::Rotary {
        local: Some(local), ..
    } = &config.positions
    {
        json["rope_local_base_freq"] = local.theta.into();
    }
    json
}
