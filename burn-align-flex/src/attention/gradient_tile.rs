//! The gradients of some rows, block by block of their queries.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::Attention;
use super::panels::{MOST_SUMS, Place, as_columns, as_rows, multiply};
use super::rows::{Rows, Vectors};
use super::tile::softmax;
use crate::aligned::Aligned;
use crate::kernels::dot;
use crate::tiles::{VECTORS, rows_of_tile};

/// Queries of a block, at most: enough for sums over them, and few enough for the caches.
const BLOCK: usize = 64;

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room::empty()) };
}

/// Scratch memory of a task.
struct Room {
    /// Keys and values, `[panel of keys, feature, width of a tile]`.
    columns: [Aligned; 2],
    /// Keys, `[panel of features, key, width of a tile]`.
    keys: Aligned,
    /// Scaled queries of a block and gradients of their mixed values, `[panel of features, query,
    /// width of a tile]`.
    block: [Aligned; 2],
    /// The same of a tile, `[feature, row of the tile]`.
    tile: [Aligned; 2],
    /// Weights of a block, and gradients of its scores, `[query, key]`.
    weights: [Aligned; 2],
    /// The derivatives of the soft cap, `[key]`.
    slopes: Aligned,
    /// One factor of a product, `[inner, row of the tile]`.
    factor: Aligned,
}

impl Room {
    const fn empty() -> Self {
        const NONE: Aligned = Aligned::empty();
        Self {
            columns: [NONE; 2],
            keys: NONE,
            block: [NONE; 2],
            tile: [NONE; 2],
            weights: [NONE; 2],
            slopes: NONE,
            factor: NONE,
        }
    }
}

/// What all key-value heads of some rows have in common.
#[derive(Clone)]
pub(super) struct Given<'r> {
    pub(super) rows: &'r Rows<'r>,
    /// Which rows.
    pub(super) some: Range<usize>,
    /// Which of their queries.
    pub(super) queries: Range<usize>,
    pub(super) of_mixed: Vectors<'r>,
    /// If other tasks attend to the only row's own keys as well: the first one among all tokens.
    pub(super) apart: Option<usize>,
}

/// One key-value head of some queries of some rows.
pub(super) struct Task<'r, 'a> {
    pub(super) given: Given<'r>,
    kv_head: usize,
    /// Heads, key-value heads, `d_head`.
    sizes: [usize; 3],
    how: &'r Attention,
    /// Where the gradients go, vector by vector: queries, `[row, query, head of the group]`; own
    /// keys and values, `[row, key]`, if they are no other task's.
    pub(super) gradients: [Vec<&'a mut [f32]>; 3],
    /// Sums of the gradients of keys and values that other tasks attend to as well: those of tokens
    /// that rows share, then the row's own. `[position, d_head]`.
    sums: [Vec<f32>; 2],
}

/// Gradients of keys and values that several tasks attend to.
pub(super) struct Sums {
    /// Where they belong.
    pub(super) tokens: Vec<usize>,
    pub(super) kv_head: usize,
    /// Of keys and values, `[token, d_head]`.
    pub(super) sums: [Vec<f32>; 2],
}

impl<'r> Task<'r, '_> {
    /// A task for each key-value head, which has yet to be told where gradients go.
    pub(super) fn of_heads(given: &Given<'r>, sizes: [usize; 3], how: &'r Attention) -> Vec<Self> {
        let [heads, kv_heads, d_head] = sizes;
        let rows = given.rows;
        let [in_sums, in_place] = match given.apart {
            None => [0, rows.own()],
            Some(_) => [rows.own(), 0],
        };
        let shared = rows.parts.iter().filter(|part| part.tokens.is_some());
        let summed = shared.map(|part| part.count).sum::<usize>() + in_sums;
        let of_head = |kv_head| {
            let queries = given.queries.len() * heads / kv_heads;
            let counts = [queries, in_place, in_place];
            Self {
                given: given.clone(),
                kv_head,
                sizes,
                how,
                gradients: counts.map(|count| Vec::with_capacity(given.some.len() * count)),
                sums: [0, 1].map(|_| vec![0.0; summed * d_head]),
            }
        };
        (0..kv_heads).map(of_head).collect()
    }

