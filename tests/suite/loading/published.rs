//! Configurations in the form of published models, of every family and age: keys and values as
//! remembered of their `config.json`, not copies of the files. Each is read, with the named notes,
//! or rejected for the named reason.

use burn_align_models::pretrained::{CheckpointError, LoadError, LoadNote};
use serde_json::{Value, json};

use crate::scratch::Scratch;

use super::refusal;

/// The expected outcome for a configuration.
enum Outcome {
    /// It loads; these keys are ignored with a note.
    Read(&'static [&'static str]),
    /// It is rejected, and the message names these.
    Refused(&'static [&'static str]),
}

use Outcome::{Read, Refused};

fn with(mut base: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().expect("an object") {
        base[key] = value.clone();
    }
    base
}

/// GPT-2 small, as it was uploaded in 2019.
fn gpt2() -> Value {
    json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
        "summary_type": "cls_index", "summary_use_proj": true, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
    })
}

/// LLaMA 7B in the Hugging Face layout, of 2023.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
        "initializer_range": 0.02, "max_position_embeddings": 2048, "max_sequence_length": 2048,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
        "use_cache": true, "vocab_size": 32000,
    })
}

/// LLaMA 3.2 1B.
fn llama3() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256,
    })
}

/// Mistral 7B v0.1.
fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000,
    })
}

/// Qwen2.5 0.5B.
fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 151936,
    })
}

