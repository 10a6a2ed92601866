//! Which keys of a `config.json` do not change what a forward pass computes.
//!
//! The lists are based on the configuration classes of `transformers` (releases 2 to 5) and on
//! configs of published models. A name missing here costs the user a note or an error, never a
//! wrong number.

use serde_json::{Value, json};

/// Keys that no forward pass reads: on training, generation, serialisation, labels, how attention
/// is implemented, or heads other than the language-modelling one.
const INERT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_model_name_or_path",
    "_name_or_path",
    "_num_labels",
    "_output_attentions",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "ignore_keys_at_rope_validation",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "n_ctx",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "onnx",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "predict_special_tokens",
    "prefix",
    // How the same products are split into slices.
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    // The order of a cast and a multiplication in half precision.
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    // Bookkeeping of YaRN's own training script.
    "rope_scaling.finetuned",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attn",
    "use_return_dict",
];

/// Parts of the names of keys that no forward pass reads.
const INERT_ENDS: &[&str] = &["_token_id", "_token_ids", "dropout", "_pdrop", "drop_rate"];

/// Words at the start of a part of a key's name that suggest an effect on the computation: `rope`,
/// `attn`, `norm` and so on. The parts of a name are separated by `_`, `.` or `-`.
const RELEVANT: &[&str] = &[
    "act",
    "activ",
    "alibi",
    "alpha",
    "attention",
    "attn",
    "beta",
    "bias",
    "block",
    "cap",
    "causal",
    "chunk",
    "clip",
    "compress",
    "conv",
    "cross",
    "depth",
    "dim",
    "embd",
    "embed",
    "encoder",
    "eps",
    "expert",
    "factor",
    "feed",
    "ffn",
    "ffw",
    "gate",
    "gelu",
    "global",
    "group",
    "head",
    "hidden",
    "image",
    "inner",
    "inter",
    "kernel",
    "kv",
    "latent",
    "layer",
    "ln",
    "local",
    "logit",
    "lora",
    "mamba",
    "mask",
    "memory",
    "mixture",
    "mla",
    "mlp",
    "mod",
    "moe",
    "mrope",
    "mscale",
    "mtp",
    "multiplier",
    "mup",
    "norm",
    "parallel",
    "pos",
    "position",
    "prune",
    "q",
    "qk",
    "qkv",
    "quant",
    "query",
    "recur",
    "relative",
    "res",
    "resid",
    "rms",
    "rope",
    "rotary",
    "router",
    "scal",
    "shared",
    "silu",
    "size",
    "sliding",
    "softcap",
    "softmax",
    "sparse",
    "ssm",
    "stride",
    "swiglu",
    "theta",
    "tie",
    "tied",
    "truncat",
    "value",
    "vision",
    "vocab",
    "width",
    "window",
    "yarn",
];

/// Such words inside a part: `layernorm`, `reattention`, `prenorm`.
const RELEVANT_INSIDE: &[&str] = &[
    "attention",
    "attn",
    "norm",
    "rope",
    "rotary",
    "softcap",
    "scale",
];

pub(super) fn is_inert(key: &str) -> bool {
    INERT.contains(&key) || INERT_ENDS.iter().any(|end| key.ends_with(end))
}

/// Whether the name of a key suggests an effect on the computation.
pub(super) fn sounds_relevant(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let mut parts = key.split(['_', '.', '-']).filter(|part| !part.is_empty());
    parts.any(|part| {
        let part = part
            .strip_prefix("use")
            .filter(|rest| !rest.is_empty())
            .unwrap_or(part);
        // A short word must be a whole part: `q`, but not `quiet`.
        let begins = |word: &str| match word.len() {
            0..=3 => part.trim_end_matches(|c: char| c.is_ascii_digit() || c == 's') == word,
            _ => part.starts_with(word),
        };
        RELEVANT.iter().any(|word| begins(word))
            || RELEVANT_INSIDE.iter().any(|word| part.contains(word))
    })
}

