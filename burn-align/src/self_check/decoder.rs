//! A small decoder on the host, in f64, and the same one on a device.

use std::ops::Range;

use burn::module::Param;
use burn::tensor::{DType, backend::Backend};
use burn_align_models::decoder::Positions;
use burn_align_models::nn::{Norm, NormKind, Projection};
use burn_align_models::{Decoder, DecoderConfig, ModelDims};
use serde_json::{Value, json};

use super::array::Array;
use super::checks::Context;
use super::primitives::Primitives;
use super::reference;

/// A decoder of the GPT-2 or the LLaMA kind.
pub(super) struct HostDecoder {
    config: DecoderConfig,
    /// `[vocab, d_model]`
    pub(super) embedding: Array,
    /// `[max_positions, d_model]`
    positions: Option<Array>,
    layers: Vec<HostLayer>,
    final_norm: HostNorm,
    /// `[d_model, vocab]`, where it is not tied to the embedding.
    head: Option<Array>,
}

struct HostLayer {
    attention_norm: HostNorm,
    /// All queries, then all keys, then all values.
    qkv: HostLinear,
    output: HostLinear,
    mlp_norm: HostNorm,
    gate: Option<HostLinear>,
    up: HostLinear,
    down: HostLinear,
}

struct HostNorm {
    weight: Array,
    bias: Option<Array>,
}

struct HostLinear {
    /// `[d_input, d_output]`
    weight: Array,
    bias: Option<Array>,
}

impl HostDecoder {
    /// Layer norms, learned positions, biases, a fused matrix for queries, keys and values, a tied
    /// head.
    pub(super) fn gpt2_like(dtype: DType) -> Self {
        let config = json!({
            "model_type": "gpt2", "vocab_size": 67, "n_positions": 32, "n_embd": 64, "n_layer": 2,
            "n_head": 4, "n_inner": 104,
        });
        Self::new(&config, dtype)
    }

    /// Root mean square norms, rotary positions, a gated MLP, heads that share keys and values, and
    /// widths that are odd multiples of 32.
    pub(super) fn llama_like(dtype: DType) -> Self {
        let config = json!({
            "model_type": "llama", "vocab_size": 101, "hidden_size": 96, "intermediate_size": 160,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        });
        Self::new(&config, dtype)
    }

    fn new(config: &Value, dtype: DType) -> Self {
        let config = DecoderConfig::from_json(config).expect("a valid configuration");
        let dims = &config.dims;
        let (d_model, vocab) = (dims.d_model, dims.vocab);
        let mut draw = Draw { seed: 1000, dtype };
        Self {
            embedding: draw.array(&[vocab, d_model], 1.0),
            positions: match config.positions {
                Positions::Learned(count) => Some(draw.array(&[count, d_model], 0.5)),
                Positions::Rotary { .. } => None,
            },
            layers: (0..dims.layers).map(|_| draw.layer(&config)).collect(),
            final_norm: draw.norm(&config),
            head: (!config.tie_word_embeddings)
                .then(|| draw.linear([d_model, vocab], false).weight),
            config,
        }
    }

    pub(super) fn dims(&self) -> &ModelDims {
        &self.config.dims
    }

    /// The residual stream before each block and after the last one, `[pos, d_model]` each.
    pub(super) fn streams(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let mut streams = vec![self.embed(tokens)];
        for layer in 0..self.layers.len() {
            streams.push(self.block(layer, &streams[layer]));
        }
        streams
    }

