//! LLaMA's attention: separate projections, rotary positions, key-value heads shared by query
//! heads.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::LlamaConfig;
use crate::nn::{
    Attend, CausalPass, ParamInit, Projection, Rotary, attend, merge_heads, split_heads,
};
use crate::site::{Component, Site};
use crate::tap::{NoTap, Tap};

/// Grouped-query causal attention with rotary embeddings.
#[derive(Module, Debug)]
pub struct LlamaAttention<B: Backend> {
    /// Queries, `[d_model, head * d_head]`.
    pub q_proj: Projection<B>,
    /// Keys, `[d_model, kv_head * d_head]`.
    pub k_proj: Projection<B>,
    /// Values, `[d_model, kv_head * d_head]`.
    pub v_proj: Projection<B>,
    /// Output projection, `[head * d_head, d_model]`.
    pub o_proj: Projection<B>,
    heads: usize,
    kv_heads: usize,
    scale: f64,
    windowed: bool,
}

impl<B: Backend> LlamaAttention<B> {
    pub(super) fn new(config: &LlamaConfig, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let dims = &config.dims;
        let (q_width, kv_width) = (dims.heads * dims.d_head, dims.kv_heads * dims.d_head);
        let window = config.sliding_window.as_ref();
        Self {
            q_proj: init.linear(dims.d_model, q_width, config.qkv_bias),
            k_proj: init.linear(dims.d_model, kv_width, config.qkv_bias),
            v_proj: init.linear(dims.d_model, kv_width, config.qkv_bias),
            o_proj: init.linear(q_width, dims.d_model, config.output_bias),
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            scale: 1.0 / (dims.d_head as f64).sqrt(),
            windowed: window.is_some_and(|window| window.layers[layer]),
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub(super) fn forward(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &CausalPass<B>,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);

        let asking = match pass.queries() {
            Some(queries) => x.clone().select(1, queries.tokens.clone()),
            None => x.clone(),
        };
        let q = split_heads(self.q_proj.forward(asking), self.heads);
        let q = tap.heads(site(Component::QueryOutput), q); // [batch, head, pos, d_head]
        let k = split_heads(self.k_proj.forward(x.clone()), self.kv_heads);
        let k = tap.heads(site(Component::KeyOutput), k); // [batch, kv_head, pos, d_head]
        let v = split_heads(self.v_proj.forward(x), self.kv_heads);
        let v = tap.heads(site(Component::ValueOutput), v); // [batch, kv_head, pos, d_head]

        let rotary = rotary(pass);
        let of_queries = pass.query_rotary.as_ref().unwrap_or(rotary);
        let q = tap.heads(site(Component::RotaryQuery), of_queries.rotate(q));
        let k = tap.heads(site(Component::RotaryKey), rotary.rotate(k));

        let mixed = attend(q, k, v, &self.how(layer, pass), tap);
        let mixed = tap.heads(site(Component::AttentionValueOutput), mixed);
        self.o_proj.forward(merge_heads(mixed))
    }

    /// What one head mixes, from what its queries, keys and values read.
    ///
    /// # Shapes
    /// - inputs: `[batch, pos, d_model]`
    /// - output: `[batch, pos, d_head]`
    pub(super) fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        [q, k, v]: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Tensor<B, 3> {
        let [_d_model, width] = self.q_proj.dims();
        let d_head = width / self.heads;
        let own = |projection: &Projection<B>, head: usize, x| {
            let outputs = head * d_head..(head + 1) * d_head;
            projection.forward_part(outputs, x).unsqueeze_dim::<4>(1)
        };
        let kv_head = head / (self.heads / self.kv_heads);
        let rotary = rotary(pass);
        let q = rotary.rotate(own(&self.q_proj, head, q));
        let k = rotary.rotate(own(&self.k_proj, kv_head, k));
        let v = own(&self.v_proj, kv_head, v);
        attend(q, k, v, &self.how(layer, pass), &mut NoTap).squeeze_dim(1)
    }

    fn how<'a>(&self, layer: usize, pass: &'a CausalPass<B>) -> Attend<'a, B> {
        Attend {
            layer,
            scale: self.scale,
            windowed: self.windowed,
            pass,
        }
    }
}

fn rotary<B: Backend>(pass: &CausalPass<B>) -> &Rotary<B> {
    pass.rotary
        .as_ref()
        .expect("a LLaMA pass has rotary tables")
}
