//! LLaMA, and models that llama.cpp stores under that name (SmolLM2, TinyLlama, Mistral, Yi).

use serde_json::Value;

use super::super::GgufError;
use super::{Architecture, Reader, Role, Rows, block_parts, gated, rotary};

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    config,
    tensor: role,
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    let d_head = gated::d_head(reader)?;
    let mut config = gated::config(reader, "llama")?;
    config["head_dim"] = d_head.into();
    config["hidden_act"] = "silu".into();
    config["attention_bias"] = reader.has("blk.0.attn_q.bias").into();
    config["mlp_bias"] = reader.has("blk.0.ffn_gate.bias").into();
    rotary::write(reader, &mut config, d_head)?;
    Ok(config)
}

fn role(reader: &Reader<'_>, name: &str) -> Result<Option<Role>, GgufError> {
    if rotary::is_table(name) {
        return Ok(Some(Role::Configuration));
    }
    // For this architecture, llama.cpp rotates neighbouring features.
    let heads = match block_parts(name) {
        Some((_, "attn_q", _)) => Some(gated::heads(reader)?),
        Some((_, "attn_k", _)) => Some(gated::kv_heads(reader)?),
        _ => None,
    };
    let rows = heads.map_or(Rows::AsTheyAre, |heads| Rows::Paired {
        heads: usize::try_from(heads).unwrap_or(usize::MAX),
    });
    let target = gated::pre_norm_target(name);
    Ok(target.map(|target| target.with_rows(rows).into()))
}