/// Models that load.
fn read() -> Vec<(&'static str, Value, Outcome)> {
    vec![
        ("gpt2", gpt2(), Read(&[])),
        (
            "gpt2-medium",
            with(
                gpt2(),
                json!({
                    "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0,
                    "predict_special_tokens": true,
                }),
            ),
            Read(&["n_special"]),
        ),
        (
            "gpt2-xl",
            with(
                gpt2(),
                json!({"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": true}),
            ),
            Read(&[]),
        ),
        (
            "distilgpt2",
            with(
                gpt2(),
                json!({
                    "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
                    "n_layer": 6,
                }),
            ),
            Read(&[]),
        ),
        (
            "DialoGPT-medium",
            with(
                gpt2(),
                json!({
                    "n_embd": 1024, "n_head": 16, "n_layer": 24,
                    "task_specific_params": {"conversational": {"max_length": 1000}},
                }),
            ),
            Read(&[]),
        ),
        (
            "stanford-crfm's GPT-2 small",
            with(
                gpt2(),
                json!({
                    "gradient_checkpointing": false, "n_inner": null,
                    "reorder_and_upcast_attn": true, "scale_attn_by_inverse_layer_idx": true,
                    "scale_attn_weights": true, "use_cache": false,
                }),
            ),
            Read(&[]),
        ),
        (
            "Cerebras-GPT-111M",
            with(
                gpt2(),
                json!({
                    "activation_function": "gelu", "n_inner": 3072, "n_layer": 10,
                    "n_positions": 2048, "reorder_and_upcast_attn": false,
                    "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true,
                    "use_cache": true,
                }),
            ),
            Read(&[]),
        ),
        ("llama-7b", llama(), Read(&["max_sequence_length"])),
        (
            "Llama-2-7b-hf",
            with(
                llama(),
                json!({
                    "_name_or_path": "meta-llama/Llama-2-7b-hf", "max_position_embeddings": 4096,
                    "max_sequence_length": null, "num_key_value_heads": 32, "pretraining_tp": 1,
                    "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
                }),
            ),
            Read(&[]),
        ),
        (
            "vicuna-7b-v1.5",
            with(
                llama(),
                json!({
                    "_name_or_path": "vicuna-7b-v1.5", "max_length": 4096,
                    "max_position_embeddings": 4096, "max_sequence_length": null,
                    "num_key_value_heads": 32, "rope_scaling": null,
                }),
            ),
            Read(&[]),
        ),
        ("Llama-3.2-1B", llama3(), Read(&[])),
        (
            "unsloth's Llama-3.2-1B-Instruct",
            with(
                llama3(),
                json!({"pad_token_id": 128004, "unsloth_fixed": true, "unsloth_version": "2025.1"}),
            ),
            Read(&[]),
        ),
        (
            "CodeLlama-7b",
            with(
                llama(),
                json!({
                    "max_position_embeddings": 16384, "max_sequence_length": null,
                    "rope_theta": 1000000, "vocab_size": 32016,
                }),
            ),
            Read(&[]),
        ),
        (
            "TinyLlama-1.1B-Chat-v1.0",
            with(
                llama(),
                json!({
                    "attention_bias": false, "hidden_size": 2048, "intermediate_size": 5632,
                    "max_sequence_length": null, "num_hidden_layers": 22, "num_key_value_heads": 4,
                    "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false,
                }),
            ),
            Read(&[]),
        ),
        (
            "SmolLM2-135M-Instruct",
            with(
                llama(),
                json!({
                    "attention_bias": false, "attention_dropout": 0.0, "hidden_size": 576,
                    "intermediate_size": 1536, "is_llama_config": true,
                    "max_position_embeddings": 8192, "max_sequence_length": null, "mlp_bias": false,
                    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
                    "pretraining_tp": 1, "rope_interleaved": false, "rope_scaling": null,
                    "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152,
                    "transformers.js_config": {
                        "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"},
                    },
                }),
            ),
            Read(&[]),
        ),
        (
            "Yarn-Llama-2-7b-128k",
            with(
                llama(),
                json!({
                    "auto_map": {"AutoModelForCausalLM": "modeling_llama_yarn.LlamaForCausalLM"},
                    "max_position_embeddings": 131072, "max_sequence_length": null,
                    "pretraining_tp": 1,
                    "rope_scaling": {
                        "factor": 32.0, "finetuned": true, "original_max_position_embeddings": 4096,
                        "type": "yarn",
                    },
                }),
            ),
            Read(&[]),
        ),
        (
            "deepseek-coder-1.3b-base",
            with(
                llama(),
                json!({
                    "hidden_size": 2048, "intermediate_size": 5504,
                    "max_position_embeddings": 16384, "max_sequence_length": null,
                    "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16,
                    "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000,
                    "vocab_size": 32256,
                }),
            ),
            Read(&[]),
        ),
        (
            "Yi-6B",
            with(
                llama(),
                json!({
                    "max_position_embeddings": 4096, "max_sequence_length": null,
                    "num_key_value_heads": 4, "pretraining_tp": 1, "rope_theta": 5000000.0,
                    "vocab_size": 64000,
                }),
            ),
            Read(&[]),
        ),
        (
            "open_llama_3b",
            with(
                llama(),
                json!({
                    "hidden_size": 3200, "intermediate_size": 8640, "max_sequence_length": null,
                    "num_hidden_layers": 26,
                }),
            ),
            Read(&[]),
        ),
        ("Mistral-7B-v0.1", mistral(), Read(&[])),
        (
            "Mistral-7B-Instruct-v0.2",
            with(
                mistral(),
                json!({"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": null}),
            ),
            Read(&[]),
        ),
        (
            "Mistral-Nemo-Base-2407",
            with(
                mistral(),
                json!({
                    "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 128000,
                    "num_hidden_layers": 40, "rope_theta": 1000000.0, "sliding_window": null,
                    "vocab_size": 131072,
                }),
            ),
            Read(&[]),
        ),
        (
            "zephyr-7b-beta",
            with(
                mistral(),
                json!({"_name_or_path": "zephyr-7b-sft", "pad_token_id": 2, "use_cache": true}),
            ),
            Read(&[]),
        ),
        ("Qwen2.5-0.5B", qwen2(), Read(&[])),
        (
            "Qwen2.5-7B-Instruct with YaRN",
            with(
                qwen2(),
                json!({
                    "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
                    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
                    "rope_scaling": {
                        "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
                    },
                    "tie_word_embeddings": false, "vocab_size": 152064,
                }),
            ),
            Read(&[]),
        ),
        (
            "DeepSeek-R1-Distill-Qwen-1.5B",
            with(
                qwen2(),
                json!({
                    "hidden_size": 1536, "intermediate_size": 8960,
                    "max_position_embeddings": 131072, "max_window_layers": 21,
                    "num_attention_heads": 12, "num_hidden_layers": 28, "rope_theta": 10000,
                    "sliding_window": 4096, "tie_word_embeddings": false,
                }),
            ),
            Read(&[]),
        ),
        (
            "a LLaMA that transformers 4.57 wrote after reading a GGUF file",
            with(
                llama3(),
                json!({
                    "_model_name_or_path": "SmolLM2", "unk_token_id": 0, "rope_scaling": null,
                    "rope_interleaved": false,
                }),
            ),
            Read(&[]),
        ),
        (
            "a LLaMA of transformers 5",
            with(
                llama3(),
                json!({
                    "dtype": "bfloat16", "rope_scaling": null, "rope_theta": null,
                    "torch_dtype": null, "pad_token_id": null, "transformers_version": "5.24.0",
                    "rope_parameters": {
                        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
                        "rope_type": "llama3",
                    },
                }),
            ),
            Read(&[]),
        ),
        (
            "the same, with an entry for its one kind of layers",
            with(
                llama3(),
                json!({
                    "layer_types": vec!["full_attention"; 16], "rope_scaling": null,
                    "rope_theta": null,
                    "rope_parameters": {
                        "full_attention": {"rope_theta": 500000.0, "rope_type": "default"},
                    },
                }),
            ),
            Read(&[]),
        ),
        (
            "keys from a training script",
            with(
                llama3(),
                json!({"my_recipe": "v2", "wandb_id": "abc", "seen_tokens": 3e12}),
            ),
            Read(&["my_recipe", "seen_tokens", "wandb_id"]),
        ),
        (
            "gemma-2-2b",
            json!({
                "architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
                "cache_implementation": "hybrid", "eos_token_id": 1,
                "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
                "initializer_range": 0.02, "intermediate_size": 9216,
                "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
                "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
                "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.42.4",
                "use_cache": true, "vocab_size": 256000,
            }),
            Read(&[]),
        ),
        (
            "gemma-3-1b-pt",
            json!({
                "architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "attn_logit_softcapping": null, "bos_token_id": 2,
                "cache_implementation": "hybrid", "eos_token_id": 1,
                "final_logit_softcapping": null, "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
                "initializer_range": 0.02, "intermediate_size": 6912,
                "max_position_embeddings": 32768, "model_type": "gemma3_text",
                "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
                "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
                "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
                "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
                "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144,
            }),
            Read(&[]),
        ),
        (
            "pythia-160m",
            json!({
                "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
                "hidden_act": "gelu", "hidden_size": 768, "initializer_range": 0.02,
                "intermediate_size": 3072, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
                "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
                "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
                "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true,
                "use_parallel_residual": true, "vocab_size": 50304,
            }),
            Read(&[]),
        ),
        (
            "gpt-neo-125m",
            json!({
                "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"],
                "attention_dropout": 0,
                "attention_layers": [
                    "global", "local", "global", "local", "global", "local",
                    "global", "local", "global", "local", "global", "local",
                ],
                "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256,
                "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": false,
                "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": null,
                "layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048,
                "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12, "resid_dropout": 0,
                "summary_activation": null, "summary_first_dropout": 0.1,
                "summary_proj_to_labels": true, "summary_type": "cls_index",
                "summary_use_proj": true, "transformers_version": "4.9.0.dev0", "use_cache": true,
                "vocab_size": 50257, "window_size": 256,
            }),
            Read(&[]),
        ),
        (
            "phi-2",
            json!({
                "_name_or_path": "microsoft/phi-2", "architectures": ["PhiForCausalLM"],
                "attention_dropout": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0,
                "eos_token_id": 50256, "hidden_act": "gelu_new", "hidden_size": 2560,
                "initializer_range": 0.02, "intermediate_size": 10240, "layer_norm_eps": 1e-5,
                "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
                "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null,
                "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float16",
                "transformers_version": "4.37.0", "use_cache": true, "vocab_size": 51200,
            }),
            Read(&[]),
        ),
        (
            "Phi-3-mini-4k-instruct",
            json!({
                "architectures": ["Phi3ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0,
                "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1,
                "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
                "initializer_range": 0.02, "intermediate_size": 8192,
                "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 32,
                "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0,
                "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0,
                "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
                "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064,
            }),
            Read(&[]),
        ),
        (
            "Qwen3-0.6B",
            json!({
                "architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
                "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
                "initializer_range": 0.02, "intermediate_size": 3072,
                "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
                "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
                "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000,
                "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
                "vocab_size": 151936,
            }),
            Read(&[]),
        ),
        (
            "OLMo-2-0425-1B",
            json!({
                "architectures": ["Olmo2ForCausalLM"], "attention_bias": false,
                "attention_dropout": 0.0, "eos_token_id": 100257, "hidden_act": "silu",
                "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
                "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16,
                "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 100277,
                "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 500000,
                "tie_word_embeddings": false, "torch_dtype": "float32",
                "transformers_version": "4.47.0", "use_cache": false, "vocab_size": 100352,
            }),
            Read(&[]),
        ),
    ]
}

