//! A decoder's attention: queries, keys and values from one matrix or three, norms, rotary
//! positions, key-value heads shared by query heads.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{DecoderConfig, Positions, QkvLayout};
use crate::nn::{
    Attend, Norm, ParamInit, Projection, RotaryConfig, attend, head_part, merge_heads, split_heads,
};
use crate::pass::{Cx, Pass};
use crate::site::{Component, Site};
use crate::tap::NoTap;

/// Grouped-query causal attention.
///
/// Queries, keys and values come from `q`, `k` and `v`, or from `qkv`.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Queries, `[d_model, head * d_head]`.
    pub q: Option<Projection<B>>,
    /// Keys, `[d_model, kv_head * d_head]`.
    pub k: Option<Projection<B>>,
    /// Values, `[d_model, kv_head * d_head]`.
    pub v: Option<Projection<B>>,
    /// Queries, keys and values in one product, `[d_model, (head + 2 * kv_head) * d_head]`.
    pub qkv: Option<Projection<B>>,
    /// Norm of queries, over the features of a head or of all heads.
    pub query_norm: Option<Norm<B>>,
    /// Norm of keys.
    pub key_norm: Option<Norm<B>>,
    /// Output projection, `[head * d_head, d_model]`.
    pub output: Projection<B>,
    heads: usize,
    kv_heads: usize,
    d_head: usize,
    /// Whether `qkv` has each head's query, key and value side by side.
    by_head: bool,
    /// Whether norms run over the features of all heads together.
    norms_all_heads: bool,
    scale: f64,
    #[module(skip)]
    cap: Option<f64>,
    #[module(skip)]
    window: Option<usize>,
    #[module(skip)]
    rotary: Option<RotaryConfig>,
    pub(super) fused: bool,
}

/// Which of queries, keys and values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Query,
    Key,
    Value,
}

