//! GPT-NeoX (arXiv 2204.06745), and Pythia (arXiv 2304.01373).

use serde_json::Value;

use super::read::{self, Keys, SizeKeys};
use super::{DecoderFamily, Mapping};
use crate::decoder::{Biases, DecoderConfig, QkvLayout, Residual};
use crate::nn::{Activation, NormKind, RotaryConfig};
use crate::pretrained::{ConfigError, Fields};

pub(super) const GPT_NEOX: Mapping = Mapping {
    model_type: "gpt_neox",
    read: read_config,
    write,
    prefix: "gpt_neox.",
    names: &[&[
        ("embedding", "embed_in"),
        ("layers.*.attention_norm", "layers.*.input_layernorm"),
        (
            "layers.*.attention.qkv",
            "layers.*.attention.query_key_value",
        ),
        ("layers.*.attention.output", "layers.*.attention.dense"),
        ("layers.*.mlp_norm", "layers.*.post_attention_layernorm"),
        ("layers.*.mlp.up", "layers.*.mlp.dense_h_to_4h"),
        ("layers.*.mlp.down", "layers.*.mlp.dense_4h_to_h"),
        ("final_norm", "final_layer_norm"),
        ("lm_head", "embed_out"),
    ]],
    input_first: false,
    // Causal masks and rotary tables.
    is_buffer: |name| {
        name.ends_with(".attention.bias")
            || name.ends_with(".attention.masked_bias")
            || read::is_rotary_table(name)
    },
};

const KEYS: Keys = Keys {
    norm_epsilon: ("layer_norm_eps", 1e-5),
    activation: ("hidden_act", Activation::Gelu),
    tied: false,
};

const SIZES: SizeKeys = SizeKeys {
    d_model: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    d_mlp: "intermediate_size",
};

fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
    // In GPT-NeoX 20B's file: rates of dropout.
    fields.optional_number("attention_probs_dropout_prob")?;
    fields.optional_number("hidden_dropout_prob")?;
    // Its default is not derived from other sizes.
    fields.size(SIZES.d_mlp)?;
    let dims = read::multi_head(fields, &SIZES)?;
    let positions = read::everywhere(read_rotary(fields, dims.d_head)?);
    let mut config = read::config(fields, DecoderFamily::GptNeoX, dims, positions, &KEYS)?;
    config.norm = NormKind::Layer;
    config.qkv = QkvLayout::FusedByHead;
    let attention_bias = fields.flag("attention_bias", true)?;
    config.biases = Biases {
        qkv: attention_bias,
        output: attention_bias,
        mlp: true,
        head: false,
    };
    if fields.flag("use_parallel_residual", true)? {
        config.residual = Residual::Parallel { shared_norm: false };
    }
    Ok(config)
}

/// The base and the rotated share have names of their own. Releases of `transformers` before 5 save
/// them under the usual names too, and do not read those; 5 saves them in `rope_parameters`.
fn read_rotary(fields: &mut Fields, d_head: usize) -> Result<RotaryConfig, ConfigError> {
    let by_name = !fields.keys().any(|key| key == "rope_parameters");
    let own_theta = fields.optional_positive("rotary_emb_base")?;
    let own_share = fields.optional_number("rotary_pct")?;
    let (theta, share) = (own_theta.unwrap_or(10000.0), own_share.unwrap_or(0.25));
    let rotary = fields.rotary_or(d_head, theta, Some(share))?;
    let differs = |key: &str, value: f64, expected: String| ConfigError::Invalid {
        key: key.to_owned(),
        expected,
        found: value.to_string(),
    };
    if (by_name || own_theta.is_some()) && rotary.theta != theta {
        let expected = format!("{}, the base under other keys", rotary.theta);
        return Err(differs("rotary_emb_base", theta, expected));
    }
    if (by_name || own_share.is_some()) && rotary.d_head != (d_head as f64 * share) as usize {
        let expected = format!(
            "a share that rotates {} of {d_head} features, as under other keys",
            rotary.d_head
        );
        return Err(differs("rotary_pct", share, expected));
    }
    Ok(rotary)
}

fn write(config: &DecoderConfig) -> Value {
    let mut json = read::to_json(config, "GPTNeoXForCausalLM", &KEYS);
    read::put_multi_head(&mut json, &config.dims, &SIZES);
    read::put_rotary(&mut json, config, "rotary_emb_base");
    json["rotary_pct"] = read::rotated_share(config).into();
    json["attention_bias"] = config.biases.qkv.into();
    json["use_parallel_residual"] = config.is_parallel().into();
    json
}
