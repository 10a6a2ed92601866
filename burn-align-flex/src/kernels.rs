//! Loops over slices of f32, on all cores, with the widest vectors that the CPU has.
//!
//! A result does not depend on how the work is divided, so a row comes out the same whatever it
//! is batched with.

use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use crate::functions::exp;
use crate::memory;

/// Elements per task: enough to outweigh the cost of starting it, and no more than fit into the
/// second-level cache.
pub(super) const TASK: usize = 16 * 1024;

/// `x + y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    map_with(x, y, |x, y| x + y);
}

/// `softmax(scale · scores)` of each row of `k_pos` scores, over the keys that its query sees;
/// 0 for the others. Query `i` of `q_pos` is at position `k_pos - q_pos + i`.
pub(super) fn causal_softmax(
    scores: &mut [f32],
    q_pos: usize,
    k_pos: usize,
    scale: f32,
    window: Option<usize>,
) {
    let seen = move |row: usize| {
        let end = k_pos - q_pos + row % q_pos + 1;
        end - window.map_or(end, |window| window.min(end))..end
    };
    per_row(scores, k_pos, move |index, row| {
        softmax(row, seen(index), scale);
    });
}

/// From the gradient of a softmax's result to that of its scores: `scale · w (g - Σ g w)`, in each
/// row of `width` elements. Keys that are not seen have no weight, and so no gradient.
pub(super) fn softmax_gradient(gradient: &mut [f32], weights: &[f32], width: usize, scale: f32) {
    per_row_with(gradient, weights, width, move |gradient, weights| {
        let sum = dot(gradient, weights);
        for (g, w) in gradient.iter_mut().zip(weights) {
            *g = scale * w * (*g - sum);
        }
    });
}

/// The largest element of each row of `width` elements, and `ln Σ eˣ` of what the others are below
/// it: their sum is rounded where it is large, and is not needed.
pub(super) fn log_sums(x: &[f32], width: usize) -> Vec<[f32; 2]> {
    let of_row = |row: &[f32]| {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                let largest = fold(row, f32::NEG_INFINITY, f32::max, f32::max);
                let sum = fold(row, 0.0, |sum, x| sum + exp(x - largest), |a, b| a + b);
                [largest, sum.ln()]
            },
        )
    };
    let rows = x
        .par_chunks(width.max(1))
        .with_min_len((TASK / width.max(1)).max(1));
    rows.map(of_row).collect()
}

/// `g (softmax(x) - 1[label])` of each row: from the gradient of its cross-entropy to that of its
/// elements.
///
/// - log_sums: from [`log_sums`]
pub(super) fn cross_entropy_gradient(
    gradient: &[f32],
    x: &[f32],
    log_sums: &[[f32; 2]],
    labels: &[u32],
) -> Vec<f32> {
    let width = x.len() / labels.len().max(1);
    let mut of_x = memory::numbers(x.len());
    in_tasks(&mut of_x, width.max(1), |row, of_x| {
        let (x, gradient) = (&x[row * width..][..width], gradient[row]);
        let [largest, log_sum] = log_sums[row];
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (of_x, x) in of_x.iter_mut().zip(x) {
                    *of_x = gradient * exp((x - largest) - log_sum);
                }
            },
        );
        of_x[labels[row] as usize] -= gradient;
    });
    of_x
}

/// From the gradient of the result of [`root_mean_square`] to that of its argument: `(g - y mean(g
/// y)) / r`, where `y = x / r`.
pub(super) fn root_mean_square_gradient(
    gradient: &mut [f32],
    x: &[f32],
    width: usize,
    epsilon: f32,
) {
    per_row_with(gradient, x, width, move |gradient, x| {
        through_root_mean_square(gradient, x, epsilon);
    });
}

#[inline(always)]
fn through_root_mean_square(gradient: &mut [f32], x: &[f32], epsilon: f32) {
    let width = x.len() as f32;
    let root = (dot(x, x) / width + epsilon).sqrt();
    let factor = dot(gradient, x) / (width * root * root);
    for (g, x) in gradient.iter_mut().zip(x) {
        *g = (*g - x * factor) / root;
    }
}

