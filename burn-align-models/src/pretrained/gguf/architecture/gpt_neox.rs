//! GPT-NeoX, and Pythia.

use serde_json::{Value, json};

use super::super::GgufError;
use super::{Architecture, Reader, Role, Rows, Target, block_parts, gated, rotary};

pub(super) const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    config,
    tensor: role,
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    gated::only_causal_and_dense(reader)?;
    let heads = gated::heads(reader)?;
    if gated::kv_heads(reader)? != heads {
        let expected = format!("{heads}, the number of heads");
        return Err(reader.wrong("attention.head_count_kv", expected));
    }
    let d_head = gated::d_head_of_width(reader)?;
    let positions = reader.size("context_length")?;
    let rotary = rotary::Rotary::read(reader, d_head, positions)?;
    let mut config = json!({
        "model_type": "gpt_neox",
        "vocab_size": reader.vocab()?,
        "hidden_size": reader.size("embedding_length")?,
        "intermediate_size": reader.size("feed_forward_length")?,
        "num_hidden_layers": reader.layers()?,
        "num_attention_heads": heads,
        // The file does not have it. llama.cpp always approximates this function by the tanh.
        "hidden_act": "gelu",
        "max_position_embeddings": positions,
        "layer_norm_eps": reader.float("attention.layer_norm_epsilon")?,
        "use_parallel_residual": reader.flag("use_parallel_residual")?,
        "attention_bias": reader.has("blk.0.attn_qkv.bias"),
        "rotary_pct": rotary.share(d_head),
        "rotary_emb_base": rotary.theta,
        "tie_word_embeddings": !reader.has("output.weight"),
    });
    rotary.write_scaling(&mut config);
    Ok(config)
}

fn role(reader: &Reader<'_>, name: &str) -> Result<Option<Role>, GgufError> {
    if rotary::is_table(name) {
        return Ok(Some(Role::Configuration));
    }
    let mut rows = Rows::AsTheyAre;
    let name = match name {
        "token_embd.weight" => "gpt_neox.embed_in.weight".to_owned(),
        "output_norm.weight" => "gpt_neox.final_layer_norm.weight".to_owned(),
        "output_norm.bias" => "gpt_neox.final_layer_norm.bias".to_owned(),
        "output.weight" => "embed_out.weight".to_owned(),
        _ => {
            let Some((layer, module, kind)) = block_parts(name) else {
                return Ok(None);
            };
            let module = match module {
                "attn_norm" => "input_layernorm",
                "attn_qkv" => {
                    let heads = gated::heads(reader)?;
                    rows = Rows::ByPart {
                        heads: usize::try_from(heads).unwrap_or(usize::MAX),
                    };
                    "attention.query_key_value"
                }
                "attn_output" => "attention.dense",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_up" => "mlp.dense_h_to_4h",
                "ffn_down" => "mlp.dense_4h_to_h",
                _ => return Ok(None),
            };
            format!("gpt_neox.layers.{layer}.{module}.{kind}")
        }
    };
    Ok(Some(Target::named(name).with_rows(rows).into()))
}
