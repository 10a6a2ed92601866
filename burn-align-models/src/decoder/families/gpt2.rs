//! GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners").

use serde_json::{Value, json};

use super::read::{self, Keys, SizeKeys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{Biases, DecoderConfig, Positions, QkvLayout};
use crate::nn::{Activation, NormKind};
use crate::pretrained::{ConfigError, Fields};

pub(super) const GPT2: Mapping = Mapping {
    model_type: "gpt2",
    read: read_config,
    write,
    prefix: "transformer.",
    names: &[&[
        ("embedding", "wte"),
        ("positions", "wpe"),
        ("layers.*.attention_norm", "h.*.ln_1"),
        ("layers.*.attention.qkv", "h.*.attn.c_attn"),
        ("layers.*.attention.output", "h.*.attn.c_proj"),
        ("layers.*.mlp_norm", "h.*.ln_2"),
        ("layers.*.mlp.up", "h.*.mlp.c_fc"),
        ("layers.*.mlp.down", "h.*.mlp.c_proj"),
        ("final_norm", "ln_f"),
        ("lm_head", "lm_head"),
    ]],
    input_first: true,
    // Causal masks.
    is_buffer: |name| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
};

const KEYS: Keys = Keys {
    norm_epsilon: ("layer_norm_epsilon", 1e-5),
    activation: ("activation_function", Activation::GeluTanh),
    tied: true,
};

const SIZES: SizeKeys = SizeKeys {
    d_model: "n_embd",
    layers: "n_layer",
    heads: "n_head",
    d_mlp: "n_inner",
};

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    fields.only("add_cross_attention", &[false.into()])?;
    fields.only("pruned_heads", &[json!({})])?;
    let dims = read::multi_head(fields, &SIZES)?;
    let positions = Positions::Learned(fields.size("n_positions")?);
    let mut config = read::config(fields, DecoderFamily::Gpt2, dims, positions, &KEYS)?;
    config.norm = NormKind::Layer;
    config.qkv = QkvLayout::Fused;
    config.biases = Biases {
        qkv: true,
        output: true,
        mlp: true,
        head: false,
    };
    if !fields.flag("scale_attn_weights", true)? {
        config.score_scale = 1.0;
    }
    config.score_scale_by_layer = fields.flag("scale_attn_by_inverse_layer_idx", false)?;
    Ok(config)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "GPT2LMHeadModel", &KEYS);
    read::put_multi_head(&mut json, &config.dims, &SIZES);
    json["n_positions"] = config.dims.max_positions.into();
    json["scale_attn_weights"] = (config.score_scale == read::score_scale(&config.dims)).into();
    json["scale_attn_by_inverse_layer_idx"] = config.score_scale_by_layer.into();
    json
}