/// From the gradient of a layer norm to that of its argument: `(h - mean(h) - y mean(h y)) / r`,
/// where `h = g · weight` and `y = (x - mean(x)) / r`.
pub(super) fn layer_norm_gradient(gradient: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    per_row_with(gradient, x, width, move |gradient, x| {
        let n = width as f32;
        let mean = sum(x) / n;
        for (g, weight) in gradient.iter_mut().zip(weight) {
            *g *= weight;
        }
        let variance = fold_with(x, x, |sum, x, _| sum + (x - mean) * (x - mean)) / n;
        let root = (variance + epsilon).sqrt();
        let mean_gradient = sum(gradient) / n;
        let product = fold_with(gradient, x, |sum, g, x| sum + g * (x - mean));
        let factor = product / (n * root * root);
        for (g, x) in gradient.iter_mut().zip(x) {
            *g = (*g - mean_gradient - (x - mean) * factor) / root;
        }
    });
}

/// `x / √(mean(x²) + ε)` of each row of `width` elements.
pub(super) fn root_mean_square(x: &mut [f32], width: usize, epsilon: f32) {
    per_row(x, width, move |_, row| {
        let root = (square(row) / width as f32 + epsilon).sqrt();
        for x in row {
            *x /= root;
        }
    });
}

/// `(x - mean) / √(var + ε) · weight + bias` of each row, which is as wide as the weight.
pub(super) fn layer_norm(x: &[f32], [weight, bias]: [&[f32]; 2], epsilon: f32) -> Vec<f32> {
    let mut normed = memory::numbers(x.len());
    let width = weight.len();
    per_row_with(&mut normed, x, width, move |to, x| {
        let n = width as f32;
        let mean = sum(x) / n;
        let variance = fold(x, 0.0, |sum, x| sum + (x - mean) * (x - mean), |a, b| a + b) / n;
        let root = (variance + epsilon).sqrt();
        for ((to, x), (weight, bias)) in to.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
            *to = (x - mean) / root * weight + bias;
        }
    });
    normed
}

/// `x / √(mean(x²) + ε) · weight` of each row, which is as wide as the weight.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut normed = memory::numbers(x.len());
    let width = weight.len();
    per_row_with(&mut normed, x, width, move |to, x| {
        let root = (square(x) / width as f32 + epsilon).sqrt();
        for ((to, x), weight) in to.iter_mut().zip(x).zip(weight) {
            *to = x / root * weight;
        }
    });
    normed
}

/// From the gradient of the result of [`rms_norm`] to that of its argument.
pub(super) fn rms_norm_gradient(gradient: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    per_row_with(gradient, x, width, move |gradient, x| {
        for (g, weight) in gradient.iter_mut().zip(weight) {
            *g *= weight;
        }
        through_root_mean_square(gradient, x, epsilon);
    });
}

/// Rotates pairs of the first and the second half of the first features of each vector by the angles
/// of its position, or by `sign` times them; positions are consecutive, and start over after the
/// last one.
///
/// - x: for each position, the vectors of all heads
/// - cos, sin: a row of `half` elements for each position
pub(super) fn rotate(
    x: &mut [f32],
    [cos, sin]: [&[f32]; 2],
    [heads, d_head, half]: [usize; 3],
    sign: f32,
) {
    per_row(x, d_head * heads, move |index, row| {
        let start = index * half % cos.len();
        let (cos, sin) = (&cos[start..][..half], &sin[start..][..half]);
        for head in row.chunks_exact_mut(d_head) {
            rotate_pairs(&mut head[..2 * half], cos, sin, sign);
        }
    });
}

#[inline(always)]
fn rotate_pairs(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = row.split_at_mut(cos.len());
    for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b, sin) = (*first, *second, sign * sin);
        *first = a * cos - b * sin;
        *second = b * cos + a * sin;
    }
}

/// Applies `f` to every element.
pub(super) fn map(x: &mut [f32], f: impl Fn(f32) -> f32 + Copy + Send + Sync) {
    per_row(x, TASK, move |_, row| {
        for x in row {
            *x = f(*x);
        }
    });
}

/// Applies `f` to every element and the corresponding one of the other slice.
pub(super) fn map_with(
    x: &mut [f32],
    other: &[f32],
    f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync,
) {
    per_row_with(x, other, TASK, move |row, other| {
        for (x, other) in row.iter_mut().zip(other) {
            *x = f(*x, *other);
        }
    });
}

