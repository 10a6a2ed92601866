//! Products of many rows with a weight.
//!
//! Blocked as in K. Goto, R. van de Geijn, *Anatomy of High-Performance Matrix Multiplication*,
//! 2008: a tile of sums stays in registers, the rows that it is computed from in the first-level
//! cache, and a part of the weight, packed so that it is read in order, in the second-level cache.
//!
//! A sum begins with the bias and runs over the features in order. So a row's result equals that of
//! [`few_rows`](super::few_rows) to the bit, whatever it is batched with and however many threads
//! there are.

use std::array;
use std::cell::{Cell, RefCell};
use std::ops::Range;

use burn_align_quants::{self as quants, LANES, OnPanels, PanelFormat, Panels};
use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

use super::elements::Elements;
use crate::aligned::Aligned;
use crate::tiles::{VECTORS, rows_of_tile, with_rows};

/// Elements of the widest vector of a CPU.
const MOST_LANES: usize = 16;
/// Maximum number of elements in a row of a tile.
const MOST_WIDTH: usize = VECTORS * MOST_LANES;
/// Features of a packed part of the weight: this many of a tile's rows stay in the first-level
/// cache.
const DEPTH: usize = 256;
/// Maximum number of columns per task: this many of [`DEPTH`] features stay in the second-level
/// cache.
const MOST_COLUMNS: usize = 384;
/// Rows and columns of the square that is transposed at a time.
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

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine(
    arch: Arch,
    x: Matrix<&[f32]>,
    weight: Matrix<Elements>,
    bias: Option<&[f32]>,
    [rows, d_input, d_output]: [usize; 3],
) -> Vec<f32> {
    let mut product = vec![0.0; rows * d_output];
    let parts = rows.div_ceil(rows_at_a_time(d_input));
    for part in 0..parts {
        let part = part * rows / parts..(part + 1) * rows / parts;
        affine_part(
            arch,
            x.from(part.start, 0),
            weight,
            bias,
            [part.len(), d_input, d_output],
            &mut product[part.start * d_output..part.end * d_output],
        );
    }
    product
}

/// Most rows that are packed at a time.
pub(super) fn rows_at_a_time(d_input: usize) -> usize {
    LEAST_ROWS.max(PACKED_ROWS / d_input.max(1))
}

/// [`affine`] of some rows, into the memory for them.
fn affine_part(
    arch: Arch,
    x: Matrix<&[f32]>,
    weight: Matrix<Elements>,
    bias: Option<&[f32]>,
    [rows, d_input, d_output]: [usize; 3],
    product: &mut [f32],
) {
    let threads = match rows * d_input * d_output <= SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    let tile = arch.dispatch(TileShape);
    // Taken out, because this thread may help with another product before this one is done.
    let mut packed = ROWS.take();
    packed.resize(rows * d_input);
    let blocks = Blocks {
        rows,
        count: rows.div_ceil(tile.rows),
    };
    pack_rows(x, d_input, blocks, packed.elements_mut(), threads > 1);
    let columns = columns_of_a_task(d_output, tile.width.max(LANES), threads);
    // Each task handles a part of every row.
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(d_output.div_ceil(columns), || Vec::with_capacity(rows));
    for row in product.chunks_mut(d_output) {
        for (part, piece) in parts.iter_mut().zip(row.chunks_mut(columns)) {
            part.push(piece);
        }
    }
    let task = |(number, sums): (usize, Vec<&mut [f32]>)| {
        PACKED.with_borrow_mut(|part| {
            part.resize(DEPTH.min(d_input) * columns);
            arch.dispatch(Task {
                x: packed.elements(),
                blocks,
                d_input,
                weight: weight.from(0, number * columns),
                bias: bias.map(|bias| &bias[number * columns..]),
                packed: part.elements_mut(),
                sums,
            });
        });
    };
    match threads {
        1 => parts.into_iter().enumerate().for_each(task),
        _ => parts.into_par_iter().enumerate().for_each(task),
    }
    if packed.elements().len() <= MOST_KEPT {
        ROWS.set(packed);
    }
}

