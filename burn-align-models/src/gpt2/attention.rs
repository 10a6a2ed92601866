//! GPT-2's attention: one fused projection to queries, keys and values, stored as Hugging Face's
//! `Conv1D`.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::Gpt2Config;
use crate::nn::{Attend, CausalPass, ParamInit, Projection, attend, head_part, merge_heads};
use crate::site::{Component, Site};
use crate::tap::{NoTap, Tap};

/// Multi-head causal attention.
#[derive(Module, Debug)]
pub struct Gpt2Attention<B: Backend> {
    /// Queries, keys and values in one product, `[d_model, 3 * d_model]`.
    pub c_attn: Projection<B>,
    /// Output projection, `[d_model, d_model]`.
    pub c_proj: Projection<B>,
    heads: usize,
    scale: f64,
}

impl<B: Backend> Gpt2Attention<B> {
    pub(super) fn new(config: &Gpt2Config, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let d_model = config.n_embd;
        let d_head = d_model / config.n_head;
        let mut scale = 1.0;
        if config.scale_attn_weights {
            scale /= (d_head as f64).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        Self {
            c_attn: init.linear(d_model, 3 * d_model, true),
            c_proj: init.scaled_linear(d_model, d_model, true, residual_scale(config)),
            heads: config.n_head,
            scale,
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
        let [q, k, v] = self.queries_keys_values(x, pass);
        let q = tap.heads(site(Component::QueryOutput), q);
        let k = tap.heads(site(Component::KeyOutput), k);
        let v = tap.heads(site(Component::ValueOutput), v);

        let mixed = attend(q, k, v, &self.how(layer, pass), tap);
        let mixed = tap.heads(site(Component::AttentionValueOutput), mixed);
        self.c_proj.forward(merge_heads(mixed))
    }

    /// Queries, keys and values, `[batch, head, pos, d_head]`; queries only for the tokens that
    /// attend.
    fn queries_keys_values(&self, x: Tensor<B, 3>, pass: &CausalPass<B>) -> [Tensor<B, 4>; 3] {
        let heads = self.heads;
        let Some(queries) = pass.queries() else {
            let qkv = self.c_attn.forward(x); // [batch, pos, 3 * d_model]
            return [0, 1, 2]
                .map(|i| head_part(qkv.clone(), 3 * heads, i * heads..(i + 1) * heads));
        };
        let [_batch, _pos, d_model] = x.dims();
        let asking = x.clone().select(1, queries.tokens.clone());
        let q = self.c_attn.forward_part(0..d_model, asking); // [batch, query, d_model]
        let kv = self.c_attn.forward_part(d_model..3 * d_model, x); // [batch, pos, 2 * d_model]
        [
            head_part(q, heads, 0..heads),
            head_part(kv.clone(), 2 * heads, 0..heads),
            head_part(kv, 2 * heads, heads..2 * heads),
        ]
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
        inputs: [Tensor<B, 3>; 3],
        pass: &CausalPass<B>,
    ) -> Tensor<B, 3> {
        let [d_model, _three] = self.c_attn.dims();
        let d_head = d_model / self.heads;
        let mut first = head * d_head;
        let [q, k, v] = inputs.map(|x| {
            let own = self.c_attn.forward_part(first..first + d_head, x);
            first += d_model;
            own.unsqueeze_dim::<4>(1)
        });
        attend(q, k, v, &self.how(layer, pass), &mut NoTap).squeeze_dim(1)
    }

    fn how<'a>(&self, layer: usize, pass: &'a CausalPass<B>) -> Attend<'a, B> {
        Attend {
            layer,
            scale: self.scale,
            windowed: false,
            pass,
        }
    }
}

/// Projections into the residual stream are initialised smaller, so that its variance does not grow
/// with depth: `1 / √(number of projections)` (Radford et al. 2019, §2.3).
pub(super) fn residual_scale(config: &Gpt2Config) -> f64 {
    1.0 / ((2 * config.n_layer) as f64).sqrt()
}