    /// What has yet to be added to the gradients of keys and values.
    pub(super) fn sums(self) -> Sums {
        let Given {
            rows, some, apart, ..
        } = self.given;
        let mut tokens = Vec::new();
        for part in &rows.parts {
            if let Some(of_part) = part.tokens {
                let row = some.start / (rows.rows / part.rows);
                tokens.extend(&of_part[row * part.count..][..part.count]);
            }
        }
        if let Some(first) = apart {
            tokens.extend(first..first + rows.own());
        }
        Sums {
            tokens,
            kv_head: self.kv_head,
            sums: self.sums,
        }
    }
}

impl WithSimd for &mut Task<'_, '_> {
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

struct Run<'r, 'a, 'b, S> {
    simd: S,
    task: &'b mut Task<'r, 'a>,
    room: &'b mut Room,
}

impl<S: Simd> NullaryFnOnce for Run<'_, '_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let width = VECTORS * S::F32_LANES;
        let [heads, kv_heads, d_head] = self.task.sizes;
        let rows = self.task.given.rows;
        // No query of this task sees a key after that of the last one.
        let count = rows.count() + self.task.given.queries.end - rows.queries;
        let tile = rows_of_tile::<S>();
        let block = BLOCK / tile * tile;
        let padded = count.next_multiple_of(width);
        let features = d_head.next_multiple_of(width);
        let room = &mut *self.room;
        for (pair, length) in [
            (&mut room.columns, padded * d_head),
            (&mut room.block, block * features),
            (&mut room.tile, tile * d_head),
            (&mut room.weights, block * padded),
        ] {
            pair.iter_mut().for_each(|one| one.resize(length));
        }
        room.keys.resize(count * features);
        room.slopes.resize(padded);
        room.factor.resize(padded.max(block) * tile);
        let of_group = heads / kv_heads * self.task.given.queries.len();
        let mut last = None;
        for row in self.task.given.some.clone() {
            for (part, place, first) in rows.other_parts(row, last) {
                let place = Place {
                    of: [place, self.task.kv_head],
                    first,
                    count,
                    d_head,
                };
                let [keys, values] = &mut self.room.columns;
                as_columns::<S>(part, &part.keys, place, keys.elements_mut());
                as_columns::<S>(part, &part.values, place, values.elements_mut());
                as_rows::<S>(part, &part.keys, place, self.room.keys.elements_mut());
            }
            last = Some(row);
            for first in (0..of_group).step_by(block) {
                let queries = first..of_group.min(first + block);
                self.block(row, queries, count);
            }
        }
    }
}

/// The queries of a task in a row and a group of heads.
#[derive(Clone)]
struct Queries {
    /// Which ones, in each head.
    of_head: Range<usize>,
    /// Number of all keys up to that of the last one.
    count: usize,
    window: Option<usize>,
}

impl Queries {
    /// Head of the group, and query.
    #[inline(always)]
    fn place(&self, index: usize) -> [usize; 2] {
        let of_head = self.of_head.len();
        [index / of_head, self.of_head.start + index % of_head]
    }

    /// The keys that one sees.
    #[inline(always)]
    fn seen(&self, index: usize) -> Range<usize> {
        let [_head, query] = self.place(index);
        let end = self.count - (self.of_head.end - 1 - query);
        end - self.window.map_or(end, |window| window.min(end))..end
    }

    /// From the first to the last key that some of them see.
    #[inline(always)]
    fn span(&self, some: Range<usize>) -> Range<usize> {
        let seen = || some.clone().map(|index| self.seen(index));
        let start = seen().map(|seen| seen.start).min().unwrap_or(0);
        start..seen().map(|seen| seen.end).max().unwrap_or(start)
    }
}

