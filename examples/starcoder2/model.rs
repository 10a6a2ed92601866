//! StarCoder2 (arXiv 2402.19173), a family that `burn-align-models` does not have, as in
//! `modeling_starcoder2.py` of Hugging Face `transformers`.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::Component::*;
use burn_align_models::nn::*;
use burn_align_models::pretrained::*;
use burn_align_models::*;
use serde_json::{Value, json};

/// Vectors, `[batch, pos, width]`.
type X<B> = Tensor<B, 3>;

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Starcoder2Config {
    dims: ModelDims,
    rotary: RotaryConfig,
    window: Option<usize>,
    norm_epsilon: f64,
}

/// The model, made of parts that know suffixes of rows, fast paths and quantised weights.
#[derive(Module, Debug)]
pub(crate) struct Starcoder2<B: Backend> {
    embed_tokens: TokenEmbedding<B>,
    layers: Vec<Block<B>>,
    norm: Norm<B>,
    #[module(skip)]
    layout: ModelLayout,
}

#[derive(Module, Debug)]
pub(crate) struct Block<B: Backend> {
    input_layernorm: Norm<B>,
    self_attn: SelfAttention<B>,
    post_attention_layernorm: Norm<B>,
    c_fc: Projection<B>,   // [d_model, d_mlp]
    c_proj: Projection<B>, // [d_mlp, d_model]
}

impl<B: Backend> AlignableTransformer<B> for Starcoder2<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.embed_tokens.weight.device()
    }

    fn embed(&self, input: ModelInput<B>, _: &Pass<B>) -> X<B> {
        self.embed_tokens.embed(input)
    }

    fn sublayer(&self, layer: usize, sublayer: usize, x: X<B>, cx: &mut Cx<'_, B>) -> X<B> {
        let block = &self.layers[layer];
        let site = |component| Site::Block(layer, component);
        if sublayer == 0 {
            let x = cx.stream(site(AttentionInput), block.input_layernorm.forward(x));
            return block.self_attn.forward(layer, x, cx); // taps what is within
        }
        let x = cx.stream(site(MlpInput), block.post_attention_layernorm.forward(x));
        let hidden = Activation::GeluTanh.forward(block.c_fc.forward(x)); // [batch, pos, d_mlp]
        let hidden = cx.stream(site(MlpActivation), hidden);
        block.c_proj.forward(hidden)
    }

    fn final_norm(&self, x: X<B>) -> X<B> {
        self.norm.forward(x)
    }

    fn unembed(&self, x: X<B>) -> X<B> {
        self.embed_tokens.unembed(x)
    }

    fn by_head(&self) -> Option<&dyn ByHead<B>> {
        Some(self)
    }
}

impl<B: Backend> ByHead<B> for Starcoder2<B> {
    fn head_output(&self, layer: usize, head: usize, mixed: X<B>) -> X<B> {
        self.layers[layer].self_attn.head_output(head, mixed)
    }

    fn attention_norm(&self, layer: usize) -> Option<&Norm<B>> {
        Some(&self.layers[layer].input_layernorm)
    }

    fn mlp_norm(&self, layer: usize) -> Option<&Norm<B>> {
        Some(&self.layers[layer].post_attention_layernorm)
    }

    fn head_mixed_normed(&self, layer: usize, head: usize, x: [X<B>; 3], pass: &Pass<B>) -> X<B> {
        let attention = &self.layers[layer].self_attn;
        attention.head_mixed(layer, head, x, pass)
    }
}

/// Keys of published files that `transformers` does not read.
const UNREAD: &str = "activation_function attention_softmax_in_fp32 layer_norm_epsilon mlp_type \
                      norm_type scale_attention_softmax_in_fp32 scale_attn_weights";

impl<B: Backend> Family<B> for Starcoder2<B> {
    type Config = Starcoder2Config;

    fn read_config(fields: &mut Fields) -> Result<Starcoder2Config, ConfigError> {
        fields.only("model_type", &["starcoder2".into()])?;
        fields.only("hidden_act", &["gelu_pytorch_tanh".into()])?;
        fields.only("use_bias", &[true.into()])?;
        fields.only("tie_word_embeddings", &[true.into()])?;
        for key in UNREAD.split(' ') {
            fields.optional_value(key);
        }
        let mut dims = fields.dims()?;
        dims.rotary = true;
        Ok(Starcoder2Config {
            rotary: fields.rotary(dims.d_head, 10000.0)?,
            window: fields.optional_size("sliding_window")?,
            norm_epsilon: fields.number("norm_epsilon")?,
            dims,
        })
    }

    fn write_config(config: &Starcoder2Config) -> Value {
        let mut json = json!({
            "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2",
            "sliding_window": config.window, "norm_epsilon": config.norm_epsilon,
        });
        write_dims(&mut json, &config.dims);
        write_rotary(&mut json, &config.rotary);
        json
    }

    fn skeleton(config: &Starcoder2Config, dtype: DType, device: &B::Device) -> Self {
        let (dims, epsilon) = (&config.dims, config.norm_epsilon);
        let mut init = ParamInit::new(device, dtype, 0, 0.018);
        let attention = SelfAttentionConfig {
            qkv_bias: true,
            output_bias: true,
            rotary: Some(config.rotary.clone()),
            window: config.window,
            ..SelfAttentionConfig::new(dims)
        };
        let layers = (0..dims.layers).map(|_| Block {
            input_layernorm: init.norm(NormKind::Layer, dims.d_model, epsilon),
            self_attn: SelfAttention::new(&attention, &mut init),
            post_attention_layernorm: init.norm(NormKind::Layer, dims.d_model, epsilon),
            c_fc: init.linear(dims.d_model, dims.d_mlp, true),
            c_proj: init.linear(dims.d_mlp, dims.d_model, true),
        });
        Self {
            layers: layers.collect(),
            embed_tokens: init.token_embedding(dims.vocab, dims.d_model),
            norm: init.norm(NormKind::Layer, dims.d_model, epsilon),
            layout: ModelLayout::transformer(dims.clone(), |_| config.window),
        }
    }

    fn weight_layout(_: &Starcoder2Config) -> WeightLayout {
        WeightLayout {
            prefix: "model.",
            names: vec![
                ("layers.*.self_attn.q", "layers.*.self_attn.q_proj"),
                ("layers.*.self_attn.k", "layers.*.self_attn.k_proj"),
                ("layers.*.self_attn.v", "layers.*.self_attn.v_proj"),
                ("layers.*.self_attn.output", "layers.*.self_attn.o_proj"),
                ("layers.*.c_fc", "layers.*.mlp.c_fc"),
                ("layers.*.c_proj", "layers.*.mlp.c_proj"),
            ],
            is_transposed: |path| path != "embed_tokens.weight",
            is_ignored: |_| false,
            tied_head: Some("embed_tokens.weight"),
        }
    }
}