/// The same number of tasks for each thread, in whole tiles and whole panels.
fn columns_of_a_task(d_output: usize, width: usize, threads: usize) -> usize {
    let tasks = threads * d_output.div_ceil(threads * MOST_COLUMNS);
    d_output.div_ceil(width).div_ceil(tasks) * width
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
struct Blocks {
    rows: usize,
    count: usize,
}

impl Blocks {
    fn of(&self, block: usize) -> Range<usize> {
        block * self.rows / self.count..(block + 1) * self.rows / self.count
    }
}

/// Lays out the rows as `[block, feature, row of the block]`.
fn pack_rows(
    x: Matrix<&[f32]>,
    d_input: usize,
    blocks: Blocks,
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
    let rows: [&[f32]; R] = array::from_fn(|row| &x.elements[row * by_row..][..d_input]);
    let (parts, rest) = packed.as_chunks_mut::<SQUARE>();
    for (part, to) in parts.iter_mut().enumerate() {
        let from: [[f32; SQUARE]; R] = array::from_fn(|row| {
            let part = rows[row][part * SQUARE..].first_chunk();
            *part.expect("there are as many features in each row")
        });
        for (feature, to) in to.iter_mut().enumerate() {
            *to = from.map(|row| row[feature]);
        }
    }
    let first = d_input - rest.len();
    for (feature, to) in rest.iter_mut().enumerate() {
        *to = rows.map(|row| row[first + feature]);
    }
}

/// All rows with some columns of the weight.
struct Task<'a> {
    /// In the layout of [`pack_rows`].
    x: &'a [f32],
    blocks: Blocks,
    d_input: usize,
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
        for first in (0..self.d_input).step_by(DEPTH) {
            let depth = DEPTH.min(self.d_input - first);
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
                for (panel, column) in (0..columns).step_by(width).enumerate() {
                    let weight = &self.packed[panel * width * depth..][..width * depth];
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

/// Lays out some features of some columns as `[panel, feature, width of a tile]`. The unused
/// columns of the last panel keep their contents: their sums are never read.
struct Pack<'a, S> {
    simd: S,
    weight: Matrix<Elements<'a>>,
    columns: usize,
    depth: usize,
    packed: &'a mut [f32],
}

impl<S: Simd> NullaryFnOnce for Pack<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match (self.weight.strides, self.weight.elements) {
            (strides, Elements::Blocks(weight)) if let Some(panels) = panels(weight) => {
                let features_in_rows = strides[1] == 1;
                let format = panels.format;
                let pack = PackPanels {
                    pack: self,
                    panels,
                    features_in_rows,
                };
                format
                    .on_panels(pack)
                    .expect("this format lies side by side");
            }
            ([_, 1], _) => self.rows(),
            _ => self.columns(),
        }
    }
}

impl<S: Simd> Pack<'_, S> {
    /// For a weight whose rows are contiguous: vector by vector.
    #[inline(always)]
    fn rows(self) {
        let width = VECTORS * S::F32_LANES;
        let whole = self.columns / width * width;
        let mut room = [0.0; MOST_COLUMNS + MOST_WIDTH];
        let room = &mut room[..self.columns];
        for feature in 0..self.depth {
            let row = self
                .weight
                .from(feature, 0)
                .elements
                .widened(self.simd, room);
            let vectors = S::as_simd_f32s(row).0.as_chunks::<VECTORS>().0;
            let to = S::as_mut_simd_f32s(&mut self.packed[feature * width..]).0;
            for (panel, vectors) in vectors.iter().enumerate() {
                to[panel * self.depth * VECTORS..][..VECTORS].copy_from_slice(vectors);
            }
            if whole < self.columns {
                let to = &mut self.packed[whole * self.depth + feature * width..];
                to[..self.columns - whole].copy_from_slice(&row[whole..]);
            }
        }
    }

    /// For a weight whose columns are contiguous: square by square.
    #[inline(always)]
    fn columns(self) {
        let width = VECTORS * S::F32_LANES;
        let squares = self.depth - self.depth % SQUARE;
        let mut rooms = [[0.0; DEPTH]; SQUARE];
        for first in (0..self.columns).step_by(width) {
            let panel = &mut self.packed[first * self.depth..][..width * self.depth];
            let here = width.min(self.columns - first);
            let in_squares = here - here % SQUARE;
            for column in (0..in_squares).step_by(SQUARE) {
                let mut columns: [&[f32]; SQUARE] = [&[]; SQUARE];
                for (index, (elements, room)) in columns.iter_mut().zip(&mut rooms).enumerate() {
                    let weight = self.weight.from(0, first + column + index);
                    *elements = weight.elements.widened(self.simd, &mut room[..self.depth]);
                }
                for feature in (0..squares).step_by(SQUARE) {
                    let mut square = [[0.0; SQUARE]; SQUARE];
                    for (row, column) in columns.iter().enumerate() {
                        for (to, from) in square.iter_mut().zip(&column[feature..][..SQUARE]) {
                            to[row] = *from;
                        }
                    }
                    let panel = &mut panel[feature * width..];
                    for (row, square) in square.iter().enumerate() {
                        panel[row * width + column..][..SQUARE].copy_from_slice(square);
                    }
                }
                for feature in squares..self.depth {
                    for (index, elements) in columns.iter().enumerate() {
                        panel[feature * width + column + index] = elements[feature];
                    }
                }
            }
            for column in in_squares..here {
                let elements = self.weight.from(0, first + column).elements;
                let elements = elements.widened(self.simd, &mut rooms[0][..self.depth]);
                for (feature, x) in elements.iter().enumerate() {
                    panel[feature * width + column] = *x;
                }
            }
        }
    }
}