impl<S: Simd> Run<'_, '_, '_, S> {
    /// What some queries of a row contribute, head by head of the group.
    #[inline(always)]
    fn block(&mut self, row: usize, some: Range<usize>, count: usize) {
        let simd = self.simd;
        let width = VECTORS * S::F32_LANES;
        let [heads, kv_heads, d_head] = self.task.sizes;
        let (rows, how, kv_head) = (self.task.given.rows, self.task.how, self.task.kv_head);
        let of_row = row - self.task.given.some.start;
        let queries = Queries {
            of_head: self.task.given.queries.clone(),
            count,
            window: how.window,
        };
        let group = heads / kv_heads;
        let tile = rows_of_tile::<S>();
        let padded = count.next_multiple_of(width);
        let scale = how.scale as f32;
        let (here, of_mixed) = (some.len(), self.task.given.of_mixed);
        let vectors = |index: usize| {
            let [head, query] = queries.place(some.start + index);
            let place = [row, kv_head * group + head, query];
            [rows.q.at(place, d_head), of_mixed.at(place, d_head)]
        };

        // Queries and gradients, as they meet the weights.
        for index in 0..here {
            let factors = self.room.block.iter_mut().zip(vectors(index));
            for ((to, from), factor) in factors.zip([scale, 1.0]) {
                let to = to.elements_mut();
                for (panel, from) in from.chunks(width).enumerate() {
                    let to = &mut to[(panel * here + index) * width..];
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = from * factor;
                    }
                }
            }
        }

        // Weights, the gradients of scores, and those of queries.
        let mut sums = [0.0; MOST_SUMS];
        for first in (0..here).step_by(tile) {
            let last = here.min(first + tile);
            let now = last - first;
            let span = queries.span(some.start + first..some.start + last);
            let (start, end) = (span.start / width * width, span.end);
            for index in first..last {
                let factors = self.room.tile.iter_mut().zip(vectors(index));
                for ((to, from), factor) in factors.zip([scale, 1.0]) {
                    let to = &mut to.elements_mut()[..now * d_head];
                    let column = to[index - first..].iter_mut().step_by(now);
                    for (to, from) in column.zip(from) {
                        *to = from * factor;
                    }
                }
            }
            let sums = &mut sums[..now * width];
            for ((x, columns), to) in self
                .room
                .tile
                .iter()
                .zip(&self.room.columns)
                .zip(&mut self.room.weights)
            {
                let x = &x.elements()[..now * d_head];
                let to = to.elements_mut();
                for panel in (start..end).step_by(width) {
                    let columns = &columns.elements()[panel * d_head..][..width * d_head];
                    multiply(simd, x, columns, sums, now);
                    for (index, sums) in sums.chunks_exact(width).enumerate() {
                        let to = &mut to[(first + index) * padded + panel..][..width];
                        to.copy_from_slice(sums);
                    }
                }
            }
            let Room {
                keys,
                weights,
                slopes,
                factor,
                ..
            } = &mut *self.room;
            let factor = &mut factor.elements_mut()[..(end - start) * now];
            for index in first..last {
                let seen = queries.seen(some.start + index);
                let [weights, gradients] = weights
                    .each_mut()
                    .map(|rows| &mut rows.elements_mut()[index * padded..][..padded]);
                gradients[start..seen.start].fill(0.0);
                gradients[seen.end..end].fill(0.0);
                of_scores(
                    &mut weights[seen.clone()],
                    &mut gradients[seen],
                    slopes.elements_mut(),
                    how.cap,
                );
                let column = factor[index - first..].iter_mut().step_by(now);
                for (to, from) in column.zip(&gradients[start..end]) {
                    *to = *from;
                }
            }
            let of_queries = &mut self.task.gradients[0];
            for (panel, column) in (0..d_head).step_by(width).enumerate() {
                let keys = &keys.elements()[(panel * count + start) * width..];
                let keys = &keys[..(end - start) * width];
                multiply(simd, factor, keys, sums, now);
                let features = width.min(d_head - column);
                for (index, sums) in sums.chunks_exact(width).enumerate() {
                    let [head, query] = queries.place(some.start + first + index);
                    let query = query - queries.of_head.start;
                    let to = (of_row * queries.of_head.len() + query) * group + head;
                    let to = &mut of_queries[to][column..][..features];
                    for (to, sum) in to.iter_mut().zip(sums) {
                        *to = sum * scale;
                    }
                }
            }
        }

        // The gradients of keys and values.
        let mut first = 0;
        let mut summed = 0;
        for (index, part) in rows.parts.iter().enumerate() {
            let own = index + 1 == rows.parts.len();
            let to = match own {
                true if self.task.given.apart.is_none() => Some(To::Own(of_row * part.count)),
                _ => (own || part.tokens.is_some()).then_some(To::Sums(summed)),
            };
            if let Some(to) = to {
                let end = count.min(first + part.count);
                for start in (first..end).step_by(tile) {
                    let keys = start..end.min(start + tile);
                    self.keys_and_values(&queries, &some, keys, first, to);
                }
            }
            if part.tokens.is_some() {
                summed += part.count;
            }
            first += part.count;
        }
    }

    /// What some queries contribute to the gradients of some keys and values.
    ///
    /// - first: the first key of their part
    #[inline(always)]
    fn keys_and_values(
        &mut self,
        queries: &Queries,
        some: &Range<usize>,
        keys: Range<usize>,
        first: usize,
        to: To,
    ) {
        let simd = self.simd;
        let width = VECTORS * S::F32_LANES;
        let [_heads, _kv_heads, d_head] = self.task.sizes;
        let padded = queries.count.next_multiple_of(width);
        let seen = |index: usize| {
            let seen = queries.seen(some.start + index);
            seen.start.max(keys.start)..seen.end.min(keys.end)
        };
        let seeing = || (0..some.len()).filter(|index| !seen(*index).is_empty());
        let (Some(start), Some(end)) = (seeing().next(), seeing().next_back()) else {
            return;
        };
        let (here, now) = (start..end + 1, keys.len());
        let mut sums = [0.0; MOST_SUMS];
        let sums = &mut sums[..now * width];
        let Room {
            block,
            weights,
            factor,
            ..
        } = &mut *self.room;
        let [queries, of_mixed] = block;
        let [weights, of_scores] = weights;
        let factor = &mut factor.elements_mut()[..here.len() * now];
        for (which, from, by) in [(0, of_scores, queries), (1, weights, of_mixed)] {
            for (index, to) in here.clone().zip(factor.chunks_exact_mut(now)) {
                let seen = seen(index);
                let row = &from.elements()[index * padded..][..padded];
                to.fill(0.0);
                if !seen.is_empty() {
                    to[seen.start - keys.start..seen.end - keys.start].copy_from_slice(&row[seen]);
                }
            }
            for (panel, column) in (0..d_head).step_by(width).enumerate() {
                let by = &by.elements()[(panel * some.len() + start) * width..];
                multiply(simd, factor, &by[..here.len() * width], sums, now);
                let features = column..d_head.min(column + width);
                for (key, sums) in keys.clone().zip(sums.chunks_exact(width)) {
                    let position = key - first;
                    let to = match to {
                        To::Own(row) => &mut self.task.gradients[1 + which][row + position][..],
                        To::Sums(before) => {
                            let first = (before + position) * d_head;
                            &mut self.task.sums[which][first..][..d_head]
                        }
                    };
                    for (to, sum) in to[features.clone()].iter_mut().zip(sums) {
                        *to += sum;
                    }
                }
            }
        }
    }
}

