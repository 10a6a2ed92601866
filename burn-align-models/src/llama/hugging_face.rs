//! LLaMA, Mistral and Qwen2 in the Hugging Face layout.

use std::path::Path;

use burn::tensor::{DType, backend::Backend};
use serde_json::{Value, json};

use super::{Llama, LlamaConfig, SlidingWindow};
use crate::dims::ModelDims;
use crate::nn::{Activation, Weight};
use crate::pretrained::{
    ConfigError, Family, Fields, FromPretrained, LoadError, LoadOptions, Pretrained, Repository,
    SaveError, SavePretrained, WeightLayout, load_family, read_rotary, save_family, write_scaling,
};
use crate::tokens::Tokenizer;

/// Which of the families with LLaMA's block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Llama,
    Mistral,
    Qwen2,
}

impl Variant {
    fn read(fields: &mut Fields) -> Result<Self, ConfigError> {
        let model_type = fields.optional_text("model_type")?;
        match model_type.as_deref() {
            Some("llama") | None => Ok(Self::Llama),
            Some("mistral") => Ok(Self::Mistral),
            Some("qwen2") => Ok(Self::Qwen2),
            Some(other) => Err(ConfigError::Unsupported {
                key: "model_type".to_owned(),
                found: format!("`{other}`"),
                reason: "expected llama, mistral or qwen2".to_owned(),
            }),
        }
    }
}

impl<B: Backend> FromPretrained<B> for Llama<B> {
    type Config = LlamaConfig;

    fn from_repository(
        repository: &Repository,
        fields: Fields,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<Self, LlamaConfig>, LoadError> {
        load_family(repository, fields, options, device)
    }
}

impl<B: Backend> SavePretrained<B> for Llama<B> {
    fn save_pretrained(
        &self,
        config: &LlamaConfig,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError> {
        save_family(self, config, tokenizer, folder)
    }
}

impl<B: Backend> Family<B> for Llama<B> {
    type Config = LlamaConfig;

    fn read_config(fields: &mut Fields) -> Result<LlamaConfig, ConfigError> {
        let variant = Variant::read(fields)?;
        let (d_model, heads) = (
            fields.size("hidden_size")?,
            fields.size("num_attention_heads")?,
        );
        let default_kv_heads = match variant {
            Variant::Mistral if !fields.has("num_key_value_heads") => 8,
            _ => heads,
        };
        let kv_heads = fields
            .optional_size("num_key_value_heads")?
            .unwrap_or(default_kv_heads);
        if heads % kv_heads != 0 {
            return Err(ConfigError::Invalid {
                key: "num_key_value_heads".to_owned(),
                expected: format!("a divisor of num_attention_heads = {heads}"),
                found: kv_heads.to_string(),
            });
        }
        let d_head = match fields.optional_size("head_dim")? {
            Some(d_head) => d_head,
            None if d_model % heads == 0 => d_model / heads,
            None => {
                return Err(ConfigError::Invalid {
                    key: "num_attention_heads".to_owned(),
                    expected: format!("a divisor of hidden_size = {d_model}, or a head_dim"),
                    found: heads.to_string(),
                });
            }
        };
        if d_head % 2 != 0 {
            return Err(ConfigError::Invalid {
                key: "head_dim".to_owned(),
                expected: "an even number, for the rotary embedding".to_owned(),
                found: d_head.to_string(),
            });
        }

        let layers = fields.layers("num_hidden_layers")?;
        let max_positions = fields.size("max_position_embeddings")?;
        let rotary = read_rotary(fields, d_head, max_positions, 10000.0)?;
        let attention_bias = match variant {
            Variant::Llama => fields.flag("attention_bias", false)?,
            Variant::Mistral | Variant::Qwen2 => false,
        };
        Ok(LlamaConfig {
            dims: ModelDims {
                layers,
                heads,
                kv_heads,
                d_model,
                d_head,
                d_mlp: fields.size("intermediate_size")?,
                gated_mlp: true,
                vocab: fields.size("vocab_size")?,
                max_positions: None,
                rotary: true,
            },
            activation: Activation::read(fields, "hidden_act", Activation::Silu)?,
            rms_norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            rotary,
            qkv_bias: attention_bias || variant == Variant::Qwen2,
            output_bias: attention_bias,
            mlp_bias: match variant {
                Variant::Llama => fields.flag("mlp_bias", false)?,
                Variant::Mistral | Variant::Qwen2 => false,
            },
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            sliding_window: read_window(fields, variant, layers)?,
            initializer_range: fields.optional_number("initializer_range")?.unwrap_or(0.02),
        })
    }

