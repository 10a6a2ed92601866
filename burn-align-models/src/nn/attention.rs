//! Causal attention with a tap at each of its activations.

use burn::tensor::module::attention as fused_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Int, Tensor, activation, backend::Backend};

use super::rotary::Rotary;
use crate::site::{Component, Site};
use crate::tap::Tap;

/// What the blocks of one pass over sequences of equal length share.
#[derive(Clone, Debug)]
pub struct CausalPass<B: Backend> {
    /// `true` where a query must not look: at later positions. `[1, 1, q_pos, k_pos]`.
    pub future: Tensor<B, 4, Bool>,
    /// [`future`](Self::future), and positions further back than the sliding window reaches;
    /// `None` where the model has no window or the sequence fits into it.
    pub outside_window: Option<Tensor<B, 4, Bool>>,
    /// How many positions a query sees, itself included, where that is fewer than there are.
    pub window: Option<usize>,
    /// Rotary tables, in models with rotary embeddings.
    pub rotary: Option<Rotary<B>>,
    /// Whether to use the backend's fused attention where nobody taps scores or weights.
    pub fused: bool,
}

impl<B: Backend> CausalPass<B> {
    /// The pass over sequences of `pos` positions, where each position sees itself and the
    /// `window - 1` positions before it.
    pub fn new(
        pos: usize,
        window: Option<usize>,
        rotary: Option<Rotary<B>>,
        device: &B::Device,
    ) -> Self {
        let q_pos = Tensor::<B, 1, Int>::arange(0..pos as i64, device).reshape([1, 1, pos, 1]);
        let k_pos = Tensor::<B, 1, Int>::arange(0..pos as i64, device).reshape([1, 1, 1, pos]);
        // How far each key lies behind each query.
        let distance = q_pos.expand([1, 1, pos, pos]) - k_pos.expand([1, 1, pos, pos]);
        let future = distance.clone().lower_elem(0);
        let window = window.filter(|window| *window < pos);
        let outside_window = window.map(|window| {
            future
                .clone()
                .bool_or(distance.greater_equal_elem(window as i64))
        });
        Self {
            future,
            outside_window,
            window,
            rotary,
            fused: false,
        }
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
    let [batch, pos, width] = x.dims();
    x.reshape([batch, pos, heads, width / heads])
        .swap_dims(1, 2)
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
    /// Whether this layer looks through the sliding window.
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
    let [_batch, head, _pos, d_head] = q.dims();
    let k = repeat_kv(k, head);
    let v = repeat_kv(v, head);
    let windowed = layer.windowed && layer.pass.outside_window.is_some();

    if !windowed && layer.pass.fused && !tap.wants_attention_pattern(layer.layer) {
        let standard = 1.0 / (d_head as f64).sqrt();
        let options = AttentionModuleOptions {
            // Backends take their fast path only when the scale is left to them.
            scale: (layer.scale != standard).then_some(layer.scale),
            is_causal: true,
            ..Default::default()
        };
        return fused_attention(q, k, v, None, None, options);
    }

    let scores = q.matmul(k.swap_dims(2, 3)); // [batch, head, q_pos, k_pos]
    let site = Site::Block(layer.layer, Component::AttentionScores);
    let (scores, scale) = if tap.wants(site) {
        (tap.heads(site, scores * layer.scale), 1.0)
    } else {
        (scores, layer.scale)
    };
    let weights = masked_softmax(scores, scale, layer);
    let weights = tap.heads(
        Site::Block(layer.layer, Component::AttentionWeights),
        weights,
    );
    weights.matmul(v)
}

/// `softmax(scale · scores)` over the keys that a query sees, computed in f32; 0 for the others.
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
    let mask = match &layer.pass.outside_window {
        Some(outside) if window.is_some() => outside.clone(),
        _ => layer.pass.future.clone(),
    };
    let dtype = scores.dtype();
    let scores = (scores * scale).cast(DType::F32);
    let mask = mask.expand(scores.shape());
    activation::softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 3).cast(dtype)
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
