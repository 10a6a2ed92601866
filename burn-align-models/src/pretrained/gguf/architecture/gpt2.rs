//! GPT-2.

use serde_json::{Value, json};

use super::super::GgufError;
use super::{Architecture, Reader, Role, Target, block_parts};

pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    config,
    tensor: |_, name| Ok(role(name)),
};

fn config(reader: &Reader<'_>) -> Result<Value, GgufError> {
    Ok(json!({
        "model_type": "gpt2",
        "vocab_size": reader.vocab()?,
        "n_positions": reader.size("context_length")?,
        "n_embd": reader.size("embedding_length")?,
        "n_layer": reader.size("block_count")?,
        "n_head": reader.size("attention.head_count")?,
        "n_inner": reader.size("feed_forward_length")?,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": reader.float("attention.layer_norm_epsilon")?,
        "tie_word_embeddings": !reader.has("output.weight"),
    }))
}

fn role(name: &str) -> Option<Role> {
    let (name, transposed) = match name {
        "token_embd.weight" => ("transformer.wte.weight".to_owned(), false),
        "position_embd.weight" => ("transformer.wpe.weight".to_owned(), false),
        "output_norm.weight" => ("transformer.ln_f.weight".to_owned(), false),
        "output_norm.bias" => ("transformer.ln_f.bias".to_owned(), false),
        "output.weight" => ("lm_head.weight".to_owned(), false),
        _ => {
            let (layer, module, kind) = block_parts(name)?;
            let (module, is_matrix) = match module {
                "attn_norm" => ("ln_1", false),
                "attn_qkv" => ("attn.c_attn", true),
                "attn_output" => ("attn.c_proj", true),
                "ffn_norm" => ("ln_2", false),
                "ffn_up" => ("mlp.c_fc", true),
                "ffn_down" => ("mlp.c_proj", true),
                _ => return None,
            };
            // Hugging Face's `Conv1D` stores its inputs first.
            let transposed = is_matrix && kind == "weight";
            (format!("transformer.h.{layer}.{module}.{kind}"), transposed)
        }
    };
    let target = Target {
        transposed,
        ..Target::named(name)
    };
    Some(target.into())
}
