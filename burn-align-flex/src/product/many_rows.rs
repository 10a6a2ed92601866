//! Products of many rows with a weight.
//!
//! Blocked as in K. Goto, R. van de Geijn, *Anatomy of High-Performance Matrix Multiplication*,
//! 2008: a tile of sums stays in registers, the rows that it is computed from in the first-level
//! cache, and a part of the weight, packed so that it is read in order, in the second-level cache.
//!
//! A sum begins with the bias and runs over the features in order. So a row's result equals that of
//! [`few_rows`](super::few_rows) to the bit, whatever it is batched with and however many threads
//! there are.

mod pack;

use std::array;
use std::cell::{Cell, RefCell};
use std::ops::Range;

use burn_align_quants::LANES;
use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::elements::Elements;
use crate::aligned::Aligned;
use crate::memory;
use crate::tiles::{GROUP, VECTORS, rows_of_tile, with_rows};
use pack::Pack;
pub(super) use pack::panels_in_squares;

/// Elements of the widest vector of a CPU.
const MOST_LANES: usize = 16;
/// Maximum number of elements in a row of a tile.
const MOST_WIDTH: usize = VECTORS * MOST_LANES;
/// Maximum number of features in a packed part of the weight: this many of a tile's rows stay in the
/// first-level cache.
const MOST_DEPTH: usize = 320;
/// The same of a weight in blocks, none of which may lie in two parts.
const BLOCK_DEPTH: usize = 256;
/// Maximum number of columns per task: this many of [`MOST_DEPTH`] features stay in the second-level
/// cache.
const MOST_COLUMNS: usize = 384;
/// Rows and columns of the square of a weight that is transposed at a time.
const SQUARE: usize = 8;
/// Multiplications that are not worth another thread.
const SMALL: usize = 1 << 20;

/// Elements of the rows that are packed at a time, so that they stay in the last-level cache and
/// their memory is used again.
const PACKED_ROWS: usize = 1 << 20;
/// Rows that are packed at a time, at least: fewer would not be worth packing the weight.
const LEAST_ROWS: usize = 512;
/// Maximum number of elements of packed rows whose memory is kept.
const MOST_KEPT: usize = 1 << 22;

// Allocating each time would cost as much as filling the memory, and would stall all threads.
thread_local! {
    /// The rows of the product that this thread started.
    static ROWS: Cell<Aligned> = const { Cell::new(Aligned::empty()) };
    /// The part of the weight that this thread is working on.
    static PACKED: RefCell<Aligned> = const { RefCell::new(Aligned::empty()) };
}

/// A matrix that is only read, whose rows or columns are contiguous.
#[derive(Clone, Copy)]
pub(super) struct Matrix<E> {
    /// Starts at its first element.
    pub(super) elements: E,
    /// Strides between rows and between columns; one of them is 1.
    pub(super) strides: [usize; 2],
}

impl<E> Matrix<E> {
    /// The index of an element.
    fn place(&self, row: usize, column: usize) -> usize {
        let [by_row, by_column] = self.strides;
        row * by_row + column * by_column
    }
}

impl Matrix<&[f32]> {
    /// The same matrix, starting at another element.
    fn from(&self, row: usize, column: usize) -> Self {
        Self {
            elements: &self.elements[self.place(row, column)..],
            strides: self.strides,
        }
    }
}

impl<'a> Matrix<Elements<'a>> {
    /// The same matrix, starting at another element.
    #[inline(always)]
    fn from(&self, row: usize, column: usize) -> Self {
        Self {
            elements: self.elements.from(self.place(row, column)),
            strides: self.strides,
        }
    }
}

/// A weight `[d_input, d_output]` and its bias `[d_output]`.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) weight: Matrix<Elements<'a>>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) d_output: usize,
}

