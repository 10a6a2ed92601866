//! Causal attention with a tap at each of its activations.

use std::ops::Range;

use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};

use crate::pass::{Cx, Pass};
use crate::site::{Component, Site};
use crate::suffixes::{Prefixes, SuffixClass, Suffixes};
use crate::tap::NoTap;

#[cfg(feature = "flex")]
use super::flex::{AttendingRows, KeysBefore};
use super::unfused;

/// `[batch, pos, head * d_head]` → `[batch, head, pos, d_head]`.
pub fn split_heads<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    head_part(x, heads, 0..heads)
}

/// Some of the heads, which lie side by side.
///
/// # Shapes
/// - x: `[batch, pos, all * d_head]`
/// - output: `[batch, head, pos, d_head]`
pub fn head_part<B: Backend>(x: Tensor<B, 3>, all: usize, part: Range<usize>) -> Tensor<B, 4> {
    #[cfg(feature = "flex")]
    let x = match super::flex::head_part(x, all, part.clone(), 1) {
        Ok(heads) => return heads,
        Err(x) => x,
    };
    let [batch, pos, width] = x.dims();
    let heads = x.reshape([batch, pos, all, width / all]).swap_dims(1, 2);
    match part == (0..all) {
        true => heads,
        false => heads.narrow(1, part.start, part.len()),
    }
}

/// The heads with this index of groups that lie side by side, `size` heads each.
///
/// # Shapes
/// - x: `[batch, pos, group * size * d_head]`
/// - output: `[batch, group, pos, d_head]`
///
/// # Panics
/// If the heads do not fill the groups, or the groups have no such head.
pub fn heads_of_groups<B: Backend>(
    x: Tensor<B, 3>,
    size: usize,
    index: usize,
    d_head: usize,
) -> Tensor<B, 4> {
    let [batch, pos, width] = x.dims();
    assert!(
        index < size && width.is_multiple_of(size * d_head),
        "head {index} of each {size}, of {width} features in heads of {d_head}"
    );
    let all = width / d_head;
    #[cfg(feature = "flex")]
    let x = match super::flex::head_part(x, all, index..all, size) {
        Ok(heads) => return heads,
        Err(x) => x,
    };
    let groups = all / size;
    let heads = x
        .reshape([batch * pos, groups, size, d_head])
        .narrow(2, index, 1);
    split_heads(heads.reshape([batch, pos, groups * d_head]), groups)
}

/// `[batch, head, pos, d_head]` → `[batch, pos, head * d_head]`.
pub fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    #[cfg(feature = "flex")]
    let x = match super::flex::merge_heads(x) {
        Ok(merged) => return merged,
        Err(x) => x,
    };
    let [batch, head, pos, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch, pos, head * d_head])
}

/// Whether attention reads the keys and values of shared prefixes where they lie, so that kinds of
/// [`Suffixes`] cost next to nothing: on Flex, without autodiff.
pub fn attends_in_place<B: Backend>() -> bool {
    #[cfg(feature = "flex")]
    return super::flex::is_flex::<B>();
    #[cfg(not(feature = "flex"))]
    false
}

/// How one layer attends.
#[derive(Clone, Debug, PartialEq)]
pub struct Attend {
    /// The layer, for the sites of scores and weights.
    pub layer: usize,
    /// Factor on the query-key products; usually `1 / √d_head`.
    pub scale: f64,
    /// Soft cap of the scores, `cap · tanh(score / cap)` (Gemma 2).
    pub cap: Option<f64>,
    /// How many positions a query sees, itself included, if fewer than all.
    pub window: Option<usize>,
    /// Whether to use the backend's fused attention where scores and weights are not tapped.
    pub fused: bool,
}

