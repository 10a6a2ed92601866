//! Products of some rows with a transposed weight, such as a token embedding used as the head.
//!
//! The weight, here the transposed `embedding`, is the larger side: it is read once from memory, a
//! few rows at a time, and never copied; a weight in blocks is widened. A sum runs over the features
//! in order, so that a row does not depend on what it is batched with.

use std::array;
use std::cell::RefCell;

use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::elements::Elements;
use crate::aligned::Aligned;
use crate::memory;
use crate::tiles::{GROUP, registers};

/// Maximum number of rows that are faster here than with a copied weight.
pub(super) const MOST_ROWS: usize = 256;
/// Rows of the embedding whose sums are kept in registers, for more than one vector of rows of `x`.
const TILE: usize = 6;
/// The same, for one vector.
const TILE_OF_ONE: usize = 8;
/// Elements of `x` that a strip is multiplied with before the next ones, at most: they stay in the
/// first-level cache.
const PANEL: usize = 4096;
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
/// Elements of rows that are not worth another thread to pack.
const SMALL_ROWS: usize = 1 << 15;
/// Rows and columns of the square that is transposed at a time.
const SQUARE: usize = 8;
/// Maximum number of vectors of rows of `x` whose sums are kept in registers.
const MOST_VECTORS: usize = 4;
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
    let mut product = memory::numbers(rows * vocab);
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

/// The same number of tasks for each thread, in whole tiles and whole parts that are widened. An
/// embedding in blocks has two for each, because projections have few rows.
fn rows_of_a_task(embedding: Elements, vocab: usize) -> usize {
    let threads = rayon::current_num_threads();
    let least = match embedding {
        Elements::F32(_) => threads,
        _ => 2 * threads,
    };
    let tasks = least * vocab.div_ceil(least * TASK);
    vocab.div_ceil(tasks).next_multiple_of(WIDENED)
}

fn pack(arch: Arch, x: &[f32], width: usize) -> Vec<Packed> {
    let Block { lanes, vectors } = arch.dispatch(BlockShape);
    let most_rows = vectors * lanes;
    let pack = |(block, x): (usize, &[f32])| {
        let rows = x.len() / width;
        let vectors = rows.div_ceil(lanes);
        let mut elements = Aligned::zeros(width * vectors * lanes);
        arch.dispatch(PackRows {
            x,
            width,
            row: vectors * lanes,
            packed: elements.elements_mut(),
        });
        Packed {
            first: block * most_rows,
            rows,
            vectors,
            elements,
        }
    };
    let block = most_rows * width;
    match x.len() <= SMALL_ROWS {
        true => x.chunks(block).enumerate().map(pack).collect(),
        false => x.par_chunks(block).enumerate().map(pack).collect(),
    }
}

/// Lays out rows as `[feature, row]`.
struct PackRows<'a> {
    /// `[row, width]`
    x: &'a [f32],
    width: usize,
    /// Elements of a row of `packed`: at least the rows.
    row: usize,
    packed: &'a mut [f32],
}

impl NullaryFnOnce for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            x,
            width,
            row,
            packed,
        } = self;
        let groups = x.chunks_exact(SQUARE * width);
        let rest = groups.remainder().chunks(width);
        let mut first = 0;
        for x in groups {
            let rows: [&[f32]; SQUARE] = array::from_fn(|row| &x[row * width..][..width]);
            let in_squares = width - width % SQUARE;
            for feature in (0..in_squares).step_by(SQUARE) {
                let from: [[f32; SQUARE]; SQUARE] = array::from_fn(|row| {
                    let part = rows[row][feature..].first_chunk();
                    *part.expect("features in squares")
                });
                for k in 0..SQUARE {
                    let to = &mut packed[(feature + k) * row + first..][..SQUARE];
                    to.copy_from_slice(&from.map(|row| row[k]));
                }
            }
            for feature in in_squares..width {
                let to = &mut packed[feature * row + first..][..SQUARE];
                to.copy_from_slice(&rows.map(|row| row[feature]));
            }
            first += SQUARE;
        }
        for (index, x) in (first..).zip(rest) {
            for (feature, x) in x.iter().enumerate() {
                packed[feature * row + index] = *x;
            }
        }
    }
}