/// Whose keys and values these are.
#[derive(Clone, Copy)]
enum To {
    /// The row's own, the first of which is this one among those of the task.
    Own(usize),
    /// Those that other tasks attend to as well: from this position of the sums on.
    Sums(usize),
}

/// From scores to weights, and from the gradients of weights to those of scores.
///
/// - slopes: room for the derivatives of the cap
#[inline(always)]
fn of_scores(weights: &mut [f32], gradients: &mut [f32], slopes: &mut [f32], cap: Option<f64>) {
    let slopes = &mut slopes[..weights.len()];
    if let Some(cap) = cap {
        let cap = cap as f32;
        for (score, slope) in weights.iter_mut().zip(&mut *slopes) {
            let tanh = (*score / cap).tanh();
            *score = cap * tanh;
            *slope = 1.0 - tanh * tanh;
        }
    }
    let total = softmax(weights, None);
    for weight in weights.iter_mut() {
        *weight /= total;
    }
    let mean = dot(weights, gradients);
    for (gradient, weight) in gradients.iter_mut().zip(&*weights) {
        *gradient = weight * (*gradient - mean);
    }
    if cap.is_some() {
        for (gradient, slope) in gradients.iter_mut().zip(&*slopes) {
            *gradient *= slope;
        }
    }
}
