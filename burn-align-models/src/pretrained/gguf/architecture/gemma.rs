//! Gemma 2, and the text part of Gemma 3.

use serde_json::{Value, json};

use super::super::{GgufError, MetadataArray, MetadataValue};
use super::{Architecture, Reader, Role, Target, gated, rotary};

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    config: gemma2_config,
    tensor: |_, name| Ok(role(name)),
};

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    config: gemma3_config,
    tensor: |_, name| Ok(role(name)),
};

/// The base of the frequencies of layers with a window.
const LOCAL_BASE: &str = "rope.freq_base_swa";

fn gemma2_config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    // The size that llama.cpp calls 27B.
    let mut config = config(reader, "gemma2", 46)?;
    let layers = reader.layers()?;
    config["sliding_window"] = reader
        .optional_size("attention.sliding_window")?
        .unwrap_or(4096)
        .into();
    config["layer_types"] = layer_types(&windowed(reader, layers, 2)?);
    config["attn_logit_softcapping"] = cap(reader, "attn_logit_softcapping")?
        .unwrap_or(50.0)
        .into();
    config["final_logit_softcapping"] = cap(reader, "final_logit_softcapping")?
        .unwrap_or(30.0)
        .into();
    let theta = config["rope_theta"].as_f64();
    if let Some(local) = reader.optional_float(LOCAL_BASE)?
        && Some(local) != theta
    {
        return Err(reader.wrong(LOCAL_BASE, "the same base as for the other layers"));
    }
    Ok(config)
}

fn gemma3_config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    let mut config = config(reader, "gemma3_text", 62)?;
    let layers = reader.layers()?;
    let window = reader.optional_size("attention.sliding_window")?;
    let window = window.filter(|window| *window > 0);
    let windowed = match window {
        Some(_) => windowed(reader, layers, 6)?,
        None => vec![false; layers],
    };
    // `transformers` needs a number even if no layer has a window: its default.
    config["sliding_window"] = window.unwrap_or(4096).into();
    config["layer_types"] = layer_types(&windowed);
    config["rope_local_base_freq"] = reader.optional_float(LOCAL_BASE)?.unwrap_or(10000.0).into();
    config["attn_logit_softcapping"] = Value::Null;
    config["final_logit_softcapping"] = cap(reader, "final_logit_softcapping")?.into();
    Ok(config)
}

/// What both have; the model with `divided` layers divides its scores by the width per head.
fn config(reader: &Reader<'_>, model_type: &str, divided: usize) -> Result<Value, GgufError> {
    let d_head = gated::d_head(reader)?;
    let mut config = gated::config(reader, model_type)?;
    config["head_dim"] = d_head.into();
    config["hidden_activation"] = "gelu_pytorch_tanh".into();
    config["attention_bias"] = reader.has("blk.0.attn_q.bias").into();
    // The file does not have it: llama.cpp tells the models apart by their number of layers.
    config["query_pre_attn_scalar"] = match reader.layers()? == divided {
        true => (reader.size("embedding_length")? / gated::heads(reader)?).into(),
        false => d_head.into(),
    };
    rotary::write(reader, &mut config, d_head)?;
    Ok(config)
}

fn cap(reader: &Reader<'_>, key: &str) -> Result<Option<f64>, GgufError> {
    match reader.optional_float(key)? {
        Some(cap) if cap.is_nan() || cap <= 0.0 => Err(reader.wrong(key, "a number above 0")),
        cap => Ok(cap),
    }
}

/// Which layers have a window: all but each last one of `period` layers, unless the file says
/// something else.
fn windowed(reader: &Reader<'_>, layers: usize, period: usize) -> Result<Vec<bool>, GgufError> {
    const KEY: &str = "attention.sliding_window_pattern";
    if let Some(MetadataValue::Array(array)) = reader.gguf.metadata().get(&reader.key(KEY)) {
        let of_layers = match array {
            MetadataArray::Bool(windowed) => Some(windowed.clone()),
            _ => {
                let windowed = reader.gguf.metadata().integers(&reader.key(KEY))?;
                windowed.map(|windowed| windowed.iter().map(|number| *number != 0).collect())
            }
        };
        let of_layers = of_layers.filter(|windowed| windowed.len() == layers);
        let expected = || format!("a period, or {layers} entries, one for each layer");
        return of_layers.ok_or_else(|| reader.wrong(KEY, expected()));
    }
    let period = match reader.optional_size(KEY)? {
        Some(period) => usize::try_from(period).unwrap_or(usize::MAX),
        None => period,
    };
    // A period of 0: all of them.
    let windowed = |layer: usize| period == 0 || layer % period < period - 1;
    Ok((0..layers).map(windowed).collect())
}

fn layer_types(windowed: &[bool]) -> Value {
    let types = windowed.iter().map(|windowed| match windowed {
        true => "sliding_attention",
        false => "full_attention",
    });
    json!(types.collect::<Vec<_>>())
}

fn role(name: &str) -> Option<Role> {
    if rotary::is_table(name) {
        return Some(Role::Configuration);
    }
    let target = gated::name(name, |module| match module {
        "attn_norm" => Some("input_layernorm"),
        "post_attention_norm" => Some("post_attention_layernorm"),
        "ffn_norm" => Some("pre_feedforward_layernorm"),
        "post_ffw_norm" => Some("post_feedforward_layernorm"),
        _ => gated::projection(module),
    })?;
    // A norm multiplies by the weight of the file, and in Hugging Face's form by 1 + its weight.
    let offset = if target.ends_with("norm.weight") {
        -1.0
    } else {
        0.0
    };
    Some(Target::named(target).with_offset(offset).into())
}