/// [`Pack`] of a weight in blocks whose rows lie side by side.
struct PackPanels<'a, S> {
    pack: Pack<'a, S>,
    panels: Panels<'a>,
    /// Whether the rows that lie side by side are features, otherwise columns.
    features_in_rows: bool,
}

impl<S: Simd> OnPanels for PackPanels<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with<F: PanelFormat<BYTES, WORDS>, const BYTES: usize, const WORDS: usize>(mut self) {
        let (rows, along) = match self.features_in_rows {
            true => (self.pack.depth, self.pack.columns),
            false => (self.pack.columns, self.pack.depth),
        };
        let skip = self.panels.skip;
        let count = (skip + along).div_ceil(F::ELEMENTS);
        for first in (0..rows).step_by(LANES) {
            let blocks = &self.panels.bytes[first / LANES * self.panels.stride..];
            let blocks = &blocks.as_chunks::<BYTES>().0[..count];
            for (number, block) in blocks.iter().enumerate() {
                for group in 0..F::ELEMENTS / F::GROUP {
                    let at = number * F::ELEMENTS + group * F::GROUP;
                    if at + F::GROUP <= skip || at >= skip + along {
                        continue;
                    }
                    let scales = F::scales(block, group);
                    let words = F::words(block, group);
                    for part in (0..F::GROUP).step_by(SQUARE) {
                        let mut elements = [[0.0; LANES]; SQUARE];
                        for half in (0..SQUARE).step_by(4) {
                            let integers = F::integers(&words, group, part + half);
                            for k in 0..4 {
                                elements[half + k] = F::elements(integers[k], &scales);
                            }
                        }
                        let at = at + part;
                        if (skip..skip + along).contains(&at) {
                            match self.features_in_rows {
                                true => self.put_features(&elements, first, at - skip),
                                false => self.put_columns(&elements, at - skip, first),
                            }
                        }
                    }
                }
            }
        }
    }
}

impl<S: Simd> PackPanels<'_, S> {
    /// Lanes are columns, from the first one on.
    #[inline(always)]
    fn put_columns(&mut self, elements: &[[f32; LANES]; SQUARE], feature: usize, first: usize) {
        let features = self.pack.depth - feature;
        for (k, elements) in elements.iter().enumerate().take(features) {
            self.put(feature + k, first, elements);
        }
    }

    /// Lanes are features, from the first one on.
    #[inline(always)]
    fn put_features(&mut self, elements: &[[f32; LANES]; SQUARE], first: usize, column: usize) {
        let mut turned = [[0.0; SQUARE]; LANES];
        for lane in 0..LANES {
            for k in 0..SQUARE {
                turned[lane][k] = elements[k][lane];
            }
        }
        let features = self.pack.depth - first;
        for (lane, elements) in turned.iter().enumerate().take(features) {
            self.put(first + lane, column, elements);
        }
    }

    /// Elements of one feature in `N` columns, the first of which is a multiple of `N`. The last
    /// tile has room for columns past the end.
    #[inline(always)]
    fn put<const N: usize>(&mut self, feature: usize, first: usize, elements: &[f32; N]) {
        let width = VECTORS * S::F32_LANES;
        // This many columns lie together.
        let part = N.min(width);
        for at in (0..N.min(self.pack.columns - first)).step_by(part) {
            let column = first + at;
            let tile = &mut self.pack.packed[column / width * width * self.pack.depth..];
            tile[feature * width + column % width..][..part]
                .copy_from_slice(&elements[at..][..part]);
        }
    }
}

/// The panels of a weight, if they can be laid out in squares.
#[inline(always)]
pub(super) fn panels(weight: quants::Blocks<'_>) -> Option<Panels<'_>> {
    let panels = weight.panels()?;
    panels.skip.is_multiple_of(SQUARE).then_some(panels)
}

/// The initial values of a tile.
enum Start<'a> {
    /// The memory need not be read: fresh memory would be mapped twice.
    Zero,
    Bias(&'a [f32]),
    Sums,
}

/// Adds the products of `R` rows of `x` with a panel.
struct Tile<'a, 'b, S, const R: usize> {
    simd: S,
    /// `[feature, R]`
    x: &'a [f32],
    /// `[feature, width of a tile]`
    weight: &'a [f32],
    sums: &'a mut [&'b mut [f32]],
    /// The panel's first column.
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
        for (x, weight) in self.x.as_chunks::<R>().0.iter().zip(weight) {
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
