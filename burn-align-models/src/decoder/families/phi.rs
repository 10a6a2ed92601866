//! Phi-1 (arXiv 2306.11644), Phi-1.5 (arXiv 2309.05463) and Phi-2.

use serde_json::Value;

use super::read::{self, Keys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{Biases, DecoderConfig, QkNorm, Residual};
use crate::nn::{Activation, NormKind};
use crate::pretrained::{ConfigError, Fields, write_dims};

pub(super) const PHI: Mapping = Mapping {
    model_type: "phi",
    read: read_config,
    write,
    prefix: "model.",
    names: &[
        read::EMBEDDING,
        read::QKV,
        &[
            ("layers.*.attention_norm", "layers.*.input_layernorm"),
            (
                "layers.*.attention.query_norm",
                "layers.*.self_attn.q_layernorm",
            ),
            (
                "layers.*.attention.key_norm",
                "layers.*.self_attn.k_layernorm",
            ),
            ("layers.*.attention.output", "layers.*.self_attn.dense"),
            ("layers.*.mlp.up", "layers.*.mlp.fc1"),
            ("layers.*.mlp.down", "layers.*.mlp.fc2"),
            ("final_norm", "final_layernorm"),
        ],
    ],
    input_first: false,
    // Rotary tables.
    is_buffer: |name| name.split('.').any(|part| part == "rotary_emb"),
};

const KEYS: Keys = Keys {
    norm_epsilon: ("layer_norm_eps", 1e-5),
    activation: ("hidden_act", Activation::GeluTanh),
    tied: false,
};

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    let mut dims = read::dims(fields, None, None)?;
    dims.gated_mlp = false;
    let rotary = fields.rotary_or(dims.d_head, 10000.0, Some(0.5))?;
    let (family, positions) = (DecoderFamily::Phi, read::everywhere(rotary));
    let mut config = read::config(fields, family, dims, positions, &KEYS)?;
    config.norm = NormKind::Layer;
    config.biases = Biases {
        qkv: true,
        output: true,
        mlp: true,
        head: true,
    };
    config.residual = Residual::Parallel { shared_norm: true };
    config.qk_norm = fields.flag("qk_layernorm", false)?.then_some(QkNorm {
        kind: NormKind::Layer,
        all_heads: false,
    });
    Ok(config)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "PhiForCausalLM", &KEYS);
    write_dims(&mut json, &config.dims);
    read::put_rotary(&mut json, config, "rope_theta");
    json["partial_rotary_factor"] = read::rotated_share(config).into();
    json["qk_layernorm"] = config.qk_norm.is_some().into();
    json
}
