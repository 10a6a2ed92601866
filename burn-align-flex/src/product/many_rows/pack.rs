//! How a part of the weight is put into the order in which tiles read it.

use burn_align_quants::{Blocks, LANES, OnPanels, PanelFormat, Panels};
use pulp::{NullaryFnOnce, Simd};

use super::super::elements::Elements;
use super::{BLOCK_DEPTH, MOST_COLUMNS, MOST_DEPTH, MOST_WIDTH, Matrix, SQUARE};
use crate::tiles::VECTORS;

/// Lays out some features of some columns as `[strip, feature, width of a tile]`. The unused
/// columns of the last strip keep their contents: their sums are never read.
pub(super) struct Pack<'a, S> {
    pub(super) simd: S,
    pub(super) weight: Matrix<Elements<'a>>,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) packed: &'a mut [f32],
}

impl<S: Simd> NullaryFnOnce for Pack<'_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let features_in_rows = self.weight.strides[1] == 1;
        if let Elements::Blocks(weight) = self.weight.elements
            && let Some(panels) = panels_in_squares(weight)
        {
            let pack = PackPanels {
                pack: self,
                panels,
                features_in_rows,
            };
            let packed = panels.format.on_panels(pack);
            return packed.expect("this format lies side by side");
        }
        match features_in_rows {
            true => self.rows(),
            false => self.columns(),
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
            for (strip, vectors) in vectors.iter().enumerate() {
                to[strip * self.depth * VECTORS..][..VECTORS].copy_from_slice(vectors);
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
        let mut rooms = [[0.0; MOST_DEPTH]; SQUARE];
        for first in (0..self.columns).step_by(width) {
            let strip = &mut self.packed[first * self.depth..][..width * self.depth];
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
                    let strip = &mut strip[feature * width..];
                    for (row, square) in square.iter().enumerate() {
                        strip[row * width + column..][..SQUARE].copy_from_slice(square);
                    }
                }
                for feature in squares..self.depth {
                    for (index, elements) in columns.iter().enumerate() {
                        strip[feature * width + column + index] = elements[feature];
                    }
                }
            }
            for column in in_squares..here {
                let elements = self.weight.from(0, first + column).elements;
                let elements = elements.widened(self.simd, &mut rooms[0][..self.depth]);
                for (feature, x) in elements.iter().enumerate() {
                    strip[feature * width + column] = *x;
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
        // Parts of a weight then begin on a block, and groups are made of squares.
        const { assert!(BLOCK_DEPTH.is_multiple_of(F::ELEMENTS) && F::GROUP.is_multiple_of(SQUARE)) };
        let (rows, along) = match self.features_in_rows {
            true => (self.pack.depth, self.pack.columns),
            false => (self.pack.columns, self.pack.depth),
        };
        let skip = self.panels.skip;
        let count = (skip + along).div_ceil(F::ELEMENTS);
        for first in (0..rows).step_by(LANES) {
            let panels = &self.panels.bytes[first / LANES * self.panels.stride..];
            let panels = &panels.as_chunks::<BYTES>().0[..count];
            for (number, panel) in panels.iter().enumerate() {
                for group in 0..F::ELEMENTS / F::GROUP {
                    let at = number * F::ELEMENTS + group * F::GROUP;
                    if at + F::GROUP <= skip || at >= skip + along {
                        continue;
                    }
                    let scales = F::scales(panel, group);
                    let words = F::words(panel, group);
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
pub(in crate::product) fn panels_in_squares(weight: Blocks<'_>) -> Option<Panels<'_>> {
    let panels = weight.panels()?;
    panels.skip.is_multiple_of(SQUARE).then_some(panels)
}