/// Mixes the values: `softmax(scale · q kᵀ, masked) v`, tapped at scores and weights. Runs on whole
/// rows and on [`Suffixes`]. Each key-value head is shared by `head / kv_head` adjacent query
/// heads.
///
/// # Shapes
/// - q: `[batch, head, pos, d_head]`; only the tokens with a [query](Pass::queries)
/// - k, v: `[batch, kv_head, pos, d_head]`
/// - output: as q
pub fn attend<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    how: &Attend,
    cx: &mut Cx<'_, B>,
) -> Tensor<B, 4> {
    let pass = cx.pass();
    pass.keep(how.layer, [&k, &v]);
    #[cfg(feature = "flex")]
    let [q, k, v] = match attend_fast([q, k, v], how, cx) {
        Ok(mixed) => return mixed,
        Err(heads) => heads,
    };
    match pass.suffixes() {
        Some(suffixes) => attend_suffixes(&q, &k, &v, how, pass, suffixes),
        None => attend_rows(q, k, v, how, cx),
    }
}

/// [`attend`] by the kernel for the CPU, where there is one. Whole rows only where scores and
/// weights are not tapped, and the backend's own kernel is not asked for.
#[cfg(feature = "flex")]
fn attend_fast<B: Backend>(
    heads: [Tensor<B, 4>; 3],
    how: &Attend,
    cx: &Cx<'_, B>,
) -> Result<Tensor<B, 4>, [Tensor<B, 4>; 3]> {
    let kernel = super::flex::Attention {
        scale: how.scale,
        cap: how.cap,
        window: how.window,
    };
    let Some(suffixes) = cx.pass().suffixes() else {
        return match how.fused || cx.wants_attention_pattern(how.layer) {
            true => Err(heads),
            false => super::flex::attend(heads, &kernel),
        };
    };
    let classes = suffixes.classes.iter();
    let classes: Vec<_> = classes
        .map(|class| AttendingRows {
            rows: class.rows,
            len: class.len(),
            queries: class.pos - class.queries,
            before: match &class.prefixes {
                None => KeysBefore::None,
                Some(Prefixes::Here { rows, tokens }) => KeysBefore::Tokens {
                    rows: *rows,
                    tokens,
                },
                Some(Prefixes::Kept(layers)) => {
                    let kept = layers.iter().filter(|kept| kept.layer == how.layer);
                    KeysBefore::Parts(kept.map(|kept| [&kept.keys, &kept.values]).collect())
                }
            },
        })
        .collect();
    let [q, k, v] = &heads;
    match super::flex::attend_after([q, k, v], &classes, &kernel) {
        Some(mixed) => {
            heads.into_iter().for_each(super::give_back);
            Ok(mixed)
        }
        None => Err(heads),
    }
}

