//! What models with RMS norms, rotary embeddings and a gated MLP have in common.

use serde_json::{Value, json};

use super::super::GgufError;
use super::{Reader, Target, block_parts};

/// The configuration of such a model, without the size of a head, the activation and the rotary
/// embedding.
pub(super) fn config(reader: &Reader<'_>, model_type: &str) -> Result<Value, GgufError> {
    only_causal_and_dense(reader)?;
    Ok(json!({
        "model_type": model_type,
        "vocab_size": reader.vocab()?,
        "hidden_size": reader.size("embedding_length")?,
        "intermediate_size": reader.size_of_all_layers("feed_forward_length")?
            .filter(|size| *size > 0)
            .ok_or_else(|| reader.wrong("feed_forward_length", "a size of at least 1"))?,
        "num_hidden_layers": reader.layers()?,
        "num_attention_heads": heads(reader)?,
        "num_key_value_heads": kv_heads(reader)?,
        "max_position_embeddings": reader.size("context_length")?,
        "rms_norm_eps": reader.float("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": !reader.has("output.weight"),
    }))
}

/// Refuses mixtures of experts, and encoders.
pub(super) fn only_causal_and_dense(reader: &Reader<'_>) -> Result<(), GgufError> {
    let expected = "none: mixtures of experts are not implemented";
    reader.only_size("expert_count", 0, expected)?;
    const CAUSAL: &str = "attention.causal";
    match reader.optional_flag(CAUSAL)? {
        Some(false) => Err(reader.wrong(CAUSAL, "true: encoders are not implemented")),
        _ => Ok(()),
    }
}

pub(super) fn heads(reader: &Reader<'_>) -> Result<u64, GgufError> {
    const KEY: &str = "attention.head_count";
    let heads = reader.size_of_all_layers(KEY)?.filter(|heads| *heads > 0);
    heads.ok_or_else(|| reader.wrong(KEY, "a number of heads"))
}

pub(super) fn kv_heads(reader: &Reader<'_>) -> Result<u64, GgufError> {
    match reader.size_of_all_layers("attention.head_count_kv")? {
        Some(heads) if heads > 0 => Ok(heads),
        _ => heads(reader),
    }
}

/// The number of features of a head: the same for keys and values.
pub(super) fn d_head(reader: &Reader<'_>) -> Result<u64, GgufError> {
    const KEY: &str = "attention.key_length";
    let d_head = match reader.optional_size(KEY)? {
        Some(0) => return Err(reader.wrong(KEY, "a size of at least 1")),
        Some(d_head) => d_head,
        None => reader.size("embedding_length")? / heads(reader)?,
    };
    let expected = format!("{d_head}, the length of keys");
    reader.only_size("attention.value_length", d_head, &expected)?;
    Ok(d_head)
}

/// The number of features of a head, for Hugging Face classes that divide the width of the model by
/// the number of heads.
pub(super) fn d_head_of_width(reader: &Reader<'_>) -> Result<u64, GgufError> {
    let (d_model, heads) = (reader.size("embedding_length")?, heads(reader)?);
    if d_model % heads != 0 {
        let expected = format!("a divisor of {d_model}, the width of the model");
        return Err(reader.wrong("attention.head_count", expected));
    }
    let d_head = d_model / heads;
    let expected = format!("{d_head}, the width of the model divided by the number of heads");
    reader.only_size("attention.key_length", d_head, &expected)?;
    reader.only_size("attention.value_length", d_head, &expected)?;
    Ok(d_head)
}

/// The Hugging Face name of a tensor, with the modules of a block named by `module`; `None` if it
/// is unknown.
pub(super) fn name(
    name: &str,
    module: impl FnOnce(&str) -> Option<&'static str>,
) -> Option<String> {
    Some(match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
        "output_norm.weight" => "model.norm.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        _ => {
            let (layer, found, kind) = block_parts(name)?;
            format!("model.layers.{layer}.{}.{kind}", module(found)?)
        }
    })
}

/// Attention's projections and norms, and the projections of the MLP.
pub(super) fn projection(module: &str) -> Option<&'static str> {
    Some(match module {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    })
}

/// A block with one norm before attention and one before the MLP.
pub(super) fn pre_norm(module: &str) -> Option<&'static str> {
    match module {
        "attn_norm" => Some("input_layernorm"),
        "ffn_norm" => Some("post_attention_layernorm"),
        _ => projection(module),
    }
}

/// The tensor of a block with norms before attention and the MLP.
pub(super) fn pre_norm_target(tensor: &str) -> Option<Target> {
    name(tensor, pre_norm).map(Target::named)
}
