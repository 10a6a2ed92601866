//! The mixed values of some queries, tile by tile.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::Attention;
use super::panels::{MOST_ROWS, MOST_SUMS, Place, as_columns, as_rows, multiply};
use super::rows::Rows;
use crate::aligned::Aligned;
use crate::functions::exp;
use crate::kernels::fold;
use crate::tiles::{VECTORS, rows_of_tile};

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room::empty()) };
}

/// Scratch memory of a task.
struct Room {
    /// `[panel of keys, feature, width of a tile]`
    keys: Aligned,
    /// `[panel of features, key, width of a tile]`
    values: Aligned,
    /// `[feature, row of the tile]`
    queries: Aligned,
    /// `[row of the tile, key]`
    scores: Aligned,
    /// `[key, row of the tile]`
    weights: Aligned,
}

impl Room {
    const fn empty() -> Self {
        Self {
            keys: Aligned::empty(),
            values: Aligned::empty(),
            queries: Aligned::empty(),
            scores: Aligned::empty(),
            weights: Aligned::empty(),
        }
    }
}

/// Some queries of some rows.
pub(super) struct Task<'a> {
    pub(super) rows: &'a Rows<'a>,
    /// Which rows.
    pub(super) some: Range<usize>,
    /// Which of their queries.
    pub(super) queries: Range<usize>,
    /// Heads, key-value heads, `d_head`.
    pub(super) sizes: [usize; 3],
    pub(super) how: &'a Attention,
    /// `[row, query, head, d_head]`
    pub(super) mixed: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        ROOM.with_borrow_mut(|room| {
            simd.vectorize(Run {
                simd,
                task: self,
                room,
            });
        });
    }
}

struct Run<'a, 'b, S> {
    simd: S,
    task: Task<'a>,
    room: &'b mut Room,
}

impl<S: Simd> NullaryFnOnce for Run<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let width = VECTORS * S::F32_LANES;
        let [heads, kv_heads, d_head] = self.task.sizes;
        let rows = self.task.rows;
        // No query of this task sees a key after that of the last one.
        let count = rows.count() + self.task.queries.end - rows.queries;
        let tile = rows_of_tile::<S>();
        let padded = count.next_multiple_of(width);
        self.room.keys.resize(padded * d_head);
        self.room
            .values
            .resize(count * d_head.next_multiple_of(width));
        self.room.queries.resize(d_head * tile);
        self.room.scores.resize(padded * tile);
        self.room.weights.resize(padded * tile);
        let of_group = heads / kv_heads * self.task.queries.len();
        for kv_head in 0..kv_heads {
            let mut last = None;
            for row in self.task.some.clone() {
                for (part, place, first) in rows.other_parts(row, last) {
                    let place = Place {
                        of: [place, kv_head],
                        first,
                        count,
                        d_head,
                    };
                    let Room { keys, values, .. } = &mut *self.room;
                    as_columns::<S>(part, &part.keys, place, keys.elements_mut());
                    as_rows::<S>(part, &part.values, place, values.elements_mut());
                }
                last = Some(row);
                for first in (0..of_group).step_by(tile) {
                    let here = tile.min(of_group - first);
                    self.tile([row, kv_head, first], here, count);
                }
            }
        }
    }
}

impl<S: Simd> Run<'_, '_, S> {
    /// The mixed values of some queries, of one row and group of heads.
    ///
    /// - first: the first of the queries, head by head
    /// - here: number of queries
    /// - count: number of keys that are laid out
    #[inline(always)]
    fn tile(&mut self, [row, kv_head, first]: [usize; 3], here: usize, count: usize) {
        let simd = self.simd;
        let width = VECTORS * S::F32_LANES;
        let [heads, kv_heads, d_head] = self.task.sizes;
        let (rows, how) = (self.task.rows, self.task.how);
        let queries = self.task.queries.clone();
        // Head and query of a row of the tile.
        let place = |index: usize| {
            let (head, query) = (
                (first + index) / queries.len(),
                (first + index) % queries.len(),
            );
            [kv_head * (heads / kv_heads) + head, query]
        };
        let seen = |index: usize| {
            let [_head, query] = place(index);
            let end = count - (queries.len() - 1 - query);
            end - how.window.map_or(end, |window| window.min(end))..end
        };
        let start = (0..here).map(|index| seen(index).start).min().unwrap_or(0);
        let start = start / width * width;
        let end = (0..here).map(|index| seen(index).end).max().unwrap_or(0);

        let packed = &mut self.room.queries.elements_mut()[..d_head * here];
        let scale = how.scale as f32;
        for index in 0..here {
            let [head, query] = place(index);
            let from = rows.q.at([row, head, queries.start + query], d_head);
            for (to, from) in packed[index..].iter_mut().step_by(here).zip(from) {
                *to = from * scale;
            }
        }
        let packed = &self.room.queries.elements()[..d_head * here];

        let span = end.next_multiple_of(width);
        let scores = self.room.scores.elements_mut();
        let mut sums = [0.0; MOST_SUMS];
        let sums = &mut sums[..here * width];
        for panel in (start..end).step_by(width) {
            let keys = &self.room.keys.elements()[panel * d_head..][..width * d_head];
            multiply(simd, packed, keys, sums, here);
            for (index, sums) in sums.chunks_exact(width).enumerate() {
                scores[index * span + panel..][..width].copy_from_slice(sums);
            }
        }
        let weights = &mut self.room.weights.elements_mut()[..(end - start) * here];
        let mut totals = [0.0; MOST_ROWS];
        for (index, total) in totals[..here].iter_mut().enumerate() {
            let seen = seen(index);
            let scores = &mut scores[index * span..][seen.clone()];
            *total = softmax(scores, how.cap);
            let mut column = weights[index..].iter_mut().step_by(here);
            for to in column.by_ref().take(seen.start - start) {
                *to = 0.0;
            }
            // In this order: at its end, a pair takes nothing more from the column.
            for (from, to) in scores.iter().zip(column.by_ref()) {
                *to = *from;
            }
            for to in column {
                *to = 0.0;
            }
        }
        let weights = &self.room.weights.elements()[..(end - start) * here];

        for (panel, column) in (0..d_head).step_by(width).enumerate() {
            let values = &self.room.values.elements()[(panel * count + start) * width..];
            multiply(simd, weights, &values[..(end - start) * width], sums, here);
            let features = width.min(d_head - column);
            for (index, sums) in sums.chunks_exact(width).enumerate() {
                let [head, query] = place(index);
                let row = (row - self.task.some.start) * queries.len() + query;
                let to = (row * heads + head) * d_head + column;
                let to = &mut self.task.mixed[to..][..features];
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = sum / totals[index];
                }
            }
        }
    }
}

/// `e^(score - largest)` of each, and their sum.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32], cap: Option<f64>) -> f32 {
    if let Some(cap) = cap {
        let cap = cap as f32;
        for score in scores.iter_mut() {
            *score = cap * (*score / cap).tanh();
        }
    }
    let largest = fold(scores, f32::NEG_INFINITY, f32::max, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    fold(scores, 0.0, |a, b| a + b, |a, b| a + b)
}
