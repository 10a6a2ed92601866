//! GPT-Neo (Black et al., 2021, <https://doi.org/10.5281/zenodo.5297715>).

use serde_json::{Value, json};

use super::read::{self, Keys, SizeKeys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{Biases, DecoderConfig, Positions};
use crate::nn::{Activation, NormKind};
use crate::pretrained::{ConfigError, Fields};

pub(super) const GPT_NEO: Mapping = Mapping {
    model_type: "gpt_neo",
    read: read_config,
    write,
    prefix: "transformer.",
    names: &[&[
        ("embedding", "wte"),
        ("positions", "wpe"),
        ("layers.*.attention_norm", "h.*.ln_1"),
        ("layers.*.attention.q", "h.*.attn.attention.q_proj"),
        ("layers.*.attention.k", "h.*.attn.attention.k_proj"),
        ("layers.*.attention.v", "h.*.attn.attention.v_proj"),
        ("layers.*.attention.output", "h.*.attn.attention.out_proj"),
        ("layers.*.mlp_norm", "h.*.ln_2"),
        ("layers.*.mlp.up", "h.*.mlp.c_fc"),
        ("layers.*.mlp.down", "h.*.mlp.c_proj"),
        ("final_norm", "ln_f"),
        ("lm_head", "lm_head"),
    ]],
    input_first: false,
    // Causal masks.
    is_buffer: |name| {
        name.ends_with(".attn.attention.bias") || name.ends_with(".attn.attention.masked_bias")
    },
};

const KEYS: Keys = Keys {
    norm_epsilon: ("layer_norm_epsilon", 1e-5),
    activation: ("activation_function", Activation::GeluTanh),
    tied: true,
};

const SIZES: SizeKeys = SizeKeys {
    d_model: "hidden_size",
    layers: "num_layers",
    heads: "num_heads",
    d_mlp: "intermediate_size",
};

/// Kinds of layers: without and with a window.
const KINDS: [&str; 2] = ["global", "local"];

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let dims = read::multi_head(fields, &SIZES)?;
    let positions = Positions::Learned(fields.size("max_position_embeddings")?);
    let mut config = read::config(fields, DecoderFamily::GptNeo, dims, positions, &KEYS)?;
    config.norm = NormKind::Layer;
    config.biases = Biases {
        qkv: false,
        output: true,
        mlp: true,
        head: false,
    };
    config.score_scale = 1.0;
    let size = fields.optional_size("window_size")?.unwrap_or(256);
    config.sliding_window = read::window(size, read_kinds(fields, config.dims.layers)?);
    Ok(config)
}

/// Which layers are local.
fn read_kinds(fields: &mut Fields, layers: usize) -> Result<Vec<bool>, ConfigError> {
    const KEY: &str = "attention_types";
    let types = fields.optional_value(KEY);
    let types = types.unwrap_or_else(|| json!([[KINDS, 12]]));
    let kinds = expanded(&types, layers).ok_or_else(|| ConfigError::Invalid {
        key: KEY.to_owned(),
        expected: format!("lists of {KINDS:?}, each with a number of times, for {layers} layers"),
        found: types.to_string(),
    })?;
    // The expanded form, which `transformers` saves too and prefers.
    match fields.optional_texts("attention_layers")? {
        Some(kinds) => read::by_kind("attention_layers", &kinds, layers, KINDS),
        None => Ok(kinds),
    }
}

/// `[[["global", "local"], 2]]` → global, local, global, local; `None` unless there are as many as
/// layers.
fn expanded(types: &Value, layers: usize) -> Option<Vec<bool>> {
    let mut all = Vec::new();
    for entry in types.as_array()? {
        let [kinds, times] = entry.as_array()?.as_slice() else {
            return None;
        };
        let index = |kind: &Value| KINDS.iter().position(|known| *kind == **known);
        let kinds = kinds.as_array()?.iter().map(index);
        let kinds = kinds.collect::<Option<Vec<usize>>>()?;
        let times = usize::try_from(times.as_u64()?).ok()?;
        let added = times.checked_mul(kinds.len())?;
        if added > layers - all.len() {
            return None;
        }
        all.extend(kinds.iter().cycle().take(added).map(|index| *index == 1));
    }
    (all.len() == layers).then_some(all)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "GPTNeoForCausalLM", &KEYS);
    read::put_multi_head(&mut json, &config.dims, &SIZES);
    json["max_position_embeddings"] = config.dims.max_positions.into();
    let kinds = (0..config.dims.layers).map(|layer| KINDS[usize::from(config.is_windowed(layer))]);
    json["attention_types"] = json!([[kinds.collect::<Vec<_>>(), 1]]);
    if let Some(window) = &config.sliding_window {
        json["window_size"] = window.size.into();
    }
    json
}
