//! Decoders in the Hugging Face layout.

use burn::tensor::{DType, backend::Backend};
use serde_json::Value;

use super::{Decoder, DecoderConfig};
use crate::nn::{Projection, Weight};
use crate::pretrained::{ConfigError, Family, Fields, WeightLayout};

impl<B: Backend> Family<B> for Decoder<B> {
    type Config = DecoderConfig;

    fn read_config(fields: &mut Fields) -> Result<DecoderConfig, ConfigError> {
        DecoderConfig::read(fields)
    }

    fn write_config(config: &DecoderConfig) -> Value {
        config.to_json()
    }

    fn skeleton(config: &DecoderConfig, dtype: DType, device: &B::Device) -> Self {
        config.init_seeded(0, dtype, device)
    }

    fn untie_head(config: &mut DecoderConfig) -> bool {
        config.tie_word_embeddings = false;
        true
    }

    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        let mut weights = vec![("embedding.weight".to_owned(), &mut self.embedding.weight)];
        for (layer, block) in self.layers.iter_mut().enumerate() {
            let (attention, mlp) = (&mut block.attention, &mut block.mlp);
            let projections: [(&str, Option<&mut Projection<B>>); 9] = [
                ("attention.q", attention.q.as_mut()),
                ("attention.k", attention.k.as_mut()),
                ("attention.v", attention.v.as_mut()),
                ("attention.qkv", attention.qkv.as_mut()),
                ("attention.output", Some(&mut attention.output)),
                ("mlp.gate", mlp.gate.as_mut()),
                ("mlp.up", mlp.up.as_mut()),
                ("mlp.gate_up", mlp.gate_up.as_mut()),
                ("mlp.down", Some(&mut mlp.down)),
            ];
            for (name, projection) in projections {
                let path = format!("layers.{layer}.{name}.weight");
                weights.extend(projection.map(|projection| (path, &mut projection.weight)));
            }
        }
        let head = self.lm_head.as_mut();
        weights.extend(head.map(|head| ("lm_head.weight".to_owned(), &mut head.weight)));
        weights
    }

    fn weight_layout(config: &DecoderConfig) -> WeightLayout {
        let mapping = config.family.mapping();
        WeightLayout {
            prefix: mapping.prefix,
            names: mapping.names.concat(),
            is_transposed: match mapping.input_first {
                true => |path| path == WeightLayout::HEAD,
                false => is_projection,
            },
            is_ignored: mapping.is_buffer,
            tied_head: config.tie_word_embeddings.then_some("embedding.weight"),
        }
    }
}

/// Whether a parameter is the matrix of a projection, rather than an embedding or a norm.
fn is_projection(path: &str) -> bool {
    let module = path.strip_suffix(".weight");
    let in_block = module.and_then(|module| module.rsplit_once('.'));
    path == WeightLayout::HEAD
        || in_block.is_some_and(|(parent, name)| match parent.rsplit('.').next() {
            Some("attention") => !name.ends_with("norm"),
            Some("mlp") => true,
            _ => false,
        })
}