impl<B: Backend> Attention<B> {
    pub(super) fn new(config: &DecoderConfig, layer: usize, init: &mut ParamInit<'_, B>) -> Self {
        let dims = &config.dims;
        let (d_model, d_head) = (dims.d_model, dims.d_head);
        let (q_width, kv_width) = (dims.heads * d_head, dims.kv_heads * d_head);
        let bias = config.biases.qkv;
        let split = config.qkv == QkvLayout::Split;
        let by_layer = if config.score_scale_by_layer {
            (layer + 1) as f64
        } else {
            1.0
        };
        let norm = |width: usize, init: &mut ParamInit<'_, B>| {
            let norm = config.qk_norm?;
            let width = if norm.all_heads { width } else { d_head };
            Some(Norm::new(norm.kind, width, config.norm_epsilon, init))
        };
        Self {
            q: split.then(|| init.linear(d_model, q_width, bias)),
            k: split.then(|| init.linear(d_model, kv_width, bias)),
            v: split.then(|| init.linear(d_model, kv_width, bias)),
            qkv: (!split).then(|| init.linear(d_model, q_width + 2 * kv_width, bias)),
            query_norm: norm(q_width, init),
            key_norm: norm(kv_width, init),
            output: init.scaled_linear(
                q_width,
                d_model,
                config.biases.output,
                config.residual_scale(),
            ),
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            d_head,
            by_head: config.qkv == QkvLayout::FusedByHead,
            norms_all_heads: config.qk_norm.is_some_and(|norm| norm.all_heads),
            scale: config.score_scale / by_layer,
            cap: config.score_cap,
            window: config.window(layer),
            rotary: match &config.positions {
                Positions::Learned(_) => None,
                Positions::Rotary { global, local } => {
                    let local = local.as_ref().filter(|_| config.is_windowed(layer));
                    Some(local.unwrap_or(global).clone())
                }
            },
            fused: false,
        }
    }

    /// # Shapes
    /// - x, output: `[batch, pos, d_model]`
    pub(super) fn forward(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);
        let [q, k, v] = self.queries_keys_values(x, cx.pass());
        let q = cx.heads(site(Component::QueryOutput), q); // [batch, head, pos, d_head]
        let k = cx.heads(site(Component::KeyOutput), k); // [batch, kv_head, pos, d_head]
        let v = cx.heads(site(Component::ValueOutput), v); // [batch, kv_head, pos, d_head]

        let q = self.normed(Input::Query, q, site(Component::QueryNorm), cx);
        let k = self.normed(Input::Key, k, site(Component::KeyNorm), cx);
        let [q, k] = match &self.rotary {
            None => [q, k],
            Some(rotary) => {
                let [of_queries, of_keys] = cx.pass().rotary(rotary, q.dtype());
                [
                    cx.heads(site(Component::RotaryQuery), of_queries.rotate(q)),
                    cx.heads(site(Component::RotaryKey), of_keys.rotate(k)),
                ]
            }
        };

        let mixed = attend(q, k, v, &self.how(layer), cx);
        let mixed = cx.heads(site(Component::AttentionValueOutput), mixed);
        self.output.forward(merge_heads(mixed))
    }

    /// Queries, keys and values, `[batch, head, pos, d_head]`; queries only for the tokens that
    /// attend.
    fn queries_keys_values(&self, x: Tensor<B, 3>, pass: &Pass<B>) -> [Tensor<B, 4>; 3] {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let asking = |x: &Tensor<B, 3>| pass.querying(x.clone());
        let Some(qkv) = &self.qkv else {
            let q = self.projected(Input::Query, asking(&x));
            let k = self.projected(Input::Key, x.clone());
            return [q, k, self.projected(Input::Value, x)];
        };
        let all = heads + 2 * kv_heads;
        if self.by_head {
            let [batch, pos, _d_model] = x.dims();
            let parts = qkv.forward(x).reshape([batch * pos, heads, 3, self.d_head]);
            let part = |index| {
                let part = parts.clone().narrow(2, index, 1);
                part.reshape([batch, pos, heads * self.d_head])
            };
            let q = asking(&part(0));
            return [q, part(1), part(2)].map(|part| split_heads(part, heads));
        }
        if pass.queries().is_none() {
            let qkv = qkv.forward(x); // [batch, pos, all * d_head]
            let part = |first, count| head_part(qkv.clone(), all, first..first + count);
            return [
                part(0, heads),
                part(heads, kv_heads),
                part(heads + kv_heads, kv_heads),
            ];
        }
        let q_width = heads * self.d_head;
        let q = qkv.forward_part(0..q_width, asking(&x)); // [batch, query, head * d_head]
        let kv = qkv.forward_part(q_width..all * self.d_head, x);
        [
            head_part(q, heads, 0..heads),
            head_part(kv.clone(), 2 * kv_heads, 0..kv_heads),
            head_part(kv, 2 * kv_heads, kv_heads..2 * kv_heads),
        ]
    }

    /// All heads' queries, keys or values from their own matrix.
    fn projected(&self, input: Input, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let (projection, heads) = match input {
            Input::Query => (&self.q, self.heads),
            Input::Key => (&self.k, self.kv_heads),
            Input::Value => (&self.v, self.kv_heads),
        };
        let projection = projection.as_ref().expect("split or fused");
        split_heads(projection.forward(x), heads)
    }

    /// Queries or keys after their norm, if they have one.
    ///
    /// # Shapes
    /// - x, output: `[batch, head, pos, d_head]`
    fn normed(
        &self,
        input: Input,
        x: Tensor<B, 4>,
        site: Site,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 4> {
        match self.norm(input) {
            None => x,
            Some(norm) => cx.heads(site, self.apply(norm, x)),
        }
    }

    fn norm(&self, input: Input) -> Option<&Norm<B>> {
        match input {
            Input::Query => self.query_norm.as_ref(),
            Input::Key => self.key_norm.as_ref(),
            Input::Value => None,
        }
    }

    fn apply(&self, norm: &Norm<B>, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_batch, heads, _pos, _d_head] = x.dims();
        match self.norms_all_heads {
            true => split_heads(norm.forward(merge_heads(x)), heads),
            false => norm.forward_heads(x),
        }
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
        pass: &Pass<B>,
    ) -> Tensor<B, 3> {
        let kv_head = head / (self.heads / self.kv_heads);
        let q = self.of_one_head(Input::Query, head, q);
        let k = self.of_one_head(Input::Key, kv_head, k);
        let v = self.of_one_head(Input::Value, kv_head, v);
        let [q, k] = match &self.rotary {
            None => [q, k],
            Some(rotary) => {
                let [of_queries, of_keys] = pass.rotary(rotary, q.dtype());
                [of_queries.rotate(q), of_keys.rotate(k)]
            }
        };
        attend(q, k, v, &self.how(layer), &mut Cx::new(&mut NoTap, pass)).squeeze_dim(1)
    }

    /// One head's queries, keys or values, after any norm, `[batch, 1, pos, d_head]`.
    fn of_one_head(&self, input: Input, head: usize, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let Some(norm) = self.norm(input) else {
            return self.one_projected(input, head, x);
        };
        if !self.norms_all_heads {
            return self.apply(norm, self.one_projected(input, head, x));
        }
        // A norm over all heads needs them all.
        let all = match &self.qkv {
            None => self.projected(input, x),
            Some(_) => {
                let heads = match input {
                    Input::Query => self.heads,
                    Input::Key | Input::Value => self.kv_heads,
                };
                let each = (0..heads).map(|head| self.one_projected(input, head, x.clone()));
                Tensor::cat(each.collect(), 1)
            }
        };
        self.apply(norm, all).narrow(1, head, 1)
    }

    /// One head's queries, keys or values as projected, `[batch, 1, pos, d_head]`.
    fn one_projected(&self, input: Input, head: usize, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let (own, before, offset) = match input {
            Input::Query => (&self.q, 0, 0),
            Input::Key => (&self.k, self.heads, 1),
            Input::Value => (&self.v, self.heads + self.kv_heads, 2),
        };
        // The head's place among the heads of its matrix.
        let (projection, place) = match (own, &self.qkv) {
            (Some(own), _) => (own, head),
            (None, Some(qkv)) if self.by_head => (qkv, 3 * head + offset),
            (None, Some(qkv)) => (qkv, before + head),
            (None, None) => unreachable!("split or fused"),
        };
        let outputs = place * self.d_head..(place + 1) * self.d_head;
        projection.forward_part(outputs, x).unsqueeze_dim::<4>(1)
    }

    fn how(&self, layer: usize) -> Attend {
        Attend {
            layer,
            scale: self.scale,
            cap: self.cap,
            window: self.window,
            fused: self.fused,
        }
    }
}