/// Calls `f`, compiled for the CPU's vectors, with each row of `width` elements of both slices.
fn per_row_with(
    x: &mut [f32],
    other: &[f32],
    width: usize,
    f: impl Fn(&mut [f32], &[f32]) + Copy + Send + Sync,
) {
    assert_eq!(x.len(), other.len());
    per_row(x, width, move |index, row| {
        f(row, &other[index * width..][..row.len()]);
    });
}

/// Calls `f`, compiled for the CPU's vectors, with each row of `width` elements and its index.
pub(super) fn per_row(
    x: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Copy + Send + Sync,
) {
    in_tasks(x, width, move |index, row| {
        Arch::new().dispatch(
            #[inline(always)]
            || f(index, row),
        );
    });
}

/// Calls `f` with each row of `width` elements and its index, from several threads if there are
/// many.
pub(super) fn in_tasks(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if x.is_empty() {
        return;
    }
    let rows = (TASK / width).max(1);
    let task = |(task, part): (usize, &mut [f32])| {
        for (row, x) in part.chunks_mut(width).enumerate() {
            f(task * rows + row, x);
        }
    };
    if x.len() <= TASK {
        task((0, x));
    } else {
        x.par_chunks_mut(rows * width).enumerate().for_each(task);
    }
}

#[inline(always)]
fn softmax(row: &mut [f32], seen: Range<usize>, scale: f32) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let row = &mut row[seen];
    for x in row.iter_mut() {
        *x *= scale;
    }
    let largest = fold(row, f32::NEG_INFINITY, f32::max, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let sum = fold(row, 0.0, |a, b| a + b, |a, b| a + b);
    for x in row {
        *x /= sum;
    }
}

/// Folds the elements in several lanes, then folds the lanes.
#[inline(always)]
pub(super) fn fold(
    row: &[f32],
    start: f32,
    step: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [start; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = step(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, *x);
    }
    lanes.into_iter().fold(start, join)
}

/// Folds pairs of elements in several lanes, then adds up the lanes.
#[inline(always)]
pub(super) fn fold_with(a: &[f32], b: &[f32], step: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = step(*lane, *a, *b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = step(*lane, *a, *b);
    }
    lanes.into_iter().sum()
}

#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold_with(a, b, |sum, a, b| sum + a * b)
}

/// The sum of the squares.
#[inline(always)]
fn square(a: &[f32]) -> f32 {
    fold(a, 0.0, |sum, x| sum + x * x, |a, b| a + b)
}

#[inline(always)]
fn sum(a: &[f32]) -> f32 {
    fold(a, 0.0, |sum, a| sum + a, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of either sign and many magnitudes.
    fn numbers(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919) % 2003) as f32 / 100.0 - 10.0)
            .collect()
    }

    #[test]
    fn a_row_of_a_softmax_does_not_depend_on_the_others() {
        let (q_pos, k_pos) = (37, 37);
        let one = numbers(q_pos * k_pos);
        let mut alone = one.clone();
        causal_softmax(&mut alone, q_pos, k_pos, 0.3, None);
        let mut many = one.repeat(50); // several tasks
        causal_softmax(&mut many, q_pos, k_pos, 0.3, None);
        for matrix in many.chunks(one.len()) {
            assert_eq!(matrix, alone);
        }
    }

    #[test]
    fn softmax_agrees_with_its_definition() {
        let (k_pos, scale) = (53, 0.7);
        for (q_pos, window) in [(53, None), (20, None), (53, Some(5)), (1, Some(80))] {
            let scores = numbers(3 * q_pos * k_pos);
            let mut weights = scores.clone();
            causal_softmax(&mut weights, q_pos, k_pos, scale, window);
            for (index, row) in scores.chunks(k_pos).enumerate() {
                let position = k_pos - q_pos + index % q_pos;
                let sees = |key: usize| {
                    key <= position && window.is_none_or(|window| key + window > position)
                };
                let power = |key: usize| {
                    if sees(key) {
                        f64::from(row[key] * scale).exp()
                    } else {
                        0.0
                    }
                };
                let sum: f64 = (0..k_pos).map(power).sum();
                for key in 0..k_pos {
                    let found = f64::from(weights[index * k_pos + key]);
                    assert!((found - power(key) / sum).abs() < 1e-6);
                }
            }
        }
    }
}
