//! Softmax under masks, and attention of whole rows and of single positions.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::nn::CausalMask;

use super::Operation;
use super::checks::{Checks, Context};
use super::primitives::Primitives;
use super::reference;

const BATCH: usize = 2;
const HEAD: usize = 3;

/// `[q_pos, k_pos]` of scores, and how many keys a query sees.
const SCORES: [([usize; 2], Option<usize>); 7] = [
    ([5, 5], None),
    ([33, 33], None),
    ([33, 33], Some(4)),
    ([1, 129], None),
    ([64, 64], None),
    ([24, 200], None),
    ([3, 1025], Some(500)),
];

/// `[pos, d_head]` of attention.
const ROWS: [[usize; 2]; 4] = [[5, 64], [24, 32], [72, 64], [130, 80]];

/// `[past, d_head]`: positions before the new one, in attention to kept keys and values. With the
/// new one, some are multiples of what a kernel reads at once.
const CACHED: [[usize; 2]; 13] = [
    [1, 64],
    [8, 32],
    [15, 64],
    [63, 32],
    [63, 64],
    [63, 128],
    [64, 64],
    [79, 64],
    [127, 128],
    [500, 64],
    [1030, 32],
    [1030, 64],
    [1503, 128],
];

pub(super) fn check<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for (sizes, window) in SCORES {
        softmax(checks, sizes, window);
    }
    for sizes in ROWS {
        whole_rows(checks, sizes);
    }
    for [past, d_head] in CACHED {
        one_position(checks, past, d_head);
    }
}

fn softmax<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [q_pos, k_pos]: [usize; 2],
    window: Option<usize>,
) {
    let scores = checks.draw_scaled(&[BATCH, HEAD, q_pos, k_pos], 6.0);
    let masked = reference::masked(&scores.values, [q_pos, k_pos], window);
    let expected = reference::softmax(&masked, k_pos);
    checks.check(Operation::Softmax, &[&scores], &expected, |cx| {
        weights(cx, cx.tensor(&scores), window)
    });
}

/// The softmax under a causal mask, in f32, and back in the dtype of the scores, as models compute
/// it.
///
/// # Shapes
/// - scores, output: `[batch, head, q_pos, k_pos]`
fn weights<B: Backend, P: Primitives<B>>(
    cx: &Context<'_, B, P>,
    scores: Tensor<B, 4>,
    window: Option<usize>,
) -> Tensor<B, 4> {
    let [_batch, _head, q_pos, k_pos] = scores.dims();
    let hidden = CausalMask::<B>::new(k_pos, window, cx.device).hidden();
    let hidden = hidden.narrow(2, k_pos - q_pos, q_pos).expand(scores.dims());
    let dtype = scores.dtype();
    let scores = cx.primitives.cast(scores, DType::F32);
    let scores = scores.mask_fill(hidden, f32::NEG_INFINITY);
    cx.primitives.cast(cx.primitives.softmax(scores, 3), dtype)
}

/// `softmax(q kᵀ / √d_head, masked) v`.
///
/// # Shapes
/// - q, output: `[batch, head, q_pos, d_head]`
/// - k, v: `[batch, head, k_pos, d_head]`
fn attend<B: Backend, P: Primitives<B>>(
    cx: &Context<'_, B, P>,
    [q, k, v]: [Tensor<B, 4>; 3],
) -> Tensor<B, 4> {
    let [_batch, _head, _q_pos, d_head] = q.dims();
    let scale = (d_head as f64).sqrt().recip();
    let scores = cx.primitives.product(q, k.swap_dims(2, 3)) * scale;
    cx.primitives.product(weights(cx, scores, None), v)
}

fn whole_rows<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [pos, d_head]: [usize; 2],
) {
    let split = [BATCH, pos, HEAD, d_head];
    let [q, k, v] = [(); 3].map(|()| checks.draw(&split));
    let by_head = [&q, &k, &v].map(|x| reference::swapped(&x.values, [pos, HEAD, d_head]));
    let mixed = reference::attention(by_head.each_ref().map(Vec::as_slice), [pos, pos, d_head]);
    let expected = reference::swapped(&mixed, [HEAD, pos, d_head]);
    checks.check(Operation::Attention, &[&q, &k, &v], &expected, |cx| {
        let heads = [&q, &k, &v].map(|x| cx.tensor::<4>(x).swap_dims(1, 2));
        let mixed = attend(cx, heads); // [batch, head, pos, d_head]
        mixed.swap_dims(1, 2).reshape([BATCH, pos, HEAD * d_head])
    });
}

fn one_position<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    past: usize,
    d_head: usize,
) {
    let q = checks.draw(&[BATCH, HEAD, 1, d_head]);
    // Keys and values that were kept, and those of the new position.
    let [old_keys, old_values] = [(); 2].map(|()| checks.draw(&[BATCH, HEAD, past, d_head]));
    let [new_keys, new_values] = [(); 2].map(|()| checks.draw(&[BATCH, HEAD, 1, d_head]));
    let [k, v] = [(&old_keys, &new_keys), (&old_values, &new_values)].map(|(old, new)| {
        let heads = old
            .values
            .chunks(past * d_head)
            .zip(new.values.chunks(d_head));
        let joined = heads.flat_map(|(old, new)| old.iter().chain(new).copied());
        joined.collect::<Vec<f64>>()
    });
    let expected = reference::attention([&q.values, &k, &v], [1, past + 1, d_head]);
    let operation = Operation::CachedAttention;
    checks.check(operation, &[&q, &old_keys, &new_keys], &expected, |cx| {
        let [k, v] = [(&old_keys, &new_keys), (&old_values, &new_values)]
            .map(|(old, new)| Tensor::cat(vec![cx.tensor::<4>(old), cx.tensor(new)], 2));
        attend(cx, [cx.tensor(&q), k, v])
    });
}
