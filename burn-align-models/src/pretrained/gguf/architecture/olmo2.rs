//! OLMo 2.

use serde_json::Value;

use super::super::GgufError;
use super::{Architecture, Reader, Role, Target, gated, rotary};

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    config,
    tensor: |_, name| Ok(role(name)),
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    let expected = "none: OLMo 3, which llama.cpp stores under this name, is not implemented";
    reader.only_size("attention.sliding_window", 0, expected)?;
    let d_head = gated::d_head_of_width(reader)?;
    let mut config = gated::config(reader, "olmo2")?;
    config["hidden_act"] = "silu".into();
    config["attention_bias"] = reader.has("blk.0.attn_q.bias").into();
    rotary::write(reader, &mut config, d_head)?;
    Ok(config)
}

fn role(name: &str) -> Option<Role> {
    if rotary::is_table(name) {
        return Some(Role::Configuration);
    }
    let name = gated::name(name, |module| match module {
        "post_attention_norm" => Some("post_attention_layernorm"),
        "post_ffw_norm" => Some("post_feedforward_layernorm"),
        _ => gated::projection(module),
    });
    Some(Target::named(name?).into())
}