/// Models that are rejected.
fn refused() -> Vec<(&'static str, Value, Outcome)> {
    let families = [
        ("gpt-j-6b", "gptj"),
        ("opt-125m", "opt"),
        ("Mixtral-8x7B-v0.1", "mixtral"),
        ("bloom-560m", "bloom"),
        ("Qwen2-VL-2B-Instruct", "qwen2_vl"),
        ("falcon-7b", "falcon"),
    ];
    let families = families.map(|(name, model_type)| {
        let config = with(llama(), json!({"model_type": model_type}));
        (name, config, Refused(&["model_type", "expected"]))
    });
    let mut all: Vec<_> = families.into_iter().collect();
    all.extend([
        (
            "Llama-2-7B-GPTQ",
            with(
                llama(),
                json!({
                    "quantization_config": {"bits": 4, "quant_method": "gptq", "group_size": 128},
                }),
            ),
            Refused(&["quantization_config"]),
        ),
        (
            "Llama-3.2-1B-Instruct-bnb-4bit",
            with(
                llama3(),
                json!({
                    "quantization_config": {"load_in_4bit": true, "quant_method": "bitsandbytes"},
                }),
            ),
            Refused(&["quantization_config"]),
        ),
        (
            "multimodal rotary embeddings",
            with(qwen2(), json!({"use_mrope": true})),
            Refused(&["use_mrope"]),
        ),
        (
            "Qwen2.5-Omni's scaling",
            with(
                qwen2(),
                json!({
                    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
                }),
            ),
            Refused(&["rope_scaling.rope_type", "mrope"]),
        ),
        (
            "half of each head rotated",
            with(llama3(), json!({"partial_rotary_factor": 0.5})),
            Refused(&["partial_rotary_factor"]),
        ),
        (
            "the same in transformers 5",
            with(
                llama3(),
                json!({
                    "rope_scaling": null,
                    "rope_parameters": {
                        "rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5,
                    },
                }),
            ),
            Refused(&["rope_parameters.partial_rotary_factor"]),
        ),
        (
            "pairs side by side",
            with(llama3(), json!({"rope_interleaved": true})),
            Refused(&["rope_interleaved"]),
        ),
        (
            "norms of queries and keys",
            with(llama3(), json!({"use_qk_norm": true})),
            Refused(&["use_qk_norm"]),
        ),
        (
            "a cap on logits",
            with(llama3(), json!({"final_logit_softcapping": 30.0})),
            Refused(&["final_logit_softcapping"]),
        ),
        (
            "Granite's multipliers",
            with(llama3(), json!({"embedding_multiplier": 12.0})),
            Refused(&["embedding_multiplier"]),
        ),
        (
            "experts",
            with(llama3(), json!({"num_local_experts": 8})),
            Refused(&["num_local_experts"]),
        ),
        (
            "layers of two kinds",
            with(
                llama3(),
                json!({
                    "layer_types": ["full_attention", "sliding_attention"],
                }),
            ),
            Refused(&["layer_types", "sliding_attention"]),
        ),
        (
            "two rotary embeddings",
            with(
                qwen2(),
                json!({
                    "rope_theta": null,
                    "rope_parameters": {
                        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    },
                }),
            ),
            Refused(&["rope_parameters.sliding_attention"]),
        ),
        (
            "a key nobody has seen, about attention",
            with(llama3(), json!({"attn_sharpening": 1.5})),
            Refused(&["`attn_sharpening` = 1.5"]),
        ),
        (
            "one inside of rope_scaling",
            with(
                llama(),
                json!({
                    "rope_scaling": {"type": "linear", "factor": 2.0, "warp": 3},
                }),
            ),
            Refused(&["rope_scaling.warp"]),
        ),
        (
            "GPT-2 that reads another model",
            with(gpt2(), json!({"add_cross_attention": true})),
            Refused(&["add_cross_attention"]),
        ),
    ]);
    all
}

