//! Phi-3, and Phi-4.

use serde_json::Value;

use super::super::GgufError;
use super::{Architecture, Reader, Role, Target, gated, rotary};

pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    config,
    tensor: |_, name| Ok(role(name)),
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    let d_head = gated::d_head_of_width(reader)?;
    let mut config = gated::config(reader, "phi3")?;
    config["hidden_act"] = "silu".into();
    // llama.cpp has switched windows off for this architecture, because files from before had wrong
    // ones; this follows the file, as Hugging Face's class does. 0 stands for none.
    let window = reader.optional_size("attention.sliding_window")?;
    config["sliding_window"] = window.filter(|window| *window > 0).into();
    rotary::write_partial(reader, &mut config, d_head)?;
    Ok(config)
}

fn role(name: &str) -> Option<Role> {
    if rotary::is_table(name) {
        return Some(Role::Configuration);
    }
    let name = gated::name(name, |module| match module {
        "attn_norm" => Some("input_layernorm"),
        "attn_qkv" => Some("self_attn.qkv_proj"),
        "attn_output" => Some("self_attn.o_proj"),
        "ffn_norm" => Some("post_attention_layernorm"),
        // Gate first, then up, in both.
        "ffn_up" => Some("mlp.gate_up_proj"),
        "ffn_down" => Some("mlp.down_proj"),
        _ => None,
    });
    Some(Target::named(name?).into())
}