/// `x W + b` for each weight and bias. The rows are packed once for all of them.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - outputs: `[row, d_output]`
pub(super) fn affine_each(
    arch: Arch,
    x: Matrix<&[f32]>,
    factors: &[Factor],
    [rows, d_input]: [usize; 2],
) -> Vec<Vec<f32>> {
    let products = factors.iter();
    let products = products.map(|factor| memory::numbers(rows * factor.d_output));
    let mut products: Vec<Vec<f32>> = products.collect();
    let parts = rows.div_ceil(rows_at_a_time(d_input));
    for part in 0..parts {
        let part = part * rows / parts..(part + 1) * rows / parts;
        let of_part = products.iter_mut().zip(factors).map(|(product, factor)| {
            let width = factor.d_output;
            &mut product[part.start * width..part.end * width]
        });
        let of_part = of_part.collect();
        let x = x.from(part.start, 0);
        affine_part(arch, x, factors, [part.len(), d_input], of_part);
    }
    products
}

/// Most rows that are packed at a time.
pub(super) fn rows_at_a_time(d_input: usize) -> usize {
    LEAST_ROWS.max(PACKED_ROWS / d_input.max(1))
}

/// [`affine_each`] of some rows, into the memory for them.
fn affine_part(
    arch: Arch,
    x: Matrix<&[f32]>,
    factors: &[Factor],
    [rows, d_input]: [usize; 2],
    products: Vec<&mut [f32]>,
) {
    let all_outputs: usize = factors.iter().map(|factor| factor.d_output).sum();
    let threads = match rows * d_input * all_outputs <= SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    let tile = arch.dispatch(TileShape);
    // Taken out, because this thread may help with another product before this one is done.
    let mut packed = ROWS.take();
    packed.resize(rows * d_input);
    let blocks = RowBlocks {
        rows,
        count: rows.div_ceil(tile.rows),
    };
    pack_rows(x, d_input, blocks, packed.elements_mut(), threads > 1);
    // Each task handles some columns of a weight, of every row.
    let mut tasks: Vec<(usize, &Factor, usize, Vec<&mut [f32]>)> = Vec::new();
    for (factor, product) in factors.iter().zip(products) {
        let columns = columns_of_a_task(factor.d_output, tile.width.max(LANES), threads);
        let first = tasks.len();
        let count = factor.d_output.div_ceil(columns);
        tasks.extend((0..count).map(|number| (number, factor, columns, Vec::with_capacity(rows))));
        for row in product.chunks_mut(factor.d_output) {
            let pieces = row.chunks_mut(columns);
            for ((_, _, _, sums), piece) in tasks[first..].iter_mut().zip(pieces) {
                sums.push(piece);
            }
        }
    }
    // Threads begin with a part of the tasks each: a share of every weight.
    tasks.sort_by_key(|(number, ..)| *number);
    let run = |(number, factor, columns, sums): (usize, &Factor, usize, Vec<&mut [f32]>)| {
        let depth = depth_of_a_part(d_input, factor.weight.elements);
        PACKED.with_borrow_mut(|part| {
            part.resize(depth * columns);
            arch.dispatch(Task {
                x: packed.elements(),
                blocks,
                d_input,
                depth,
                weight: factor.weight.from(0, number * columns),
                bias: factor.bias.map(|bias| &bias[number * columns..]),
                packed: part.elements_mut(),
                sums,
            });
        });
    };
    match threads {
        1 => tasks.into_iter().for_each(run),
        _ => tasks.into_par_iter().with_max_len(1).for_each(run),
    }
    if packed.elements().len() <= MOST_KEPT {
        ROWS.set(packed);
    }
}

/// The same number of tasks for each thread, in whole tiles and whole panels of the weight.
fn columns_of_a_task(d_output: usize, width: usize, threads: usize) -> usize {
    let tasks = threads * d_output.div_ceil(threads * MOST_COLUMNS);
    d_output.div_ceil(width).div_ceil(tasks) * width
}

/// Parts of about equal size, in whole squares: each reads and writes all sums once.
fn depth_of_a_part(d_input: usize, weight: Elements) -> usize {
    const { assert!(MOST_DEPTH.is_multiple_of(SQUARE) && SQUARE.is_multiple_of(GROUP)) };
    match weight {
        Elements::Blocks(_) => BLOCK_DEPTH.min(d_input),
        _ => d_input
            .div_ceil(d_input.div_ceil(MOST_DEPTH))
            .next_multiple_of(SQUARE),
    }
}

struct Tiles {
    rows: usize,
    /// Columns.
    width: usize,
}

struct TileShape;

impl WithSimd for TileShape {
    type Output = Tiles;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Tiles {
        Tiles {
            rows: rows_of_tile::<S>(),
            width: VECTORS * S::F32_LANES,
        }
    }
}

