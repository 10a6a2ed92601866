//! Causal attention with a tap at each of its activations.

use std::ops::Range;

use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};

use super::masks::CausalMasks;
use super::rotary::Rotary;
use crate::site::{Component, Site};
use crate::suffixes::{Prefixes, Queries, SuffixClass, Suffixes};
use crate::tap::{NoTap, Tap};

/// State shared by the blocks of one pass over sequences of equal length.
#[derive(Clone, Debug)]
pub struct CausalPass<B: Backend> {
    /// Where queries must not look.
    pub masks: CausalMasks<B>,
    /// How many positions a query sees, itself included, if fewer than all.
    pub window: Option<usize>,
    /// Rotary tables, one for each kind of layer; none in models without rotary embeddings.
    pub rotary: Vec<Rotary<B>>,
    /// Tables of the tokens with a query, if not all have one.
    pub query_rotary: Option<Vec<Rotary<B>>>,
    /// Whether to use the backend's fused attention where scores and weights are not tapped.
    pub fused: bool,
    /// Which positions of which rows are computed, if not all.
    pub suffixes: Option<Suffixes<B>>,
}

impl<B: Backend> CausalPass<B> {
    /// A pass over sequences of `pos` positions in which each position sees itself and the `window
    /// - 1` positions before it.
    pub fn new(
        pos: usize,
        window: Option<usize>,
        rotary: Vec<Rotary<B>>,
        device: &B::Device,
    ) -> Self {
        let window = window.filter(|window| *window < pos);
        Self {
            masks: CausalMasks::new(pos, window, device),
            window,
            rotary,
            query_rotary: None,
            fused: false,
            suffixes: None,
        }
    }

    /// The same for suffixes of rows.
    pub fn with_suffixes(mut self, suffixes: Suffixes<B>) -> Self {
        let at = |positions| {
            self.rotary
                .iter()
                .map(|tables| tables.at(positions))
                .collect()
        };
        self.query_rotary = suffixes
            .queries
            .as_ref()
            .map(|queries| at(&queries.positions));
        self.rotary = at(&suffixes.positions);
        self.suffixes = Some(suffixes);
        self
    }

    /// The tokens with a query, if not all have one.
    pub(crate) fn queries(&self) -> Option<&Queries<B>> {
        self.suffixes.as_ref()?.queries.as_ref()
    }

    /// The rotary tables of queries and of keys, for layers of one kind.
    pub(crate) fn rotary(&self, kind: usize) -> [&Rotary<B>; 2] {
        let of_queries = self.query_rotary.as_ref().unwrap_or(&self.rotary);
        [&of_queries[kind], &self.rotary[kind]]
    }

    /// The same with or without fused attention.
    pub fn with_fused(mut self, fused: bool) -> Self {
        self.fused = fused;
        self
    }
}

/// Numbers of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key-value heads, each shared by `query / kv` query heads.
    pub kv: usize,
}

/// `[batch, pos, head * d_head]` → `[batch, head, pos, d_head]`.
pub(crate) fn split_heads<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    head_part(x, heads, 0..heads)
}

/// Some of the heads, which lie side by side.
///
/// # Shapes
/// - x: `[batch, pos, all * d_head]`
/// - output: `[batch, head, pos, d_head]`
pub(crate) fn head_part<B: Backend>(
    x: Tensor<B, 3>,
    all: usize,
    part: Range<usize>,
) -> Tensor<B, 4> {
    #[cfg(feature = "flex")]
    let x = match super::flex::head_part(x, all, part.clone()) {
        Ok(heads) => return heads,
        Err(x) => x,
    };
    let [batch, pos, width] = x.dims();
    x.reshape([batch, pos, all, width / all])
        .swap_dims(1, 2)
        .narrow(1, part.start, part.len())
}