#[test]
fn configurations_of_published_models() {
    let (read, refused) = (read(), refused());
    assert!(read.len() >= 30 && refused.len() >= 20);
    for (name, config, outcome) in read.into_iter().chain(refused) {
        let scratch = Scratch::empty();
        scratch.write("config.json", config.to_string());
        // There are no weights: a valid configuration fails at their absence.
        match (refusal(scratch.path()), outcome) {
            (LoadError::Checkpoint(CheckpointError::NoWeights { .. }), Read(_)) => {}
            (LoadError::Config { cause, .. }, Refused(texts)) => {
                let message = cause.to_string();
                for text in texts {
                    assert!(
                        message.contains(text),
                        "{name}: {text:?} is not in: {message}"
                    );
                }
                assert!(!message.contains("ignore"), "{name}: {message}");
            }
            (error, _) => panic!("{name}: {error}"),
        }
    }
}

/// Notes come with the model: the same keys on small models that have weights.
#[test]
fn notes_name_what_was_passed_over() {
    for (name, config, outcome) in read() {
        let Read(expected) = outcome else {
            panic!("{name} loads");
        };
        let fixture = match config["model_type"].as_str() {
            Some("gpt2") => "gpt2_plain",
            Some("mistral") => "mistral_plain",
            Some("qwen2") => "qwen2_plain",
            _ => "llama_plain",
        };
        let scratch = Scratch::copy(fixture);
        let changes = expected
            .iter()
            .map(|key| ((*key).to_owned(), config[*key].clone()));
        scratch.set_config(Value::Object(changes.collect()));
        let loaded = super::load::<burn::backend::Flex>(
            scratch.path(),
            &Default::default(),
            &Default::default(),
        );
        let mut keys: Vec<&str> = loaded
            .notes
            .iter()
            .map(|note| match note {
                LoadNote::UnknownConfigKey { key, .. } => key.as_str(),
                note => panic!("{name}: {note}"),
            })
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{name}");
    }
}