/// All rows, in blocks of about equal size.
#[derive(Clone, Copy)]
struct RowBlocks {
    rows: usize,
    count: usize,
}

impl RowBlocks {
    fn of(&self, block: usize) -> Range<usize> {
        block * self.rows / self.count..(block + 1) * self.rows / self.count
    }
}

/// Lays out the rows as `[block, feature, row of the block]`.
fn pack_rows(
    x: Matrix<&[f32]>,
    d_input: usize,
    blocks: RowBlocks,
    packed: &mut [f32],
    parallel: bool,
) {
    let mut parts = Vec::with_capacity(blocks.count);
    let mut rest = packed;
    for block in 0..blocks.count {
        let rows = blocks.of(block);
        let (part, others) = rest.split_at_mut(rows.len() * d_input);
        parts.push((rows, part));
        rest = others;
    }
    let pack = |(rows, part): (Range<usize>, &mut [f32])| {
        let x = x.from(rows.start, 0);
        with_rows!(rows.len(), |R| pack_block::<R>(x, d_input, part));
    };
    match parallel {
        true => parts.into_par_iter().for_each(pack),
        false => parts.into_iter().for_each(pack),
    }
}

/// Lays out the first `R` rows as `[feature, R]`.
fn pack_block<const R: usize>(x: Matrix<&[f32]>, d_input: usize, packed: &mut [f32]) {
    let packed = &mut packed.as_chunks_mut::<R>().0[..d_input];
    let [by_row, by_feature] = x.strides;
    if by_feature != 1 {
        for (feature, to) in packed.iter_mut().enumerate() {
            let x = &x.elements[feature * by_feature..];
            *to = array::from_fn(|row| x[row * by_row]);
        }
        return;
    }
    let mut row = 0;
    while row + 4 <= R {
        pack_rows_of_block::<R, 4>(x, row, packed);
        row += 4;
    }
    while row + 2 <= R {
        pack_rows_of_block::<R, 2>(x, row, packed);
        row += 2;
    }
    if row < R {
        pack_rows_of_block::<R, 1>(x, row, packed);
    }
}

/// Lays out `N` of the rows, four features at a time.
///
/// A function of its own: with all rows of a block in one, the compiler's code takes two to five
/// times as long for some numbers of rows.
#[inline(never)]
fn pack_rows_of_block<const R: usize, const N: usize>(
    x: Matrix<&[f32]>,
    first: usize,
    packed: &mut [[f32; R]],
) {
    const FEATURES: usize = 4;
    let [by_row, _one] = x.strides;
    let rows: [&[f32]; N] =
        array::from_fn(|row| &x.elements[(first + row) * by_row..][..packed.len()]);
    let (parts, rest) = packed.as_chunks_mut::<FEATURES>();
    for (part, to) in parts.iter_mut().enumerate() {
        let from: [[f32; FEATURES]; N] = array::from_fn(|row| {
            let part = rows[row][part * FEATURES..].first_chunk();
            *part.expect("there are as many features in each row")
        });
        for (feature, to) in to.iter_mut().enumerate() {
            to[first..first + N].copy_from_slice(&from.map(|row| row[feature]));
        }
    }
    let done = parts.len() * FEATURES;
    for (feature, to) in rest.iter_mut().enumerate() {
        to[first..first + N].copy_from_slice(&rows.map(|row| row[done + feature]));
    }
}