/// The values of a key that turn its feature off; `None` for a key without such values.
///
/// A family that implements the feature reads the key, and this table is not used.
pub(super) fn off_values(key: &str) -> Option<Vec<Value>> {
    let name = key.rsplit('.').next().unwrap_or(key);
    Some(match name {
        // Features that a decoder may have and ours do not, unless the family reads the key.
        "add_cross_attention"
        | "is_encoder_decoder"
        | "tie_encoder_decoder"
        | "alibi"
        | "use_alibi"
        | "attention_bias"
        | "attention_out_bias"
        | "attn_output_gate"
        | "mlp_bias"
        | "use_bias"
        | "use_qkv_bias"
        | "qkv_bias"
        | "bias"
        | "lm_head_bias"
        | "use_mrope"
        | "use_sliding_window"
        | "use_qk_norm"
        | "qk_norm"
        | "qk_layernorm"
        | "use_qk_layernorm"
        | "parallel_attn"
        | "use_parallel_residual"
        | "parallel_residual"
        | "rope_interleaved"
        | "interleaved"
        | "use_moe"
        | "use_mamba"
        | "use_post_norm"
        | "sandwich_norm"
        | "use_rope_scaling"
        | "use_dynamic_ntk"
        | "use_logn_attn"
        | "use_cross_attention"
        | "residual_post_norm"
        | "use_lora" => vec![json!(false)],
        "causal" | "is_causal" | "use_causal_mask" | "use_rope" | "use_rotary" | "rope" => {
            vec![json!(true)]
        }
        "pruned_heads" => vec![json!({}), json!([])],
        "num_experts" | "num_local_experts" | "n_routed_experts" | "moe_num_experts" => {
            vec![json!(0), json!(1)]
        }
        "num_experts_per_tok"
        | "num_shared_experts"
        | "n_shared_experts"
        | "num_nextn_predict_layers"
        | "kv_lora_rank"
        | "q_lora_rank" => vec![json!(0)],
        "embedding_multiplier"
        | "residual_multiplier"
        | "logits_scaling"
        | "logit_scale"
        | "scale_emb"
        | "partial_rotary_factor"
        | "rotary_pct"
        | "mup_scale" => {
            vec![json!(1), json!(1.0)]
        }
        // `null` is off; any value means a different computation, or weights in a different form.
        "attn_logit_softcapping"
        | "final_logit_softcapping"
        | "clip_qkv"
        | "query_pre_attn_scalar"
        | "attention_multiplier"
        | "quantization_config"
        | "compression_config"
        | "embedding_size"
        | "no_rope_layers"
        | "no_rope_layer_interval"
        | "attention_chunk_size"
        | "cross_attention_hidden_size"
        | "vision_config"
        | "text_config"
        | "audio_config" => vec![],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_may_be_about_the_computation() {
        for key in [
            "rope_parameters",
            "new_rope",
            "attn_temperature_tuning",
            "use_norm",
            "prenorm_style",
            "window_size",
            "windows",
            "embed_scale",
            "final_cap",
            "softcap",
            "moe_layers",
            "n_experts",
            "quant_method",
            "q_norm_eps",
            "layernorm_type",
            "hidden_size_v2",
            "useRotary",
            "head-dim",
            "d_dim",
            "kv_share",
            "resid_scale",
            "activation_sparsity",
            "block_types",
        ] {
            assert!(sounds_relevant(key), "{key}");
        }
        for key in [
            "my_note",
            "my_flag",
            "training_run",
            "author",
            "_seen_tokens",
            "wandb_id",
            "license",
            "dataset",
            "new_trick",
            "perplexity",
            "unsloth_version",
            "lr",
            "actor",
            "capital",
            "recipe",
        ] {
            assert!(!sounds_relevant(key), "{key}");
        }
    }

    #[test]
    fn the_lists_do_not_overlap() {
        for key in INERT {
            assert!(off_values(key).is_none(), "{key}");
        }
    }
}
