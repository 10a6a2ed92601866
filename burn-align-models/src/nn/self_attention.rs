//! Grouped-query causal attention as a module: queries, keys and values from one matrix or three,
//! norms, rotary positions, key-value heads shared by query heads.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{
    Attend, Norm, NormKind, ParamInit, Projection, RotaryConfig, attend, head_part,
    heads_of_groups, merge_heads, split_heads,
};
use crate::dims::ModelDims;
use crate::pass::{Cx, Pass};
use crate::site::{Component, Site};
use crate::tap::NoTap;

/// The knobs of one layer's [`SelfAttention`].
#[derive(Clone, Debug, PartialEq)]
pub struct SelfAttentionConfig {
    /// Width of what it reads and returns.
    pub d_model: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key-value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// How the projections to queries, keys and values are stored.
    pub qkv: QkvLayout,
    /// Whether they have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Factor on the initial size of the output projection's weights.
    pub output_init_scale: f64,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Added to the variance or the mean square in these norms.
    pub norm_epsilon: f64,
    /// How queries and keys are rotated. If [`RotaryConfig::d_head`] is less than `d_head`, the
    /// features after it are not.
    pub rotary: Option<RotaryConfig>,
    /// Factor on query-key products.
    pub scale: f64,
    /// Scores are limited to `±cap` as `cap · tanh(score / cap)`.
    pub cap: Option<f64>,
    /// How many positions a query sees, itself included, if fewer than all.
    pub window: Option<usize>,
}

/// How the projections to queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// Three matrices.
    Split,
    /// One matrix: all queries, then all keys, then all values.
    Fused,
    /// One matrix: for each head its query, its key and its value.
    FusedByHead,
}

/// Norms of queries and keys, between their projections and any rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorm {
    /// What the norm computes.
    pub kind: NormKind,
    /// Whether one norm runs over the features of all heads together, rather than over each head's.
    pub all_heads: bool,
}

impl SelfAttentionConfig {
    /// For a model with these sizes: three matrices without biases, scores times `1 / √d_head`, and
    /// neither norms, rotary positions, a soft cap nor a window.
    pub fn new(dims: &ModelDims) -> Self {
        Self {
            d_model: dims.d_model,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            d_head: dims.d_head,
            qkv: QkvLayout::Split,
            qkv_bias: false,
            output_bias: false,
            output_init_scale: 1.0,
            qk_norm: None,
            norm_epsilon: 1e-5,
            rotary: None,
            scale: (dims.d_head as f64).sqrt().recip(),
            cap: None,
            window: None,
        }
    }
}

/// Grouped-query causal attention. Runs on whole rows and on [`Suffixes`](crate::Suffixes),
/// computes queries only for the tokens that have [one](Pass::queries), and taps every activation
/// from [`Component::QueryOutput`] to [`Component::AttentionValueOutput`].
///
/// Queries, keys and values come from `q`, `k` and `v`, or from `qkv`.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// Queries, `[d_model, head * d_head]`.
    pub q: Option<Projection<B>>,
    /// Keys, `[d_model, kv_head * d_head]`.
    pub k: Option<Projection<B>>,
    /// Values, `[d_model, kv_head * d_head]`.
    pub v: Option<Projection<B>>,
    /// Queries, keys and values in one matrix, `[d_model, (head + 2 * kv_head) * d_head]`.
    pub qkv: Option<Projection<B>>,
    /// Norm of queries, over the features of a head or of all heads.
    pub query_norm: Option<Norm<B>>,
    /// Norm of keys.
    pub key_norm: Option<Norm<B>>,
    /// Output projection, `[head * d_head, d_model]`.
    pub output: Projection<B>,
    #[module(skip)]
    config: SelfAttentionConfig,
    fused: bool,
}

/// Which of queries, keys and values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Query,
    Key,
    Value,
}

