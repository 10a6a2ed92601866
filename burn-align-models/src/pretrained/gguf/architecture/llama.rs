//! LLaMA, and models that llama.cpp stores under that name (SmolLM2, TinyLlama, Mistral, Yi);
//! Qwen2.

use serde_json::{Value, json};

use super::super::GgufError;
use super::{Architecture, Reader, Role, Rows, module_and_kind, of_block, rotary};

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    config: llama_config,
    // For this architecture, llama.cpp rotates neighbouring features.
    tensor: |reader, name| role(reader, name, true),
};

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    config: qwen2_config,
    tensor: |reader, name| role(reader, name, false),
};

fn llama_config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    let mut config = config(reader, "llama")?;
    config["attention_bias"] = reader.has("blk.0.attn_q.bias").into();
    config["mlp_bias"] = reader.has("blk.0.ffn_gate.bias").into();
    Ok(config)
}

fn qwen2_config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    config(reader, "qwen2")
}

fn config(reader: &Reader<'_>, model_type: &str) -> Result<Value, GgufError> {
    if reader.optional_size("expert_count")?.unwrap_or(0) > 0 {
        return Err(reader.wrong(
            "expert_count",
            "none: mixtures of experts are not implemented",
        ));
    }
    let d_model = reader.size("embedding_length")?;
    let heads = heads(reader)?;
    let d_head = match reader.optional_size("attention.key_length")? {
        Some(d_head) => d_head,
        None => d_model / heads,
    };
    let value_length = reader.optional_size("attention.value_length")?;
    if value_length.is_some_and(|length| length != d_head) {
        let expected = format!("{d_head}, the length of keys");
        return Err(reader.wrong("attention.value_length", expected));
    }
    let mut config = json!({
        "model_type": model_type,
        "vocab_size": reader.vocab()?,
        "hidden_size": d_model,
        "intermediate_size": reader.size("feed_forward_length")?,
        "num_hidden_layers": reader.size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads(reader)?,
        "head_dim": d_head,
        "hidden_act": "silu",
        "max_position_embeddings": reader.size("context_length")?,
        "rms_norm_eps": reader.float("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": !reader.has("output.weight"),
    });
    rotary::write(reader, &mut config, d_head)?;
    Ok(config)
}

fn heads(reader: &Reader<'_>) -> Result<u64, GgufError> {
    const KEY: &str = "attention.head_count";
    let heads = reader.size_of_all_layers(KEY)?.filter(|heads| *heads > 0);
    heads.ok_or_else(|| reader.wrong(KEY, "a number of heads"))
}

fn kv_heads(reader: &Reader<'_>) -> Result<u64, GgufError> {
    match reader.size_of_all_layers("attention.head_count_kv")? {
        Some(heads) if heads > 0 => Ok(heads),
        _ => heads(reader),
    }
}

fn role(reader: &Reader<'_>, name: &str, paired: bool) -> Result<Option<Role>, GgufError> {
    if rotary::is_table(name) {
        return Ok(Some(Role::Configuration));
    }
    let rows = |heads: u64| match paired {
        true => Rows::Paired {
            heads: usize::try_from(heads).unwrap_or(usize::MAX),
        },
        false => Rows::AsTheyAre,
    };
    let mut order = Rows::AsTheyAre;
    let found = match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        _ => {
            let Some((layer, (module, kind))) =
                of_block(name).and_then(|(layer, rest)| Some((layer, module_and_kind(rest)?)))
            else {
                return Ok(None);
            };
            let module = match module {
                "attn_norm" => "input_layernorm",
                "attn_q" => {
                    order = rows(heads(reader)?);
                    "self_attn.q_proj"
                }
                "attn_k" => {
                    order = rows(kv_heads(reader)?);
                    "self_attn.k_proj"
                }
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return Ok(None),
            };
            format!("model.layers.{layer}.{module}.{kind}")
        }
    };
    Ok(Some(Role::Tensor {
        name: found,
        rows: order,
        transposed: false,
    }))
}