/// `[batch, head, pos, d_head]` → `[batch, pos, head * d_head]`.
pub(crate) fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    #[cfg(feature = "flex")]
    let x = match super::flex::merge_heads(x) {
        Ok(merged) => return merged,
        Err(x) => x,
    };
    let [batch, head, pos, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch, pos, head * d_head])
}

/// How one layer attends.
pub(crate) struct Attend<'a, B: Backend> {
    pub(crate) layer: usize,
    /// Factor on the query-key products.
    pub(crate) scale: f64,
    /// Soft cap of the scores.
    pub(crate) cap: Option<f64>,
    /// Whether this layer uses the sliding window.
    pub(crate) windowed: bool,
    pub(crate) pass: &'a CausalPass<B>,
}

/// Mixes the values: `softmax(scale · q kᵀ, masked) v`, tapped at scores and weights.
///
/// # Shapes
/// - q: `[batch, head, pos, d_head]`
/// - k, v: `[batch, kv_head, pos, d_head]`
/// - output: `[batch, head, pos, d_head]`
pub(crate) fn attend<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    layer: &Attend<'_, B>,
    tap: &mut dyn Tap<B>,
) -> Tensor<B, 4> {
    match &layer.pass.suffixes {
        Some(suffixes) => attend_suffixes(&q, &k, &v, layer, suffixes),
        None => attend_rows(q, k, v, layer, tap),
    }
}

/// [`attend`] of whole rows.
fn attend_rows<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    layer: &Attend<'_, B>,
    tap: &mut dyn Tap<B>,
) -> Tensor<B, 4> {
    let [_batch, head, q_pos, d_head] = q.dims();
    let [_batch, _kv_head, k_pos, _d_head] = k.dims();
    let windowed = layer.windowed && layer.pass.window.is_some();

    let square = q_pos == k_pos;
    let plain = square && !windowed && layer.cap.is_none();
    if plain && layer.pass.fused && !tap.wants_attention_pattern(layer.layer) {
        let [k, v] = [k, v].map(|x| repeat_kv(x, head));
        let standard = 1.0 / (d_head as f64).sqrt();
        let options = AttentionModuleOptions {
            // Backends only take their fast path with the default scale.
            scale: (layer.scale != standard).then_some(layer.scale),
            is_causal: true,
            ..Default::default()
        };
        return fused_attention(q, k, v, None, None, options);
    }

    let scores = by_group(q, k.swap_dims(2, 3)); // [batch, head, q_pos, k_pos]
    let site = Site::Block(layer.layer, Component::AttentionScores);
    let (scores, scale) = match layer.cap {
        Some(cap) => (soft_cap(scores * layer.scale, cap), 1.0),
        None if tap.wants(site) => (scores * layer.scale, 1.0),
        None => (scores, layer.scale),
    };
    let scores = tap.heads(site, scores);
    let weights = masked_softmax(scores, scale, layer);
    let weights = tap.heads(
        Site::Block(layer.layer, Component::AttentionWeights),
        weights,
    );
    by_group(weights, v)
}

