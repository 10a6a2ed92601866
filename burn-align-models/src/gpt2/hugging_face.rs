//! GPT-2 in the Hugging Face layout.

use std::path::Path;

use burn::tensor::{DType, backend::Backend};
use serde_json::{Value, json};

use super::{Gpt2, Gpt2Config};
use crate::nn::{Activation, Weight};
use crate::pretrained::{
    ConfigError, Family, Fields, FromPretrained, LoadError, LoadOptions, Pretrained, Repository,
    SaveError, SavePretrained, WeightLayout, load_family, save_family,
};
use crate::tokens::Tokenizer;

impl<B: Backend> FromPretrained<B> for Gpt2<B> {
    type Config = Gpt2Config;

    fn from_repository(
        repository: &Repository,
        fields: Fields,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<Pretrained<Self, Gpt2Config>, LoadError> {
        load_family(repository, fields, options, device)
    }
}

impl<B: Backend> SavePretrained<B> for Gpt2<B> {
    fn save_pretrained(
        &self,
        config: &Gpt2Config,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
    ) -> Result<(), SaveError> {
        save_family(self, config, tokenizer, folder)
    }
}

impl<B: Backend> Family<B> for Gpt2<B> {
    type Config = Gpt2Config;

    fn read_config(fields: &mut Fields) -> Result<Gpt2Config, ConfigError> {
        fields.only("model_type", &["gpt2".into()])?;
        fields.only("add_cross_attention", &[false.into()])?;
        fields.only("pruned_heads", &[json!({})])?;
        let config = Gpt2Config {
            vocab_size: fields.size("vocab_size")?,
            n_positions: fields.size("n_positions")?,
            n_embd: fields.size("n_embd")?,
            n_layer: fields.layers("n_layer")?,
            n_head: fields.size("n_head")?,
            n_inner: fields.optional_size("n_inner")?,
            activation: Activation::read(fields, "activation_function", Activation::GeluTanh)?,
            layer_norm_epsilon: fields
                .optional_number("layer_norm_epsilon")?
                .unwrap_or(1e-5),
            scale_attn_weights: fields.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: fields
                .flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
            initializer_range: fields.optional_number("initializer_range")?.unwrap_or(0.02),
        };
        if !config.n_embd.is_multiple_of(config.n_head) {
            return Err(ConfigError::Invalid {
                key: "n_head".to_owned(),
                expected: format!("a divisor of n_embd = {}", config.n_embd),
                found: config.n_head.to_string(),
            });
        }
        Ok(config)
    }

    fn write_config(config: &Gpt2Config) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": config.vocab_size,
            "n_positions": config.n_positions,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.n_inner,
            "activation_function": config.activation.to_string(),
            "layer_norm_epsilon": config.layer_norm_epsilon,
            "scale_attn_weights": config.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": config.tie_word_embeddings,
            "initializer_range": config.initializer_range,
        })
    }

    fn skeleton(config: &Gpt2Config, dtype: DType, device: &B::Device) -> Self {
        config.init_seeded(0, dtype, device)
    }

    fn untie_head(config: &mut Gpt2Config) -> bool {
        config.tie_word_embeddings = false;
        true
    }

    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        let mut weights = vec![("wte.weight".to_owned(), &mut self.wte.weight)];
        for (layer, block) in self.h.iter_mut().enumerate() {
            for (name, projection) in [
                ("attn.c_attn", &mut block.attn.c_attn),
                ("attn.c_proj", &mut block.attn.c_proj),
                ("mlp.c_fc", &mut block.mlp.c_fc),
                ("mlp.c_proj", &mut block.mlp.c_proj),
            ] {
                let path = format!("h.{layer}.{name}.weight");
                weights.push((path, &mut projection.weight));
            }
        }
        let head = self.lm_head.as_mut();
        weights.extend(head.map(|head| ("lm_head.weight".to_owned(), &mut head.weight)));
        weights
    }

    fn layout(config: &Gpt2Config) -> WeightLayout {
        WeightLayout {
            prefix: "transformer.",
            // The other matrices are `Conv1D`s, which are stored `[d_input, d_output]`.
            is_transposed: |path| path == "lm_head.weight",
            // Masks that old versions of `transformers` stored with the weights.
            is_ignored: |path| path.ends_with(".attn.bias") || path.ends_with(".attn.masked_bias"),
            tied_head: config.tie_word_embeddings.then_some("wte.weight"),
        }
    }
}