    /// The logits of every position, `[pos, vocab]`.
    pub(super) fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        self.logits_from(0, self.embed(tokens))
    }

    /// The logits of every position, from the residual stream before a block.
    pub(super) fn logits_from(&self, layer: usize, stream: Vec<f64>) -> Vec<f64> {
        let blocks = layer..self.layers.len();
        let stream = blocks.fold(stream, |stream, layer| self.block(layer, &stream));
        let normed = self.normed(&self.final_norm, &stream);
        let (d_model, vocab) = (self.dims().d_model, self.dims().vocab);
        let sizes = [normed.len() / d_model, d_model, vocab];
        match &self.head {
            Some(head) => reference::product(&normed, &head.values, sizes),
            None => {
                let head = reference::transposed(&self.embedding.values, [vocab, d_model]);
                reference::product(&normed, &head, sizes)
            }
        }
    }

    fn embed(&self, tokens: &[u32]) -> Vec<f64> {
        let row = |table: &Array, row: usize| {
            let d_model = self.dims().d_model;
            table.values[row * d_model..][..d_model].to_vec()
        };
        let vectors = tokens.iter().enumerate().map(|(position, token)| {
            let token = row(&self.embedding, *token as usize);
            match &self.positions {
                None => token,
                Some(positions) => sum(&token, &row(positions, position)),
            }
        });
        vectors.flatten().collect()
    }

    /// One block: what it reads and returns is the residual stream, `[pos, d_model]`.
    fn block(&self, layer: usize, stream: &[f64]) -> Vec<f64> {
        let layer = &self.layers[layer];
        let mixed = self.mixed(layer, &self.normed(&layer.attention_norm, stream));
        let stream = sum(stream, &layer.output.of(&mixed));
        let read = self.normed(&layer.mlp_norm, &stream);
        let raised = layer.up.of(&read);
        let hidden: Vec<f64> = match &layer.gate {
            None => raised.iter().map(|x| reference::gelu_tanh(*x)).collect(),
            Some(gate) => {
                let pairs = gate.of(&read).into_iter().zip(&raised);
                pairs.map(|(gate, up)| reference::silu(gate) * up).collect()
            }
        };
        sum(&stream, &layer.down.of(&hidden))
    }

    /// What the heads mix, side by side, `[pos, head * d_head]`.
    fn mixed(&self, layer: &HostLayer, read: &[f64]) -> Vec<f64> {
        let &ModelDims {
            heads,
            kv_heads,
            d_head,
            ..
        } = self.dims();
        let all = layer.qkv.of(read); // [pos, (heads + 2 * kv_heads) * d_head]
        let width = (heads + 2 * kv_heads) * d_head;
        let pos = all.len() / width;
        let part = |index: usize| columns(&all, width, index * d_head..(index + 1) * d_head);
        let placed = |x: Vec<f64>| match &self.config.positions {
            Positions::Learned(_) => x,
            Positions::Rotary { global, .. } => reference::rotated(&x, [pos, d_head], global.theta),
        };
        let by_head = (0..heads).flat_map(|head| {
            let kv_head = head / (heads / kv_heads);
            let q = placed(part(head));
            let k = placed(part(heads + kv_head));
            let v = part(heads + kv_heads + kv_head);
            reference::attention([&q, &k, &v], [pos, pos, d_head])
        });
        let by_head: Vec<f64> = by_head.collect();
        reference::swapped(&by_head, [heads, pos, d_head])
    }

    fn normed(&self, norm: &HostNorm, x: &[f64]) -> Vec<f64> {
        let (weight, epsilon) = (&norm.weight.values, self.config.norm_epsilon);
        match &norm.bias {
            Some(bias) => reference::layer_norm(x, weight, &bias.values, epsilon),
            None => reference::rms_norm(x, weight, epsilon),
        }
    }

    /// The same model on the device.
    pub(super) fn on_device<B: Backend, P: Primitives<B>>(
        &self,
        cx: &Context<'_, B, P>,
    ) -> Decoder<B> {
        let mut model: Decoder<B> = self.config.init_seeded(0, cx.dtype, cx.device);
        model.embedding.weight.set(cx.tensor(&self.embedding));
        if let (Some(there), Some(positions)) = (&mut model.positions, &self.positions) {
            there.weight = Param::from_tensor(cx.tensor(positions));
        }
        for (block, layer) in model.layers.iter_mut().zip(&self.layers) {
            for (norm, host) in [
                (&mut block.attention_norm, &layer.attention_norm),
                (&mut block.mlp_norm, &layer.mlp_norm),
            ] {
                if let Some(norm) = norm {
                    set_norm(norm, host, cx);
                }
            }
            let attention = &mut block.attention;
            set(&mut attention.qkv, &layer.qkv, cx);
            let [q, k, v] = self.parts(&layer.qkv);
            set(&mut attention.q, &q, cx);
            set(&mut attention.k, &k, cx);
            set(&mut attention.v, &v, cx);
            set_projection(&mut attention.output, &layer.output, cx);
            if let Some(gate) = &layer.gate {
                set(&mut block.mlp.gate, gate, cx);
            }
            set(&mut block.mlp.up, &layer.up, cx);
            set_projection(&mut block.mlp.down, &layer.down, cx);
        }
        set_norm(&mut model.final_norm, &self.final_norm, cx);
        if let (Some(there), Some(head)) = (&mut model.lm_head, &self.head) {
            there.weight.set(cx.tensor(head));
        }
        model
    }

    /// The matrices of queries, keys and values.
    fn parts(&self, qkv: &HostLinear) -> [HostLinear; 3] {
        let (q_width, kv_width) = {
            let dims = self.dims();
            (dims.heads * dims.d_head, dims.kv_heads * dims.d_head)
        };
        let ends = [0, q_width, q_width + kv_width, q_width + 2 * kv_width];
        [0, 1, 2].map(|part| qkv.columns(ends[part]..ends[part + 1]))
    }
}