/// Elements of a vector, and vectors of rows of `x` in a block.
struct Block {
    lanes: usize,
    vectors: usize,
}

struct BlockShape;

impl WithSimd for BlockShape {
    type Output = Block;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Block {
        Block {
            lanes: S::F32_LANES,
            vectors: vectors_of_block::<S>(),
        }
    }
}

/// As many sums of [`TILE`] rows of the embedding as fit into the registers together with what is
/// read.
const fn vectors_of_block<S: Simd>() -> usize {
    match registers::<S>() {
        32 => MOST_VECTORS,
        _ => MOST_VECTORS / 2,
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
                match block.vectors {
                    1 => block.sums::<S, 1, TILE_OF_ONE>(simd, &strip, &mut sums),
                    2 => block.sums::<S, 2, TILE>(simd, &strip, &mut sums),
                    3 => block.sums::<S, 3, TILE>(simd, &strip, &mut sums),
                    _ => block.sums::<S, MOST_VECTORS, TILE>(simd, &strip, &mut sums),
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

// Plain loops: a closure would not be compiled for the vectors of `S`.
impl Packed {
    /// The products with the rows of a strip, `R` of these at a time: `[row of the embedding,
    /// V * lanes]`.
    #[inline(always)]
    fn sums<S: Simd, const V: usize, const R: usize>(
        &self,
        simd: S,
        strip: &Strip,
        sums: &mut [f32],
    ) {
        if V > vectors_of_block::<S>() {
            unreachable!("blocks have no more vectors than fit");
        }
        let row = V * S::F32_LANES;
        let sums = &mut sums[..strip.start.len() * row];
        for (sums, start) in sums.chunks_mut(row).zip(strip.start) {
            sums.fill(*start);
        }
        let x = S::as_simd_f32s(self.elements.elements()).0;
        let x = x.as_chunks::<V>().0;
        let features = x.len().div_ceil(x.len().div_ceil(PANEL / row));
        for (panel, x) in x.chunks(features).enumerate() {
            let rows = &strip.rows[panel * features..];
            let mut first = 0;
            for sums in sums.chunks_exact_mut(R * row) {
                tile::<S, V, R>(simd, x, &rows[first * strip.stride..], strip.stride, sums);
                first += R;
            }
            for sums in sums
                .chunks_exact_mut(R * row)
                .into_remainder()
                .chunks_mut(row)
            {
                tile::<S, V, 1>(simd, x, &rows[first * strip.stride..], strip.stride, sums);
                first += 1;
            }
        }
    }
}

/// Adds the products of `V` vectors of rows of `x` with the first `R` rows of the embedding.
#[inline(always)]
fn tile<S: Simd, const V: usize, const R: usize>(
    simd: S,
    x: &[[S::f32s; V]],
    rows: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let rows: [&[f32]; R] = array::from_fn(|row| &rows[row * stride..][..x.len()]);
    for row in &rows {
        assert_eq!(row.len(), x.len());
    }
    let sums = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<V>().0;
    let sums = &mut sums[..R];
    let mut tile = [[simd.splat_f32s(0.0); V]; R];
    for r in 0..R {
        tile[r].copy_from_slice(&sums[r]);
    }
    let groups = rows.map(|row| row.as_chunks::<GROUP>().0);
    let (groups_of_x, rest) = x.as_chunks::<GROUP>();
    for row in &groups {
        assert_eq!(row.len(), groups_of_x.len());
    }
    for (group, x) in groups_of_x.iter().enumerate() {
        for k in 0..GROUP {
            for r in 0..R {
                let e = simd.splat_f32s(groups[r][group][k]);
                for v in 0..V {
                    tile[r][v] = simd.mul_add_f32s(e, x[k][v], tile[r][v]);
                }
            }
        }
    }
    for (k, x) in (x.len() - rest.len()..).zip(rest) {
        for r in 0..R {
            let e = simd.splat_f32s(rows[r][k]);
            for v in 0..V {
                tile[r][v] = simd.mul_add_f32s(e, x[v], tile[r][v]);
            }
        }
    }
    for r in 0..R {
        sums[r].copy_from_slice(&tile[r]);
    }
}
