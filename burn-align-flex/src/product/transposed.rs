//! Products of some rows with a transposed weight, such as a token embedding used as the head.
//!
//! The weight, here the transposed `embedding`, is the larger side: it is read once, in order, and
//! never copied; a weight in blocks is widened a few rows at a time. A sum runs over the features
//! in order, so that a row does not depend on what it is batched with.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elements::Elements;
use crate::aligned::Aligned;

/// Maximum number of rows that are faster here than with a copied weight.
pub(super) const MOST_ROWS: usize = 160;
/// Maximum number of vectors of rows of `x` whose sums are kept in registers.
const MOST_VECTORS: usize = 4;
/// Rows of the embedding whose sums are collected before they are stored.
const STRIP: usize = 48;
/// Rows of an embedding in blocks that are widened at a time, so that they stay in the cache.
const WIDENED: usize = 24;
/// Multiplications that take about as long as to widen an element.
const WIDENING: usize = 8;
/// Rows of the embedding per task, at most.
const TASK: usize = 5 * STRIP;
/// Multiplications that are not worth another thread.
const SMALL: usize = 1 << 20;
/// Elements of the widest vector of a CPU.
const MOST_LANES: usize = 16;

thread_local! {
    /// The rows of the embedding that this thread has widened.
    static ROOM: RefCell<Aligned> = const { RefCell::new(Aligned::empty()) };
}

/// Some rows of `x`, feature by feature, filled up with zeros to whole vectors.
struct Packed {
    first: usize,
    rows: usize,
    vectors: usize,
    /// `[width, vectors * lanes]`
    elements: Aligned,
}

/// `x Eᵀ + b`.
///
/// # Shapes
/// - x: `[row, width]`
/// - embedding: `[vocab, width]`, whose rows are `stride` elements apart
/// - bias: `[vocab]`
/// - output: `[row, vocab]`
pub(super) fn affine(
    arch: Arch,
    x: &[f32],
    embedding: Elements,
    stride: usize,
    bias: Option<&[f32]>,
    [rows, width, vocab]: [usize; 3],
) -> Vec<f32> {
    let mut product = vec![0.0; rows * vocab];
    let packed = pack(arch, x, width);
    // Each task handles a part of every row.
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    let of_task = rows_of_a_task(embedding, vocab);
    parts.resize_with(vocab.div_ceil(of_task), || Vec::with_capacity(rows));
    for row in product.chunks_mut(vocab) {
        for (part, piece) in parts.iter_mut().zip(row.chunks_mut(of_task)) {
            part.push(piece);
        }
    }
    let task = |(number, part): (usize, Vec<&mut [f32]>)| {
        ROOM.with_borrow_mut(|room| {
            arch.dispatch(Task {
                packed: &packed,
                embedding: embedding.from(number * of_task * stride),
                stride,
                width,
                room,
                bias: bias.map(|bias| &bias[number * of_task..]),
                part,
            });
        });
    };
    let work = match embedding {
        Elements::F32(_) => rows,
        _ => rows + WIDENING,
    };
    match work * width * vocab <= SMALL {
        true => parts.into_iter().enumerate().for_each(task),
        false => parts.into_par_iter().enumerate().for_each(task),
    }
    product
}

/// Of an embedding in blocks, as many for each thread: its projections have few rows.
fn rows_of_a_task(embedding: Elements, vocab: usize) -> usize {
    match embedding {
        Elements::F32(_) => TASK,
        _ => {
            let tasks = 2 * rayon::current_num_threads();
            vocab.div_ceil(tasks).next_multiple_of(WIDENED).min(TASK)
        }
    }
}

fn pack(arch: Arch, x: &[f32], width: usize) -> Vec<Packed> {
    let lanes = arch.dispatch(Lanes);
    let most_rows = MOST_VECTORS * lanes;
    let blocks = x.chunks(most_rows * width).enumerate();
    let blocks = blocks.map(|(block, x)| {
        let rows = x.len() / width;
        let vectors = rows.div_ceil(lanes);
        let mut elements = Aligned::zeros(width * vectors * lanes);
        for (row, x) in x.chunks(width).enumerate() {
            for (to, x) in elements.elements_mut().chunks_mut(vectors * lanes).zip(x) {
                to[row] = *x;
            }
        }
        Packed {
            first: block * most_rows,
            rows,
            vectors,
            elements,
        }
    });
    blocks.collect()
}

/// Number of elements of a vector.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        S::F32_LANES
    }
}