impl HostLinear {
    /// `x W + b`.
    fn of(&self, x: &[f64]) -> Vec<f64> {
        let [inputs, outputs] = [self.weight.shape[0], self.weight.shape[1]];
        let sizes = [x.len() / inputs, inputs, outputs];
        let product = reference::product(x, &self.weight.values, sizes);
        match &self.bias {
            None => product,
            Some(bias) => {
                let biases = bias.values.iter().cycle();
                product.iter().zip(biases).map(|(x, b)| x + b).collect()
            }
        }
    }

    /// Some of the outputs.
    fn columns(&self, outputs: Range<usize>) -> Self {
        let [inputs, width] = [self.weight.shape[0], self.weight.shape[1]];
        let weight = columns(&self.weight.values, width, outputs.clone());
        let shape = [inputs, outputs.len()];
        let bias = self.bias.as_ref();
        Self {
            weight: Array::new(&shape, &weight, self.weight.dtype),
            bias: bias.map(|bias| {
                let part = &bias.values[outputs.clone()];
                Array::new(&[part.len()], part, bias.dtype)
            }),
        }
    }
}

/// Some columns of a matrix whose rows have this width.
fn columns(matrix: &[f64], width: usize, columns: Range<usize>) -> Vec<f64> {
    let rows = matrix.chunks(width).map(|row| &row[columns.clone()]);
    rows.flatten().copied().collect()
}

fn sum(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// Draws weights.
struct Draw {
    seed: u64,
    dtype: DType,
}

impl Draw {
    fn array(&mut self, shape: &[usize], scale: f64) -> Array {
        self.seed += 1;
        Array::drawn(shape, self.seed, scale, self.dtype)
    }

    /// A matrix that keeps the size of what it multiplies.
    fn linear(&mut self, [inputs, outputs]: [usize; 2], bias: bool) -> HostLinear {
        HostLinear {
            weight: self.array(&[inputs, outputs], (3.0 / inputs as f64).sqrt()),
            bias: bias.then(|| self.array(&[outputs], 0.3)),
        }
    }

    fn norm(&mut self, config: &DecoderConfig) -> HostNorm {
        let width = config.dims.d_model;
        let around_zero = self.array(&[width], 0.3);
        let around_one: Vec<f64> = around_zero.values.iter().map(|value| 1.0 + value).collect();
        HostNorm {
            weight: Array::new(&[width], &around_one, self.dtype),
            bias: (config.norm == NormKind::Layer).then(|| self.array(&[width], 0.3)),
        }
    }

    fn layer(&mut self, config: &DecoderConfig) -> HostLayer {
        let (dims, biases) = (&config.dims, &config.biases);
        let (d_model, d_mlp) = (dims.d_model, dims.d_mlp);
        let q_width = dims.heads * dims.d_head;
        let width = q_width + 2 * dims.kv_heads * dims.d_head;
        HostLayer {
            attention_norm: self.norm(config),
            qkv: self.linear([d_model, width], biases.qkv),
            output: self.linear([q_width, d_model], biases.output),
            mlp_norm: self.norm(config),
            gate: dims
                .gated_mlp
                .then(|| self.linear([d_model, d_mlp], biases.mlp)),
            up: self.linear([d_model, d_mlp], biases.mlp),
            down: self.linear([d_mlp, d_model], biases.mlp),
        }
    }
}

fn set<B: Backend, P: Primitives<B>>(
    projection: &mut Option<Projection<B>>,
    linear: &HostLinear,
    cx: &Context<'_, B, P>,
) {
    if let Some(projection) = projection {
        set_projection(projection, linear, cx);
    }
}

fn set_projection<B: Backend, P: Primitives<B>>(
    projection: &mut Projection<B>,
    linear: &HostLinear,
    cx: &Context<'_, B, P>,
) {
    projection.weight.set(cx.tensor(&linear.weight));
    let bias = linear.bias.as_ref();
    projection.bias = bias.map(|bias| Param::from_tensor(cx.tensor(bias)));
}

fn set_norm<B: Backend, P: Primitives<B>>(
    norm: &mut Norm<B>,
    host: &HostNorm,
    cx: &Context<'_, B, P>,
) {
    norm.weight = Param::from_tensor(cx.tensor(&host.weight));
    let bias = host.bias.as_ref();
    norm.bias = bias.map(|bias| Param::from_tensor(cx.tensor(bias)));
}