    fn write_config(config: &LlamaConfig) -> Value {
        let dims = &config.dims;
        let qwen2 = config.qkv_bias && !config.output_bias;
        let mut json = json!({
            "vocab_size": dims.vocab,
            "hidden_size": dims.d_model,
            "intermediate_size": dims.d_mlp,
            "num_hidden_layers": dims.layers,
            "num_attention_heads": dims.heads,
            "num_key_value_heads": dims.kv_heads,
            "hidden_act": config.activation.to_string(),
            "max_position_embeddings": config.rotary.max_positions,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rotary.theta,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
        });
        let (architecture, model_type) = if qwen2 {
            json["use_sliding_window"] = config.sliding_window.is_some().into();
            ("Qwen2ForCausalLM", "qwen2")
        } else if config.sliding_window.is_some() {
            ("MistralForCausalLM", "mistral")
        } else {
            json["attention_bias"] = config.qkv_bias.into();
            json["mlp_bias"] = config.mlp_bias.into();
            ("LlamaForCausalLM", "llama")
        };
        json["architectures"] = json!([architecture]);
        json["model_type"] = model_type.into();
        if !qwen2 || dims.heads * dims.d_head != dims.d_model {
            json["head_dim"] = dims.d_head.into();
        }
        if let Some(window) = &config.sliding_window {
            json["sliding_window"] = window.size.into();
            if qwen2 {
                let kind = |windowed: &bool| match windowed {
                    true => "sliding_attention",
                    false => "full_attention",
                };
                json["layer_types"] = window.layers.iter().map(kind).collect();
            }
        }
        if let Some(scaling) = write_scaling(&config.rotary.scaling) {
            json["rope_scaling"] = scaling;
        }
        json
    }

    fn skeleton(config: &LlamaConfig, dtype: DType, device: &B::Device) -> Self {
        config.init_seeded(0, dtype, device)
    }

    fn untie_head(config: &mut LlamaConfig) -> bool {
        config.tie_word_embeddings = false;
        true
    }

    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        let mut weights = vec![(
            "embed_tokens.weight".to_owned(),
            &mut self.embed_tokens.weight,
        )];
        for (layer, block) in self.layers.iter_mut().enumerate() {
            let (attention, mlp) = (&mut block.self_attn, &mut block.mlp);
            for (name, projection) in [
                ("self_attn.q_proj", &mut attention.q_proj),
                ("self_attn.k_proj", &mut attention.k_proj),
                ("self_attn.v_proj", &mut attention.v_proj),
                ("self_attn.o_proj", &mut attention.o_proj),
                ("mlp.gate_proj", &mut mlp.gate_proj),
                ("mlp.up_proj", &mut mlp.up_proj),
                ("mlp.down_proj", &mut mlp.down_proj),
            ] {
                let path = format!("layers.{layer}.{name}.weight");
                weights.push((path, &mut projection.weight));
            }
        }
        let head = self.lm_head.as_mut();
        weights.extend(head.map(|head| ("lm_head.weight".to_owned(), &mut head.weight)));
        weights
    }

    fn layout(config: &LlamaConfig) -> WeightLayout {
        WeightLayout {
            prefix: "model.",
            is_transposed: |path| path.ends_with("_proj.weight") || path == "lm_head.weight",
            // Tables that old versions of `transformers` stored with the weights.
            is_ignored: |path| path.split('.').any(|part| part == "rotary_emb"),
            tied_head: config.tie_word_embeddings.then_some("embed_tokens.weight"),
        }
    }
}

/// Reads which layers use a sliding window, and its size.
fn read_window(
    fields: &mut Fields,
    variant: Variant,
    layers: usize,
) -> Result<Option<SlidingWindow>, ConfigError> {
    match variant {
        Variant::Llama => {
            only_layer_types(fields, "full_attention")?;
            Ok(None)
        }
        Variant::Mistral => {
            let default = (!fields.has("sliding_window")).then_some(4096);
            let size = fields.optional_size("sliding_window")?.or(default);
            only_layer_types(
                fields,
                match size {
                    Some(_) => "sliding_attention",
                    None => "full_attention",
                },
            )?;
            Ok(size.map(|size| SlidingWindow {
                size,
                layers: vec![true; layers],
            }))
        }
        Variant::Qwen2 => {
            let used = fields.flag("use_sliding_window", false)?;
            let default = (!fields.has("sliding_window")).then_some(4096);
            let size = fields.optional_size("sliding_window")?.or(default);
            let first = fields.optional_index("max_window_layers")?.unwrap_or(28);
            let types = fields.optional_texts("layer_types")?;
            let Some(size) = size.filter(|_| used) else {
                return Ok(None);
            };
            let windowed = match types {
                None => (0..layers).map(|layer| layer >= first).collect(),
                Some(types) => read_layer_types(&types, layers)?,
            };
            Ok(Some(SlidingWindow {
                size,
                layers: windowed,
            }))
        }
    }
}

/// Checks that `layer_types`, if present, has the same type for every layer: the one that is
/// computed.
fn only_layer_types(fields: &mut Fields, kind: &str) -> Result<(), ConfigError> {
    let types = fields.optional_texts("layer_types")?.unwrap_or_default();
    match types.into_iter().find(|found| found != kind) {
        None => Ok(()),
        Some(found) => Err(ConfigError::Unsupported {
            key: "layer_types".to_owned(),
            found: format!("`{found}`"),
            reason: format!("all layers of this model family are of type `{kind}`"),
        }),
    }
}

fn read_layer_types(types: &[String], layers: usize) -> Result<Vec<bool>, ConfigError> {
    let invalid = |expected: String, found: String| ConfigError::Invalid {
        key: "layer_types".to_owned(),
        expected,
        found,
    };
    if types.len() != layers {
        let expected = format!("{layers} entries, one for each layer");
        return Err(invalid(expected, types.len().to_string()));
    }
    let windowed = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(invalid(
            "full_attention or sliding_attention".to_owned(),
            format!("`{other}`"),
        )),
    };
    types.iter().map(windowed).collect()
}