/// [`attend`] of suffixes.
///
/// # Shapes
/// - q: `[1, head, query, d_head]`
/// - k, v: `[1, kv_head, token, d_head]`
/// - output: `[1, head, query, d_head]`
fn attend_suffixes<B: Backend>(
    q: &Tensor<B, 4>,
    k: &Tensor<B, 4>,
    v: &Tensor<B, 4>,
    layer: &Attend<'_, B>,
    suffixes: &Suffixes<B>,
) -> Tensor<B, 4> {
    // The part of a class, row by row.
    let part = |x: &Tensor<B, 4>, first: usize, rows: usize, len: usize| {
        let [_one, _head, all, _d_head] = x.dims();
        match rows * len == all {
            true => rows_of(x.clone(), rows),
            false => rows_of(x.clone().narrow(2, first, rows * len), rows),
        }
    };
    let (mut first_token, mut first_query) = (0, 0);
    let mut mixed = Vec::with_capacity(suffixes.classes.len());
    for class in &suffixes.classes {
        let own = |x: &Tensor<B, 4>| part(x, first_token, class.rows, class.len());
        let asking = class.pos - class.queries;
        if asking > 0 {
            let q = part(q, first_query, class.rows, asking);
            let class_mixed = match &class.prefixes {
                None => attend_rows(q, own(k), own(v), layer, &mut NoTap),
                Some(prefixes) => {
                    // [prefix, kv_head, start, d_head]
                    let before = match prefixes {
                        Prefixes::Here { rows, tokens } => {
                            [k, v].map(|x| rows_of(take(x, tokens), *rows))
                        }
                        Prefixes::Kept(layers) => {
                            let kept = layers.iter().find(|kept| kept.layer == layer.layer);
                            let kept = kept.expect("every layer that is run has been kept");
                            [kept.keys.clone(), kept.values.clone()]
                        }
                    };
                    attend_after(q, [own(k), own(v)], before, layer, class)
                }
            };
            mixed.push(tokens_of(class_mixed));
        }
        first_token += class.rows * class.len();
        first_query += class.rows * asking;
    }
    match mixed.len() {
        1 => mixed.remove(0),
        _ => Tensor::cat(mixed, 2),
    }
}

/// `[1, head, row * len, d_head]` → `[row, head, len, d_head]`.
pub(super) fn rows_of<B: Backend>(x: Tensor<B, 4>, rows: usize) -> Tensor<B, 4> {
    #[cfg(feature = "flex")]
    let x = match super::flex::rows_of(x, rows) {
        Ok(view) => return view,
        Err(x) => x,
    };
    let [_one, head, token, d_head] = x.dims();
    x.swap_dims(1, 2)
        .reshape([rows, token / rows, head, d_head])
        .swap_dims(1, 2)
}

/// `[row, head, len, d_head]` → `[1, head, row * len, d_head]`.
pub(super) fn tokens_of<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    #[cfg(feature = "flex")]
    let x = match super::flex::tokens_of(x) {
        Ok(tokens) => return tokens,
        Err(x) => x,
    };
    let [row, head, len, d_head] = x.dims();
    x.swap_dims(0, 1).reshape([1, head, row * len, d_head])
}

/// Some tokens, `[1, head, token, d_head]`, copied position by position.
fn take<B: Backend>(x: &Tensor<B, 4>, tokens: &Tensor<B, 1, Int>) -> Tensor<B, 4> {
    x.clone()
        .swap_dims(1, 2)
        .select(1, tokens.clone())
        .swap_dims(1, 2)
}

/// Attends to a row's own keys, and to those of the prefix before them.
///
/// All suffixes of one prefix meet its keys in a single product, without copies per suffix.
///
/// # Shapes
/// - q, output: `[row, head, q_pos, d_head]`
/// - own keys and values: `[row, kv_head, len, d_head]`
/// - keys and values before: `[prefix, kv_head, start, d_head]`
fn attend_after<B: Backend>(
    q: Tensor<B, 4>,
    own: [Tensor<B, 4>; 2],
    before: [Tensor<B, 4>; 2],
    layer: &Attend<'_, B>,
    class: &SuffixClass<B>,
) -> Tensor<B, 4> {
    let [_row, _kv_head, len, _d_head] = own[0].dims();
    let [prefix, _kv_head, start, _d_head] = before[0].dims();
    let ([k, v], [k_before, v_before]) = (own, before);
    let scores = Tensor::cat(
        vec![
            by_row(
                by_group(by_prefix(q.clone(), prefix), k_before.swap_dims(2, 3)),
                class.rows,
            ), // [row, head, q_pos, start]
            by_group(q, k.swap_dims(2, 3)), // [row, head, q_pos, len]
        ],
        3,
    );
    let (scores, scale) = match layer.cap {
        Some(cap) => (soft_cap(scores * layer.scale, cap), 1.0),
        None => (scores, layer.scale),
    };
    let weights = masked_softmax(scores, scale, layer); // [row, head, q_pos, pos]
    let weights_before = by_prefix(weights.clone().narrow(3, 0, start), prefix);
    by_row(by_group(weights_before, v_before), class.rows)
        + by_group(weights.narrow(3, start, len), v)
}

