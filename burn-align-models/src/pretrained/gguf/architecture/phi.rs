//! Phi-1, Phi-1.5 and Phi-2.

use serde_json::{Value, json};

use super::super::GgufError;
use super::{Architecture, Reader, Role, Rows, Target, block_parts, gated, rotary};

pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    config,
    tensor: role,
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    gated::only_causal_and_dense(reader)?;
    let d_head = gated::d_head_of_width(reader)?;
    let mut config = json!({
        "model_type": "phi",
        "vocab_size": reader.vocab()?,
        "hidden_size": reader.size("embedding_length")?,
        "intermediate_size": reader.size("feed_forward_length")?,
        "num_hidden_layers": reader.layers()?,
        "num_attention_heads": gated::heads(reader)?,
        "num_key_value_heads": gated::kv_heads(reader)?,
        "hidden_act": "gelu_new",
        "max_position_embeddings": reader.size("context_length")?,
        "layer_norm_eps": reader.float("attention.layer_norm_epsilon")?,
        "qk_layernorm": false,
        "tie_word_embeddings": !reader.has("output.weight"),
    });
    rotary::write_partial(reader, &mut config, d_head)?;
    Ok(config)
}

fn role(reader: &Reader<'_>, name: &str) -> Result<Option<Role>, GgufError> {
    if rotary::is_table(name) {
        return Ok(Some(Role::Configuration));
    }
    let name = match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.final_layernorm.weight".to_owned(),
        "output_norm.bias" => "model.final_layernorm.bias".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        "output.bias" => "lm_head.bias".to_owned(),
        _ => {
            let Some((layer, module, kind)) = block_parts(name) else {
                return Ok(None);
            };
            let module = match module {
                "attn_norm" => "input_layernorm",
                "attn_qkv" => return Ok(Some(fused(reader, layer, kind)?)),
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.dense",
                "ffn_up" => "mlp.fc1",
                "ffn_down" => "mlp.fc2",
                _ => return Ok(None),
            };
            format!("model.layers.{layer}.{module}.{kind}")
        }
    };
    Ok(Some(Target::named(name).into()))
}

/// Queries, keys and values in one tensor, as in files made from the first published form of Phi-2.
fn fused(reader: &Reader<'_>, layer: usize, kind: &str) -> Result<Role, GgufError> {
    let d_head = gated::d_head_of_width(reader)?;
    let rows = |heads: u64| {
        let rows = heads.saturating_mul(d_head);
        usize::try_from(rows).unwrap_or(usize::MAX)
    };
    let (queries, keys) = (rows(gated::heads(reader)?), rows(gated::kv_heads(reader)?));
    let ends = [
        queries,
        queries.saturating_add(keys),
        queries.saturating_add(keys).saturating_add(keys),
    ];
    let starts = [0, ends[0], ends[1]];
    let parts = ["q_proj", "k_proj", "v_proj"];
    let targets = (0..3).map(|part| {
        let module = parts[part];
        let name = format!("model.layers.{layer}.self_attn.{module}.{kind}");
        Target::named(name).with_rows(Rows::Range {
            start: starts[part],
            end: ends[part],
            all: ends[2],
        })
    });
    Ok(Role::Tensors(targets.collect()))
}
