//! Configurations of published models.

use serde_json::{Value, json};

use super::{DecoderConfig, Positions};

/// A configuration from what a `config.json` has; absent keys have the defaults of their family.
fn preset(json: Value) -> DecoderConfig {
    DecoderConfig::from_json(&json).expect("a preset is a valid configuration")
}

fn gpt2(d_model: usize, layers: usize, heads: usize) -> DecoderConfig {
    preset(json!({
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024,
        "n_embd": d_model, "n_layer": layers, "n_head": heads,
    }))
}

fn pythia(d_model: usize, layers: usize, heads: usize) -> DecoderConfig {
    preset(json!({
        "model_type": "gpt_neox", "vocab_size": 50304, "max_position_embeddings": 2048,
        "hidden_size": d_model, "intermediate_size": 4 * d_model, "num_hidden_layers": layers,
        "num_attention_heads": heads, "rotary_pct": 0.25, "rotary_emb_base": 10000.0,
        "use_parallel_residual": true,
    }))
}

fn llama_7b(max_positions: usize, norm_epsilon: f64) -> DecoderConfig {
    preset(json!({
        "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": max_positions,
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "rms_norm_eps": norm_epsilon, "rope_theta": 10000.0,
    }))
}

fn gemma3(d_model: usize, d_mlp: usize, layers: usize) -> DecoderConfig {
    preset(json!({
        "model_type": "gemma3_text", "vocab_size": 262144, "max_position_embeddings": 32768,
        "hidden_size": d_model, "intermediate_size": d_mlp, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6,
        "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
    }))
}

fn phi(d_model: usize, layers: usize, rotated_share: f64) -> DecoderConfig {
    preset(json!({
        "model_type": "phi", "vocab_size": 51200, "max_position_embeddings": 2048,
        "hidden_size": d_model, "intermediate_size": 4 * d_model, "num_hidden_layers": layers,
        "num_attention_heads": 32, "partial_rotary_factor": rotated_share, "rope_theta": 10000.0,
    }))
}

impl DecoderConfig {
    /// GPT-2 small: 124 million parameters.
    pub fn gpt2() -> Self {
        gpt2(768, 12, 12)
    }

    /// DistilGPT-2: 82 million parameters.
    pub fn distilgpt2() -> Self {
        gpt2(768, 6, 12)
    }

    /// GPT-2 medium: 355 million parameters.
    pub fn gpt2_medium() -> Self {
        gpt2(1024, 24, 16)
    }

    /// GPT-2 large: 774 million parameters.
    pub fn gpt2_large() -> Self {
        gpt2(1280, 36, 20)
    }

    /// GPT-2 XL: 1.56 billion parameters.
    pub fn gpt2_xl() -> Self {
        gpt2(1600, 48, 25)
    }

    /// GPT-Neo 125M: half of the layers look back 256 positions.
    pub fn gpt_neo_125m() -> Self {
        preset(json!({
            "model_type": "gpt_neo", "vocab_size": 50257, "max_position_embeddings": 2048,
            "hidden_size": 768, "num_layers": 12, "num_heads": 12, "window_size": 256,
            "attention_types": [[["global", "local"], 6]],
        }))
    }

    /// Pythia 70M.
    pub fn pythia_70m() -> Self {
        pythia(512, 6, 8)
    }

    /// Pythia 1B.
    pub fn pythia_1b() -> Self {
        pythia(2048, 16, 8)
    }

    /// LLaMA 7B (2023).
    pub fn llama_7b() -> Self {
        llama_7b(2048, 1e-6)
    }

    /// LLaMA 2 7B: 6.7 billion parameters.
    pub fn llama2_7b() -> Self {
        llama_7b(4096, 1e-5)
    }

    /// LLaMA 3 8B: 8 billion parameters, grouped-query attention.
    pub fn llama3_8b() -> Self {
        preset(json!({
            "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192,
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
        }))
    }

    /// LLaMA 3.2 1B: 1.2 billion parameters, grouped-query attention, tied embeddings.
    pub fn llama3_2_1b() -> Self {
        preset(json!({
            "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072,
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": true,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        }))
    }

    /// SmolLM2 135M: a LLaMA with tied embeddings.
    pub fn smollm2_135m() -> Self {
        preset(json!({
            "model_type": "llama", "vocab_size": 49152, "max_position_embeddings": 8192,
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0, "tie_word_embeddings": true,
        }))
    }

    /// Mistral 7B v0.1: each layer looks back 4096 positions.
    pub fn mistral_7b() -> Self {
        preset(json!({
            "model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768,
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "sliding_window": 4096,
        }))
    }

    /// Qwen2.5 0.5B.
    pub fn qwen2_5_0_5b() -> Self {
        preset(json!({
            "model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768,
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "tie_word_embeddings": true,
        }))
    }

    /// Qwen3 0.6B.
    pub fn qwen3_0_6b() -> Self {
        preset(json!({
            "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960,
            "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        }))
    }

    /// Gemma 2 2B: 2.6 billion parameters.
    pub fn gemma2_2b() -> Self {
        preset(json!({
            "model_type": "gemma2", "vocab_size": 256000, "max_position_embeddings": 8192,
            "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 10000.0,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        }))
    }

    /// Gemma 3 270M.
    pub fn gemma3_270m() -> Self {
        gemma3(640, 2048, 18)
    }

    /// Gemma 3 1B.
    pub fn gemma3_1b() -> Self {
        gemma3(1152, 6912, 26)
    }

    /// Phi-1: 1.4 billion parameters.
    pub fn phi_1() -> Self {
        phi(2048, 24, 0.5)
    }

    /// Phi-2: 2.8 billion parameters.
    pub fn phi_2() -> Self {
        phi(2560, 32, 0.4)
    }

    /// Phi-3 mini for 4096 positions: 3.8 billion parameters.
    pub fn phi3_mini() -> Self {
        preset(json!({
            "model_type": "phi3", "vocab_size": 32064, "max_position_embeddings": 4096,
            "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "sliding_window": 2047,
        }))
    }

    /// OLMo 2 1B.
    pub fn olmo2_1b() -> Self {
        preset(json!({
            "model_type": "olmo2", "vocab_size": 100352, "max_position_embeddings": 4096,
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 16, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        }))
    }

    /// The same model for sequences of up to `max_positions`. With rotary embeddings, this is not a
    /// limit; see [`RotaryConfig::max_positions`](crate::nn::RotaryConfig::max_positions).
    pub fn with_max_positions(mut self, max_positions: usize) -> Self {
        match &mut self.positions {
            Positions::Learned(count) => {
                *count = max_positions;
                self.dims.max_positions = Some(max_positions);
            }
            Positions::Rotary { global, local } => {
                for rotary in [Some(global), local.as_mut()].into_iter().flatten() {
                    rotary.max_positions = max_positions;
                }
            }
        }
        self
    }
}