/// `[prefix * n, head, len, width]` → `[prefix, head, n * len, width]`.
fn by_prefix<B: Backend>(x: Tensor<B, 4>, prefix: usize) -> Tensor<B, 4> {
    let [row, head, len, width] = x.dims();
    if row == prefix {
        return x;
    }
    let n = row / prefix;
    x.reshape([prefix, n, head, len, width])
        .swap_dims(1, 2)
        .reshape([prefix, head, n * len, width])
}

/// The inverse of [`by_prefix`].
fn by_row<B: Backend>(x: Tensor<B, 4>, row: usize) -> Tensor<B, 4> {
    let [prefix, head, tokens, width] = x.dims();
    if row == prefix {
        return x;
    }
    let (n, len) = (row / prefix, tokens * prefix / row);
    x.reshape([prefix, head, n, len, width])
        .swap_dims(1, 2)
        .reshape([row, head, len, width])
}

/// `cap · tanh(x / cap)`.
pub(crate) fn soft_cap<B: Backend, const D: usize>(x: Tensor<B, D>, cap: f64) -> Tensor<B, D> {
    (x / cap).tanh() * cap
}

/// `softmax(scale · scores)` over the keys that a query sees, computed in f32; 0 for the others.
/// The last query is at the position of the last key.
///
/// # Shapes
/// - scores, output: `[batch, head, q_pos, k_pos]`
fn masked_softmax<B: Backend>(
    scores: Tensor<B, 4>,
    scale: f64,
    layer: &Attend<'_, B>,
) -> Tensor<B, 4> {
    let window = layer.pass.window.filter(|_| layer.windowed);
    #[cfg(feature = "flex")]
    let scores = match super::flex::causal_softmax(scores, scale, window) {
        Ok(weights) => return weights,
        Err(scores) => scores,
    };
    let [_batch, _head, q_pos, k_pos] = scores.dims();
    let masks = &layer.pass.masks;
    let outside = window.and_then(|_| masks.outside_window());
    let mask = outside.unwrap_or_else(|| masks.future());
    let mask = mask
        .narrow(2, k_pos - q_pos, q_pos)
        .narrow(3, 0, k_pos)
        .expand(scores.shape());
    let dtype = scores.dtype();
    let scores = (scores * scale).cast(DType::F32);
    activation::softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 3).cast(dtype)
}

/// The product of each query head's matrix with that of its key-value head, which is not copied per
/// query head.
///
/// # Shapes
/// - x: `[batch, head, q_pos, inner]`
/// - y: `[batch, kv_head, inner, width]`
/// - output: `[batch, head, q_pos, width]`
fn by_group<B: Backend>(x: Tensor<B, 4>, y: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, head, q_pos, inner] = x.dims();
    let [_batch, kv_head, _inner, width] = y.dims();
    if kv_head == head {
        return x.matmul(y);
    }
    // The heads of a group are adjacent, and so are their rows.
    x.reshape([batch, kv_head, head / kv_head * q_pos, inner])
        .matmul(y)
        .reshape([batch, head, q_pos, width])
}

/// Gives every query head its key-value head.
///
/// # Shapes
/// - x: `[batch, kv_head, pos, d_head]`
/// - output: `[batch, head, pos, d_head]`
fn repeat_kv<B: Backend>(x: Tensor<B, 4>, head: usize) -> Tensor<B, 4> {
    let [batch, kv_head, pos, d_head] = x.dims();
    if kv_head == head {
        return x;
    }
    let group = head / kv_head;
    x.reshape([batch, kv_head, 1, pos, d_head])
        .expand([batch, kv_head, group, pos, d_head])
        .reshape([batch, head, pos, d_head])
}
