//! LLaMA (arXiv 2302.13971), Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671) and Qwen3
//! (arXiv 2505.09388).

use serde_json::Value;

use super::read::{self, Keys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{Biases, DecoderConfig, QkNorm, SlidingWindow};
use crate::nn::{Activation, NormKind};
use crate::pretrained::{ConfigError, Fields, write_dims};

pub(super) const LLAMA: Mapping = mapping("llama", read_llama, write_llama);
pub(super) const MISTRAL: Mapping = mapping("mistral", read_mistral, write_mistral);
pub(super) const QWEN2: Mapping = mapping("qwen2", read_qwen2, write_qwen2);
pub(super) const QWEN3: Mapping = mapping("qwen3", read_qwen3, write_qwen3);

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
            read::PRE_NORMS,
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
    activation: ("hidden_act", Activation::Silu),
    tied: false,
};

/// What all four have; for the defaults see [`read::dims`].
fn read_config(
    fields: &mut Fields,
    family: DecoderFamily,
    default_kv_heads: Option<usize>,
    default_d_head: Option<usize>,
) -> Result<DecoderConfig, ConfigError> {
    let dims = read::dims(fields, default_kv_heads, default_d_head)?;
    let rotary = fields.rotary_or(dims.d_head, 10000.0, None)?;
    read::config(fields, family, dims, read::everywhere(rotary), &KEYS)
}

fn write_config(config: &DecoderConfig, architecture: &str) -> Value {
    let mut json = read::to_json(config, architecture, &KEYS);
    write_dims(&mut json, &config.dims);
    read::put_rotary(&mut json, config, "rope_theta");
    json
}

fn read_llama(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = read_config(fields, DecoderFamily::Llama, None, None)?;
    let attention_bias = fields.flag("attention_bias", false)?;
    config.biases = Biases {
        qkv: attention_bias,
        output: attention_bias,
        mlp: fields.flag("mlp_bias", false)?,
        head: false,
    };
    read::only_layer_types(fields, read::FULL)?;
    Ok(config)
}

fn write_llama(config: &DecoderConfig) -> Value {
    let mut json = write_config(config, "LlamaForCausalLM");
    json["attention_bias"] = config.biases.qkv.into();
    json["mlp_bias"] = config.biases.mlp.into();
    json
}

fn read_mistral(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = read_config(fields, DecoderFamily::Mistral, Some(8), None)?;
    config.sliding_window = read::window_of_all(fields, config.dims.layers, Some(4096))?;
    Ok(config)
}

fn write_mistral(config: &DecoderConfig) -> Value {
    let mut json = write_config(config, "MistralForCausalLM");
    // Not left out, since that stands for a window of 4096.
    json["sliding_window"] = config.sliding_window.as_ref().map(|it| it.size).into();
    json
}

fn read_qwen2(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = read_config(fields, DecoderFamily::Qwen2, None, None)?;
    config.biases.qkv = true;
    config.sliding_window = read_upper_window(fields, config.dims.layers)?;
    Ok(config)
}

fn write_qwen2(config: &DecoderConfig) -> Value {
    let mut json = write_config(config, "Qwen2ForCausalLM");
    put_upper_window(&mut json, config);
    json
}

fn read_qwen3(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = read_config(fields, DecoderFamily::Qwen3, Some(32), Some(128))?;
    config.qk_norm = Some(QkNorm {
        kind: NormKind::Rms,
        all_heads: false,
    });
    let attention_bias = fields.flag("attention_bias", false)?;
    config.biases.qkv = attention_bias;
    config.biases.output = attention_bias;
    config.sliding_window = read_upper_window(fields, config.dims.layers)?;
    Ok(config)
}

fn write_qwen3(config: &DecoderConfig) -> Value {
    let mut json = write_config(config, "Qwen3ForCausalLM");
    json["attention_bias"] = config.biases.qkv.into();
    put_upper_window(&mut json, config);
    json
}

/// A window that is switched on by a key, by default of the upper layers.
fn read_upper_window(
    fields: &mut Fields,
    layers: usize,
) -> Result<Option<SlidingWindow>, ConfigError> {
    let used = fields.flag("use_sliding_window", false)?;
    let size = fields.size_or("sliding_window", Some(4096))?;
    let first = fields.optional_index("max_window_layers")?.unwrap_or(28);
    let Some(size) = size.filter(|_| used) else {
        read::only_layer_types(fields, read::FULL)?;
        return Ok(None);
    };
    let windowed = read::layer_types(fields, layers)?;
    let windowed = windowed.unwrap_or_else(|| (0..layers).map(|layer| layer >= first).collect());
    Ok(read::window(size, windowed))
}

fn put_upper_window(json: &mut Value, config: &DecoderConfig) {
    json["use_sliding_window"] = config.sliding_window.is_some().into();
    if let Some(window) = &config.sliding_window {
        json["sliding_window"] = window.size.into();
        json["layer_types"] = read::layer_types_json(&window.layers);
    }
}