impl<B: Backend> SelfAttention<B> {
    /// With weights from `init`.
    pub fn new(config: &SelfAttentionConfig, init: &mut ParamInit<'_, B>) -> Self {
        let (d_model, d_head) = (config.d_model, config.d_head);
        let (q_width, kv_width) = (config.heads * d_head, config.kv_heads * d_head);
        let bias = config.qkv_bias;
        let split = config.qkv == QkvLayout::Split;
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
                config.output_bias,
                config.output_init_scale,
            ),
            config: config.clone(),
            fused: false,
        }
    }

    /// Whether to use the backend's fused attention where scores and weights are not tapped, and
    /// where there is neither a window nor a soft cap. Default: no.
    pub fn set_fused(&mut self, fused: bool) {
        self.fused = fused;
    }

    /// What the attention computes from what it reads.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_model]`
    /// - output: the same, but only the tokens with a [query](Pass::queries)
    pub fn forward(&self, layer: usize, x: Tensor<B, 3>, cx: &mut Cx<'_, B>) -> Tensor<B, 3> {
        let site = |component| Site::Block(layer, component);
        let [q, k, v] = self.queries_keys_values(x, cx.pass());
        let q = cx.heads(site(Component::QueryOutput), q); // [batch, head, pos, d_head]
        let k = cx.heads(site(Component::KeyOutput), k); // [batch, kv_head, pos, d_head]
        let v = cx.heads(site(Component::ValueOutput), v); // [batch, kv_head, pos, d_head]

        let q = self.normed(Input::Query, q, site(Component::QueryNorm), cx);
        let k = self.normed(Input::Key, k, site(Component::KeyNorm), cx);
        let mixed = self.rotate_and_attend(layer, [q, k, v], cx);
        let mixed = cx.heads(site(Component::AttentionValueOutput), mixed);
        self.output.forward(merge_heads(mixed))
    }

    /// What one head adds to the output, as
    /// [`ByHead::head_output`](crate::ByHead::head_output) says.
    ///
    /// # Shapes
    /// - mixed: `[batch, pos, d_head]`
    /// - output: `[batch, pos, d_model]`
    pub fn head_output(&self, head: usize, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        self.output.head_output(head, mixed)
    }

    /// What one head mixes, from what its queries, keys and values read: the residual stream after
    /// any norm before the attention. No tap sees it.
    ///
    /// # Shapes
    /// - inputs, in the order queries, keys, values: `[batch, pos, d_model]`
    /// - output: `[batch, pos, d_head]`
    pub fn head_mixed(
        &self,
        layer: usize,
        head: usize,
        [q, k, v]: [Tensor<B, 3>; 3],
        pass: &Pass<B>,
    ) -> Tensor<B, 3> {
        let kv_head = head / (self.config.heads / self.config.kv_heads);
        let q = self.of_one_head(Input::Query, head, q);
        let k = self.of_one_head(Input::Key, kv_head, k);
        let v = self.of_one_head(Input::Value, kv_head, v);
        self.rotate_and_attend(layer, [q, k, v], &mut Cx::new(&mut NoTap, pass))
            .squeeze_dim(1)
    }

    /// Mixes values, after rotating queries and keys if they are.
    ///
    /// # Shapes
    /// - queries, keys, values: `[batch, head, pos, d_head]`, with kv_heads for the latter two
    /// - output: as queries
    fn rotate_and_attend(
        &self,
        layer: usize,
        [q, k, v]: [Tensor<B, 4>; 3],
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 4> {
        let site = |component| Site::Block(layer, component);
        let [q, k] = match &self.config.rotary {
            None => [q, k],
            Some(rotary) => {
                let [of_queries, of_keys] = cx.pass().rotary(rotary, q.dtype());
                [
                    cx.heads(site(Component::RotaryQuery), of_queries.rotate(q)),
                    cx.heads(site(Component::RotaryKey), of_keys.rotate(k)),
                ]
            }
        };
        let how = Attend {
            layer,
            scale: self.config.scale,
            cap: self.config.cap,
            window: self.config.window,
            fused: self.fused,
        };
        attend(q, k, v, &how, cx)
    }

    /// Queries, keys and values, `[batch, head, pos, d_head]`; queries only for the tokens that
    /// attend.
    fn queries_keys_values(&self, x: Tensor<B, 3>, pass: &Pass<B>) -> [Tensor<B, 4>; 3] {
        let (heads, kv_heads, d_head) =
            (self.config.heads, self.config.kv_heads, self.config.d_head);
        let asking = |x: &Tensor<B, 3>| pass.querying(x.clone());
        let Some(qkv) = &self.qkv else {
            let each = [&self.q, &self.k, &self.v].map(|it| it.as_ref().expect("split or fused"));
            let [of_q, of_k, of_v] = each;
            let [q, k, v] = match pass.queries() {
                None => Projection::forward_each(each, x),
                Some(_) => {
                    let q = of_q.forward(asking(&x));
                    let [k, v] = Projection::forward_each([of_k, of_v], x);
                    [q, k, v]
                }
            };
            let of_keys = |x| split_heads(x, kv_heads);
            return [split_heads(q, heads), of_keys(k), of_keys(v)];
        };
        let all = heads + 2 * kv_heads;
        if self.is_by_head() {
            let qkv = qkv.forward(x); // [batch, pos, head * 3 * d_head]
            let part = |index, x| heads_of_groups(x, 3, index, d_head);
            let q = part(0, asking(&qkv));
            return [q, part(1, qkv.clone()), part(2, qkv)];
        }
        let of_heads = |first: usize, count: usize, x: Tensor<B, 3>| {
            qkv.forward_part(first * d_head..(first + count) * d_head, x) // [batch, pos, width]
        };
        // The gradient of a part is as large as the whole, and mostly zeros: of activations here,
        // otherwise of the weight.
        if B::ad_enabled(&x.device()) && !qkv.weight.is_trained() {
            return [
                split_heads(of_heads(0, heads, asking(&x)), heads),
                split_heads(of_heads(heads, kv_heads, x.clone()), kv_heads),
                split_heads(of_heads(heads + kv_heads, kv_heads, x), kv_heads),
            ];
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
        let q = split_heads(of_heads(0, heads, asking(&x)), heads);
        let kv = of_heads(heads, 2 * kv_heads, x);
        let part = |first| head_part(kv.clone(), 2 * kv_heads, first..first + kv_heads);
        [q, part(0), part(kv_heads)]
    }

    /// Whether `qkv` has each head's query, key and value side by side.
    fn is_by_head(&self) -> bool {
        self.config.qkv == QkvLayout::FusedByHead
    }

    /// Whether norms run over the features of all heads together.
    fn norms_all_heads(&self) -> bool {
        self.config.qk_norm.is_some_and(|norm| norm.all_heads)
    }

    /// All heads' queries, keys or values from their own matrix.
    fn projected(&self, input: Input, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let (projection, heads) = match input {
            Input::Query => (&self.q, self.config.heads),
            Input::Key => (&self.k, self.config.kv_heads),
            Input::Value => (&self.v, self.config.kv_heads),
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
        match self.norms_all_heads() {
            true => split_heads(norm.forward(merge_heads(x)), heads),
            false => norm.forward_heads(x),
        }
    }

    /// One head's queries, keys or values, after any norm, `[batch, 1, pos, d_head]`.
    fn of_one_head(&self, input: Input, head: usize, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let Some(norm) = self.norm(input) else {
            return self.one_projected(input, head, x);
        };
        if !self.norms_all_heads() {
            return self.apply(norm, self.one_projected(input, head, x));
        }
        // A norm over all heads needs them all.
        let all = match &self.qkv {
            None => self.projected(input, x),
            Some(_) => {
                let heads = match input {
                    Input::Query => self.config.heads,
                    Input::Key | Input::Value => self.config.kv_heads,
                };
                let each = (0..heads).map(|head| self.one_projected(input, head, x.clone()));
                Tensor::cat(each.collect(), 1)
            }
        };
        self.apply(norm, all).narrow(1, head, 1)
    }

    /// One head's queries, keys or values as projected, `[batch, 1, pos, d_head]`.
    fn one_projected(&self, input: Input, head: usize, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let SelfAttentionConfig {
            heads,
            kv_heads,
            d_head,
            ..
        } = self.config;
        let (own, before, offset) = match input {
            Input::Query => (&self.q, 0, 0),
            Input::Key => (&self.k, heads, 1),
            Input::Value => (&self.v, heads + kv_heads, 2),
        };
        // The head's place among the heads of its matrix.
        let (projection, place) = match (own, &self.qkv) {
            (Some(own), _) => (own, head),
            (None, Some(qkv)) if self.is_by_head() => (qkv, 3 * head + offset),
            (None, Some(qkv)) => (qkv, before + head),
            (None, None) => unreachable!("split or fused"),
        };
        let outputs = place * d_head..(place + 1) * d_head;
        projection.forward_part(outputs, x).unsqueeze_dim::<4>(1)
    }
}
