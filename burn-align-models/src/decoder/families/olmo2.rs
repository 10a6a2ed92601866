//! OLMo 2 (arXiv 2501.00656).

use serde_json::Value;

use super::read::{self, Keys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{DecoderConfig, QkNorm};
use crate::nn::{Activation, NormKind};
use crate::pretrained::{ConfigError, Fields, write_dims};

pub(super) const OLMO2: Mapping = Mapping {
    model_type: "olmo2",
    read: read_config,
    write,
    prefix: "model.",
    names: &[
        read::EMBEDDING,
        read::FINAL_NORM,
        read::POST_NORMS,
        read::QKV,
        read::QK_NORM,
        read::OUTPUT,
        read::GATED_MLP,
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

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let dims = read::dims(fields, None, None)?;
    let rotary = fields.rotary_or(dims.d_head, 10000.0, None)?;
    let (family, positions) = (DecoderFamily::Olmo2, read::everywhere(rotary));
    let mut config = read::config(fields, family, dims, positions, &KEYS)?;
    config.norm = NormKind::RmsF32;
    config.pre_norms = false;
    config.dims.post_norms = true;
    config.qk_norm = Some(QkNorm {
        kind: NormKind::RmsF32,
        all_heads: true,
    });
    let attention_bias = fields.flag("attention_bias", false)?;
    config.biases.qkv = attention_bias;
    config.biases.output = attention_bias;
    read::only_layer_types(fields, read::FULL)?;
    Ok(config)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "Olmo2ForCausalLM", &KEYS);
    write_dims(&mut json, &config.dims);
    read::put_rotary(&mut json, config, "rope_theta");
    json["attention_bias"] = config.biases.qkv.into();
    json
}