/// All rows with some columns of the weight.
struct Task<'a> {
    /// In the layout of [`pack_rows`].
    x: &'a [f32],
    blocks: RowBlocks,
    d_input: usize,
    /// Features of a packed part, at most.
    depth: usize,
    /// Starts at the first of the columns.
    weight: Matrix<Elements<'a>>,
    bias: Option<&'a [f32]>,
    packed: &'a mut [f32],
    sums: Vec<&'a mut [f32]>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.sums[0].len();
        let width = VECTORS * S::F32_LANES;
        for first in (0..self.d_input).step_by(self.depth) {
            let depth = self.depth.min(self.d_input - first);
            simd.vectorize(Pack {
                simd,
                weight: self.weight.from(first, 0),
                columns,
                depth,
                packed: self.packed,
            });
            for block in 0..self.blocks.count {
                let rows = self.blocks.of(block);
                let x = &self.x[rows.start * self.d_input + first * rows.len()..];
                let x = &x[..depth * rows.len()];
                let sums = &mut self.sums[rows.clone()];
                for (strip, column) in (0..columns).step_by(width).enumerate() {
                    let weight = &self.packed[strip * width * depth..][..width * depth];
                    let start = match (first, self.bias) {
                        (0, None) => Start::Zero,
                        (0, Some(bias)) => Start::Bias(&bias[column..columns.min(column + width)]),
                        _ => Start::Sums,
                    };
                    with_rows!(S, rows.len(), |R| simd.vectorize(Tile::<S, R> {
                        simd,
                        x,
                        weight,
                        sums,
                        column,
                        start,
                    }));
                }
            }
        }
    }
}

/// The initial values of a tile.
enum Start<'a> {
    /// The memory need not be read: fresh memory would be mapped twice.
    Zero,
    Bias(&'a [f32]),
    Sums,
}

/// Adds the products of `R` rows of `x` with a strip.
struct Tile<'a, 'b, S, const R: usize> {
    simd: S,
    /// `[feature, R]`
    x: &'a [f32],
    /// `[feature, width of a tile]`
    weight: &'a [f32],
    sums: &'a mut [&'b mut [f32]],
    /// The strip's first column.
    column: usize,
    start: Start<'a>,
}

impl<S: Simd, const R: usize> NullaryFnOnce for Tile<'_, '_, S, R> {
    type Output = ();

    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "iterators over the tile, or branches in these loops, keep it in memory"
    )]
    fn call(self) {
        let simd = self.simd;
        let width = VECTORS * S::F32_LANES;
        let columns = self.column..self.sums[0].len().min(self.column + width);
        let mut tile = [[simd.splat_f32s(0.0); VECTORS]; R];
        match self.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let mut padded = [0.0; MOST_WIDTH];
                padded[..columns.len()].copy_from_slice(bias);
                for row in 0..R {
                    tile[row].copy_from_slice(S::as_simd_f32s(&padded[..width]).0);
                }
            }
            Start::Sums if columns.len() == width => {
                for row in 0..R {
                    let from = S::as_simd_f32s(&self.sums[row][columns.clone()]).0;
                    tile[row].copy_from_slice(from);
                }
            }
            Start::Sums => {
                for row in 0..R {
                    let mut padded = [0.0; MOST_WIDTH];
                    padded[..columns.len()].copy_from_slice(&self.sums[row][columns.clone()]);
                    tile[row].copy_from_slice(S::as_simd_f32s(&padded[..width]).0);
                }
            }
        }
        let weight = S::as_simd_f32s(self.weight).0.as_chunks::<VECTORS>().0;
        let x = self.x.as_chunks::<R>().0;
        let (groups, rest) = x.as_chunks::<GROUP>();
        let (groups_of_weight, rest_of_weight) = weight.as_chunks::<GROUP>();
        for (x, weight) in groups.iter().zip(groups_of_weight) {
            for k in 0..GROUP {
                for row in 0..R {
                    let x = simd.splat_f32s(x[k][row]);
                    for vector in 0..VECTORS {
                        tile[row][vector] =
                            simd.mul_add_f32s(x, weight[k][vector], tile[row][vector]);
                    }
                }
            }
        }
        for (x, weight) in rest.iter().zip(rest_of_weight) {
            for row in 0..R {
                let x = simd.splat_f32s(x[row]);
                for vector in 0..VECTORS {
                    tile[row][vector] = simd.mul_add_f32s(x, weight[vector], tile[row][vector]);
                }
            }
        }
        if columns.len() == width {
            for row in 0..R {
                let to = S::as_mut_simd_f32s(&mut self.sums[row][columns.clone()]).0;
                to.copy_from_slice(&tile[row]);
            }
        } else {
            for row in 0..R {
                let mut padded = [0.0; MOST_WIDTH];
                let to = S::as_mut_simd_f32s(&mut padded[..width]).0;
                to.copy_from_slice(&tile[row]);
                self.sums[row][columns.clone()].copy_from_slice(&padded[..columns.len()]);
            }
        }
    }
}
