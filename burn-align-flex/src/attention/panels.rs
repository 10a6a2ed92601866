//! Vectors laid out for products, and products of what is laid out.

use std::array;

use pulp::{NullaryFnOnce, Simd};

use super::rows::{Part, Vectors};
use crate::tiles::{VECTORS, with_rows};

/// Rows of the largest tile.
pub(super) const MOST_ROWS: usize = 14;
/// Elements of the largest tile.
pub(super) const MOST_SUMS: usize = MOST_ROWS * VECTORS * 16;

/// Tokens that are transposed at a time, and their features.
const SQUARE: usize = 8;

/// Which vectors of a part are laid out, and where.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The row of the part, and the key-value head.
    pub(super) of: [usize; 2],
    /// The place of its first key among all keys.
    pub(super) first: usize,
    /// Number of all keys; those after them are left out.
    pub(super) count: usize,
    pub(super) d_head: usize,
}

impl Place {
    /// How many of the part's keys are laid out.
    #[inline(always)]
    fn here(&self, part: &Part<'_>) -> usize {
        part.count.min(self.count.saturating_sub(self.first))
    }

    /// The vector of a position.
    #[inline(always)]
    fn vector<'a>(&self, part: &Part<'_>, vectors: &Vectors<'a>, position: usize) -> &'a [f32] {
        let [row, kv_head] = self.of;
        let [row, token] = part.place(row, position);
        vectors.at([row, kv_head, token], self.d_head)
    }
}

/// Vectors of a part as columns: `[panel of keys, feature, width of a tile]`.
#[inline(always)]
pub(super) fn as_columns<S: Simd>(
    part: &Part<'_>,
    vectors: &Vectors<'_>,
    place: Place,
    to: &mut [f32],
) {
    let width = VECTORS * S::F32_LANES;
    let Place { first, d_head, .. } = place;
    let here = place.here(part);
    let mut position = 0;
    while position < here {
        let key = first + position;
        let panel = &mut to[key / width * width * d_head..][..width * d_head];
        let column = key % width;
        let whole = column + SQUARE <= width && here - position >= SQUARE;
        if !whole || d_head % SQUARE != 0 {
            let from = place.vector(part, vectors, position);
            for (feature, from) in panel.chunks_exact_mut(width).zip(from) {
                feature[column] = *from;
            }
            position += 1;
            continue;
        }
        let from: [&[f32]; SQUARE] =
            array::from_fn(|index| place.vector(part, vectors, position + index));
        for feature in (0..d_head).step_by(SQUARE) {
            let mut square = [[0.0; SQUARE]; SQUARE];
            for (key, from) in from.iter().enumerate() {
                for (to, from) in square.iter_mut().zip(&from[feature..][..SQUARE]) {
                    to[key] = *from;
                }
            }
            let panel = &mut panel[feature * width..];
            for (row, square) in square.iter().enumerate() {
                panel[row * width + column..][..SQUARE].copy_from_slice(square);
            }
        }
        position += SQUARE;
    }
}

/// Vectors of a part as rows: `[panel of features, key, width of a tile]`.
#[inline(always)]
pub(super) fn as_rows<S: Simd>(
    part: &Part<'_>,
    vectors: &Vectors<'_>,
    place: Place,
    to: &mut [f32],
) {
    let width = VECTORS * S::F32_LANES;
    for position in 0..place.here(part) {
        let from = place.vector(part, vectors, position);
        for (panel, from) in from.chunks(width).enumerate() {
            let row = panel * place.count + place.first + position;
            to[row * width..][..from.len()].copy_from_slice(from);
        }
    }
}

/// Sums over `x`, `[inner, rows]`, times `panel`, `[inner, width of a tile]`, in order.
///
/// # Shapes
/// - sums: `[rows, width of a tile]`
// Inlined, the kernels of all numbers of rows would be compiled for each call.
#[inline(never)]
pub(super) fn multiply<S: Simd>(simd: S, x: &[f32], panel: &[f32], sums: &mut [f32], rows: usize) {
    with_rows!(S, rows, |R| simd.vectorize(Product::<S, R> {
        simd,
        x,
        panel,
        sums,
    }));
}

/// [`multiply`] for `R` rows.
struct Product<'a, S, const R: usize> {
    simd: S,
    x: &'a [f32],
    panel: &'a [f32],
    sums: &'a mut [f32],
}

impl<S: Simd, const R: usize> NullaryFnOnce for Product<'_, S, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let simd = self.simd;
        // Loops over indices: iterators over the tile keep it in memory.
        let mut tile = [[simd.splat_f32s(0.0); VECTORS]; R];
        let panel = S::as_simd_f32s(self.panel).0.as_chunks::<VECTORS>().0;
        for (x, panel) in self.x.as_chunks::<R>().0.iter().zip(panel) {
            for row in 0..R {
                let x = simd.splat_f32s(x[row]);
                for vector in 0..VECTORS {
                    tile[row][vector] = simd.mul_add_f32s(x, panel[vector], tile[row][vector]);
                }
            }
        }
        let sums = S::as_mut_simd_f32s(self.sums)
            .0
            .as_chunks_mut::<VECTORS>()
            .0;
        sums.copy_from_slice(&tile);
    }
}
