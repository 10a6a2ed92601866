//! Phi-3 (arXiv 2404.14219), and Phi-4 (arXiv 2412.08905).

use serde_json::{Value, json};

use super::read::{self, Keys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{DecoderConfig, QkvLayout};
use crate::nn::{Activation, LongRope, RotaryScaling};
use crate::pretrained::{ConfigError, Fields, write_dims};

pub(super) const PHI3: Mapping = Mapping {
    model_type: "phi3",
    read: read_config,
    write,
    prefix: "model.",
    names: &[
        read::EMBEDDING,
        read::FINAL_NORM,
        read::PRE_NORMS,
        read::OUTPUT,
        &[
            ("layers.*.attention.qkv", "layers.*.self_attn.qkv_proj"),
            ("layers.*.mlp.gate_up", "layers.*.mlp.gate_up_proj"),
            ("layers.*.mlp.down", "layers.*.mlp.down_proj"),
        ],
    ],
    input_first: false,
    // Rotary tables.
    is_buffer: |name| name.split('.').any(|part| part == "rotary_emb"),
};

const KEYS: Keys = Keys {
    norm_epsilon: ("rms_norm_eps", 1e-5),
    activation: ("hidden_act", Activation::Silu),
    tied: false,
};

/// The length that LongRoPE starts from. The key is there without LongRoPE too.
const ORIGINAL: &str = "original_max_position_embeddings";

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    // Features of another model, off in the files of Phi-4-mini.
    fields.only("full_attn_mod", &[1.into()])?;
    fields.only("interpolate_factor", &[1.into()])?;
    let dims = read::dims(fields, None, None)?;
    let original = fields.optional_size(ORIGINAL)?;
    let rotary = fields.rotary_or(dims.d_head, 10000.0, Some(1.0))?;
    // The default of `transformers`, even if the object of LongRoPE has a different number.
    if let RotaryScaling::LongRope(long) = &rotary.scaling
        && original.is_none()
        && long.original != 4096
    {
        let key = ORIGINAL.to_owned();
        return Err(ConfigError::Missing { key });
    }
    let (family, positions) = (DecoderFamily::Phi3, read::everywhere(rotary));
    let mut config = read::config(fields, family, dims, positions, &KEYS)?;
    config.qkv = QkvLayout::Fused;
    config.fused_gate_up = true;
    config.sliding_window = read::window_of_all(fields, config.dims.layers, None)?;
    Ok(config)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "Phi3ForCausalLM", &KEYS);
    write_dims(&mut json, &config.dims);
    read::put_rotary(&mut json, config, "rope_theta");
    json["partial_rotary_factor"] = read::rotated_share(config).into();
    json["sliding_window"] = config.sliding_window.as_ref().map(|it| it.size).into();
    if let Some(rotary) = read::global(config)
        && let RotaryScaling::LongRope(long) = &rotary.scaling
    {
        // The class in `transformers` takes these three keys alone.
        json["rope_scaling"] =
            json!({"type": "longrope", "short_factor": long.short, "long_factor": long.long});
        json[ORIGINAL] = long.original.into();
        let factor = rotary.max_positions as f64 / long.original as f64;
        let default = LongRope::default_attention_factor(factor, long.original);
        if long.attention_factor != default {
            json["rope_scaling"]["attention_factor"] = long.attention_factor.into();
        }
    }
    json
}