/// All rows of `x` with some of the embedding.
struct Task<'a> {
    packed: &'a [Packed],
    /// Starts at the first of the rows.
    embedding: Elements<'a>,
    stride: usize,
    width: usize,
    room: &'a mut Aligned,
    bias: Option<&'a [f32]>,
    /// For each row of `x`, the products with these rows of the embedding.
    part: Vec<&'a mut [f32]>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut sums = [0.0; STRIP * MOST_VECTORS * MOST_LANES];
        let rows = self.part[0].len();
        let at_a_time = match self.embedding {
            Elements::F32(_) => STRIP,
            _ => {
                self.room.resize(WIDENED * self.width);
                WIDENED
            }
        };
        for first in (0..rows).step_by(at_a_time) {
            let count = at_a_time.min(rows - first);
            let mut start = [0.0; STRIP];
            if let Some(bias) = self.bias {
                start[..count].copy_from_slice(&bias[first..][..count]);
            }
            let (rows, stride) = match self.embedding.from(first * self.stride) {
                Elements::F32(rows) => (rows, self.stride),
                rows => {
                    let room = self.room.elements_mut();
                    for (row, room) in room.chunks_mut(self.width).take(count).enumerate() {
                        rows.from(row * self.stride).widened(simd, room);
                    }
                    (&*room, self.width)
                }
            };
            let strip = Strip {
                rows,
                stride,
                start: &start[..count],
            };
            for block in self.packed {
                let x = S::as_simd_f32s(block.elements.elements()).0;
                // As many sums as fit into the registers together with what is read.
                let wide = S::F32_LANES == MOST_LANES;
                match (block.vectors, wide) {
                    (1, _) => strip_sums::<S, 1, 8>(simd, x, &strip, &mut sums),
                    (2, true) => strip_sums::<S, 2, 8>(simd, x, &strip, &mut sums),
                    (3, true) => strip_sums::<S, 3, 8>(simd, x, &strip, &mut sums),
                    (_, true) => strip_sums::<S, 4, 6>(simd, x, &strip, &mut sums),
                    (2, false) => strip_sums::<S, 2, 4>(simd, x, &strip, &mut sums),
                    (3, false) => strip_sums::<S, 3, 4>(simd, x, &strip, &mut sums),
                    (_, false) => strip_sums::<S, 4, 2>(simd, x, &strip, &mut sums),
                }
                let stride = block.vectors * S::F32_LANES;
                for row in 0..block.rows {
                    let to = &mut self.part[block.first + row][first..][..count];
                    for (index, to) in to.iter_mut().enumerate() {
                        *to = sums[index * stride + row];
                    }
                }
            }
        }
    }
}

/// Some rows of the embedding.
struct Strip<'a> {
    rows: &'a [f32],
    stride: usize,
    /// Initial values of the sums of each row.
    start: &'a [f32],
}

/// The products of `V` vectors of rows of `x` with rows of the embedding, `R` of these at a time:
/// `[row of the embedding, V * lanes]`.
// Plain loops: a closure would not be compiled for the vectors of `S`.
#[inline(always)]
fn strip_sums<S: Simd, const V: usize, const R: usize>(
    simd: S,
    x: &[S::f32s],
    strip: &Strip,
    sums: &mut [f32],
) {
    let x = x.as_chunks::<V>().0;
    let stride = V * S::F32_LANES;
    let mut first = 0;
    while first + R <= strip.start.len() {
        tile::<S, V, R>(simd, x, strip, first, &mut sums[first * stride..]);
        first += R;
    }
    while first < strip.start.len() {
        tile::<S, V, 1>(simd, x, strip, first, &mut sums[first * stride..]);
        first += 1;
    }
}

/// [`strip_sums`] of `R` rows of the embedding, starting at the first one.
#[inline(always)]
fn tile<S: Simd, const V: usize, const R: usize>(
    simd: S,
    x: &[[S::f32s; V]],
    strip: &Strip,
    first: usize,
    sums: &mut [f32],
) {
    let mut rows = [&strip.rows[..0]; R];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = &strip.rows[(first + index) * strip.stride..][..x.len()];
    }
    for row in &rows {
        assert_eq!(row.len(), x.len());
    }
    let mut tile = [[simd.splat_f32s(0.0); V]; R];
    let mut start = [0.0; R];
    start.copy_from_slice(&strip.start[first..][..R]);
    for r in 0..R {
        tile[r] = [simd.splat_f32s(start[r]); V];
    }
    for (k, x) in x.iter().enumerate() {
        for r in 0..R {
            let e = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                tile[r][v] = simd.mul_add_f32s(e, x[v], tile[r][v]);
            }
        }
    }
    let to = S::as_mut_simd_f32s(sums).0;
    for r in 0..R {
        for v in 0..V {
            to[r * V + v] = tile[r][v];
        }
    }
}
