//! Qwen2 and Qwen3.

use serde_json::Value;

use super::super::GgufError;
use super::{Architecture, Reader, Role, gated, rotary};

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    config: |reader| config(reader, "qwen2"),
    tensor: |_, name| Ok(role(name)),
};

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    config: |reader| {
        let mut config = config(reader, "qwen3")?;
        config["attention_bias"] = reader.has("blk.0.attn_q.bias").into();
        Ok(config)
    },
    tensor: |_, name| Ok(role(name)),
};

fn config(reader: &Reader<'_>, model_type: &str) -> Result<Value, GgufError> {
    let d_head = gated::d_head(reader)?;
    let mut config = gated::config(reader, model_type)?;
    config["head_dim"] = d_head.into();
    config["hidden_act"] = "silu".into();
    // llama.cpp reads no window for these.
    config["use_sliding_window"] = false.into();
    rotary::write(reader, &mut config, d_head)?;
    Ok(config)
}

fn role(name: &str) -> Option<Role> {
    if rotary::is_table(name) {
        return Some(Role::Configuration);
    }
    gated::pre_norm_target(name).map(Role::from)
}