/// [`attend`] of whole rows.
fn attend_rows<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    how: &Attend,
    cx: &mut Cx<'_, B>,
) -> Tensor<B, 4> {
    let [_batch, head, q_pos, d_head] = q.dims();
    let [_batch, _kv_head, k_pos, _d_head] = k.dims();
    let pass = cx.pass();
    let windowed = how.window.is_some_and(|window| window < k_pos);

    let plain = q_pos == k_pos && !windowed && how.cap.is_none();
    if plain && how.fused && !cx.wants_attention_pattern(how.layer) {
        let [k, v] = [k, v].map(|x| repeat_kv(x, head));
        let standard = 1.0 / (d_head as f64).sqrt();
        let options = AttentionModuleOptions {
            // Backends only take their fast path with the default scale.
            scale: (how.scale != standard).then_some(how.scale),
            is_causal: true,
            ..Default::default()
        };
        return fused_attention(q, k, v, None, None, options);
    }

    let scores = by_group(q, k.swap_dims(2, 3)); // [batch, head, q_pos, k_pos]
    let site = Site::Block(how.layer, Component::AttentionScores);
    let (scores, scale) = match how.cap {
        Some(cap) => (soft_cap(scores * how.scale, cap), 1.0),
        None if cx.wants(site) => (scores * how.scale, 1.0),
        None => (scores, how.scale),
    };
    let scores = cx.heads(site, scores);
    let weights = masked_softmax(scores, scale, how.window, pass);
    let weights = cx.heads(Site::Block(how.layer, Component::AttentionWeights), weights);
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
    how: &Attend,
    pass: &Pass<B>,
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
                None => attend_rows(q, own(k), own(v), how, &mut Cx::new(&mut NoTap, pass)),
                Some(prefixes) => {
                    // [prefix, kv_head, pos, d_head] of each part
                    let before = match prefixes {
                        Prefixes::Here { rows, tokens } => {
                            vec![[k, v].map(|x| rows_of(take(x, tokens), *rows))]
                        }
                        Prefixes::Kept(layers) => {
                            let kept = layers.iter().filter(|kept| kept.layer == how.layer);
                            kept.map(|kept| [kept.keys.clone(), kept.values.clone()])
                                .collect()
                        }
                    };
                    attend_after(q, [own(k), own(v)], before, how, pass, class)
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

/// Attends to a row's own keys, and to those of the prefix before them, in parts.
///
/// All suffixes of one prefix meet its keys in a single product, without copies per suffix.
///
/// # Shapes
/// - q, output: `[row, head, q_pos, d_head]`
/// - own keys and values: `[row, kv_head, len, d_head]`
/// - keys and values before: `[prefix, kv_head, pos, d_head]`, each
fn attend_after<B: Backend>(
    q: Tensor<B, 4>,
    own: [Tensor<B, 4>; 2],
    before: Vec<[Tensor<B, 4>; 2]>,
    how: &Attend,
    pass: &Pass<B>,
    class: &SuffixClass<B>,
) -> Tensor<B, 4> {
    let [k, v] = own;
    let mut scores: Vec<Tensor<B, 4>> = Vec::with_capacity(before.len() + 1);
    for [k_before, _] in &before {
        let [prefix, ..] = k_before.dims();
        let keys = k_before.clone().swap_dims(2, 3);
        let met = by_group(by_prefix(q.clone(), prefix), keys);
        scores.push(by_row(met, class.rows)); // [row, head, q_pos, pos]
    }
    scores.push(by_group(q, k.swap_dims(2, 3))); // [row, head, q_pos, len]
    let scores = Tensor::cat(scores, 3);
    let (scores, scale) = match how.cap {
        Some(cap) => (soft_cap(scores * how.scale, cap), 1.0),
        None => (scores, how.scale),
    };
    let weights = masked_softmax(scores, scale, how.window, pass); // [row, head, q_pos, k_pos]
    let [_row, _head, _q_pos, k_pos] = weights.dims();
    let [_row, _kv_head, len, _d_head] = v.dims();
    let mut mixed = by_group(weights.clone().narrow(3, k_pos - len, len), v);
    let mut start = 0;
    for [_, v_before] in before {
        let [prefix, _kv_head, count, _d_head] = v_before.dims();
        let weights = by_prefix(weights.clone().narrow(3, start, count), prefix);
        mixed = by_row(by_group(weights, v_before), class.rows) + mixed;
        start += count;
    }
    mixed
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
pub fn soft_cap<B: Backend, const D: usize>(x: Tensor<B, D>, cap: f64) -> Tensor<B, D> {
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
    window: Option<usize>,
    pass: &Pass<B>,
) -> Tensor<B, 4> {
    let [_batch, _head, q_pos, k_pos] = scores.dims();
    let window = window.filter(|window| *window < pass.pos());
    #[cfg(feature = "flex")]
    let scores = match super::flex::causal_softmax(scores, scale, window) {
        Ok(weights) => return weights,
        Err(scores) => scores,
    };
    let hidden = pass.mask(window).hidden_from(q_pos, k_pos);
    let hidden = hidden.expand(scores.shape());
    let dtype = scores.dtype();
    let scores = (scores * scale).cast(DType::F32);
    activation::softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3).cast(dtype)
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
        let product = x.matmul(y);
        return match q_pos {
            1 => unfused(product),
            _ => product,
        };
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
