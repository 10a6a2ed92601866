//! Where the positions of rows are in the tensors of a stage.
//!
//! Causal attention never looks ahead, so rows on the same input are equal before the first
//! position at which one of them has been edited. One of them, the one that stays unedited longest,
//! is the *trunk* and is computed as a whole. Of the others only the *suffix* from that position on
//! is computed; what comes before it is taken from the trunk. No row goes on after the last position
//! that is needed of it.

mod beginnings;
mod kinds;
mod suffixes;

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

pub(super) use self::beginnings::{Beginnings, Edited, lower};
pub(super) use self::kinds::{merge_lengths, merge_suffixes};
use super::groups::{Groups, Sizes};

/// Where the positions of a stage's rows are. Rows are counted in 32 bits: a schedule has one of
/// these for nearly every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Number of positions of the longest row of the pass.
    pub(super) pos: usize,
    /// The first row of each group.
    first_rows: Vec<u32>,
    rows: Vec<Row>,
    /// For each row, the input and the example whose keys and values before the row's start are
    /// cached from an earlier pass. Nothing else is known of these positions. Empty if there are
    /// none.
    kept: Vec<Option<(usize, usize)>>,
    /// Suffixes that begin and end alike; `None` if all rows are computed as wholes.
    classes: Option<Vec<Class>>,
    /// Total number of computed positions, over all rows.
    tokens: usize,
}

/// One example of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    /// The index of the first computed position among the positions of all rows.
    first_token: usize,
    /// Number of positions, up to the last one that is needed.
    pos: u32,
    /// The first position that is computed.
    start: u32,
    /// The row that has the earlier positions; the row itself, if there are none or nothing needs
    /// them.
    trunk: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    start: usize,
    pos: usize,
    /// Whether they follow cached keys and values.
    kept: bool,
    /// Rows with the same trunk are adjacent.
    rows: Vec<u32>,
}

impl Layout {
    /// All rows as wholes, padded to `pos` positions.
    pub(super) fn whole(sizes: &Sizes, groups: &Groups, pos: usize) -> Self {
        let mut first_rows = Vec::with_capacity(groups.len());
        let mut rows = Vec::with_capacity(groups.len());
        for world in groups.firsts() {
            first_rows.push(rows.len() as u32);
            for _example in 0..sizes.of(world).batch {
                rows.push(Row {
                    first_token: rows.len() * pos,
                    pos: pos as u32,
                    start: 0,
                    trunk: rows.len() as u32,
                });
            }
        }
        Self {
            pos,
            first_rows,
            tokens: rows.len() * pos,
            rows,
            kept: Vec::new(),
            classes: None,
        }
    }

    /// Whether keys and values of earlier positions come from an earlier pass.
    fn is_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether those of a row do.
    fn row_is_kept(&self, row: usize) -> bool {
        self.is_kept() && self.kept[row].is_some()
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The first row of a group.
    pub(super) fn first_row(&self, group: usize) -> usize {
        self.first_rows[group] as usize
    }

    /// Whether all rows are computed as wholes.
    pub(super) fn is_whole(&self) -> bool {
        self.classes.is_none()
    }

    /// The first two axes of the residual stream.
    pub(super) fn shape(&self) -> [usize; 2] {
        match &self.classes {
            None => [self.rows.len(), self.pos],
            Some(_) => [1, self.tokens],
        }
    }

    /// The index of a row's position among the positions of all rows.
    pub(super) fn token(&self, row: usize, position: usize) -> usize {
        let here = &self.rows[row];
        let (start, trunk) = (here.start as usize, here.trunk as usize);
        if position < start {
            let kept = self.row_is_kept(row);
            assert!(!kept, "checked when the plan was validated");
            assert!(trunk != row, "position {position} is not needed");
            return self.token(trunk, position);
        }
        here.first_token + position - start
    }

    /// The first position after `positions.start`, up to its end, at which not all of these rows
    /// are the same row.
    pub(super) fn shared(&self, rows: &[usize], positions: Range<usize>) -> usize {
        let differs = |position: &usize| {
            let mut rows = rows.iter().map(|row| self.token(*row, *position));
            let first = rows.next();
            rows.any(|token| Some(token) != first)
        };
        positions.clone().find(differs).unwrap_or(positions.end)
    }

    /// The index of the vector of a head at a row's position among all vectors.
    pub(super) fn cell(&self, row: usize, [head, heads]: [usize; 2], position: usize) -> usize {
        match &self.classes {
            None => (row * heads + head) * self.pos + position,
            Some(_) => head * self.tokens + self.token(row, position),
        }
    }

    /// Rows and positions, in their order in the tensors.
    pub(super) fn places(&self) -> Vec<(usize, usize)> {
        let mut places = Vec::with_capacity(self.tokens);
        match &self.classes {
            None => {
                for row in 0..self.rows.len() {
                    places.extend((0..self.pos).map(|position| (row, position)));
                }
            }
            Some(classes) => {
                for class in classes {
                    for row in &class.rows {
                        let positions = class.start..class.pos;
                        places.extend(positions.map(|position| (*row as usize, position)));
                    }
                }
            }
        }
        places
    }

    /// For each row of this layout: the row of another one that it continues.
    ///
    /// - `parents`: the group there that each group here continues
    pub(super) fn rows_before(&self, before: &Self, parents: &[usize]) -> Vec<usize> {
        let all = self.rows.len() as u32;
        let ends = self.first_rows.iter().skip(1).copied().chain([all]);
        let groups = self.first_rows.iter().zip(ends).zip(parents);
        let mut rows = Vec::with_capacity(self.rows.len());
        for ((first, end), parent) in groups {
            let start = before.first_row(*parent);
            rows.extend(start..start + (end - first) as usize);
        }
        rows
    }

    /// For each position of this layout: its index in another one. Positions after the end of a row
    /// are arbitrary.
    pub(super) fn tokens_in(&self, before: &Self, rows_before: &[usize]) -> Vec<usize> {
        let places = self.places().into_iter().map(|(row, position)| {
            let row = rows_before[row];
            before.token(row, position.min(before.rows[row].pos as usize - 1))
        });
        places.collect()
    }

    /// For each class of rows: their number, the number of computed positions, and the number of
    /// positions that these attend to.
    pub(super) fn work(&self) -> Vec<[usize; 3]> {
        match &self.classes {
            None => vec![[self.rows.len(), self.pos, self.pos]],
            Some(classes) => classes
                .iter()
                .map(|class| [class.rows.len(), class.pos - class.start, class.pos])
                .collect(),
        }
    }
}

/// Indices as a tensor.
pub(super) fn int_tensor<B: Backend>(
    indices: impl Iterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let indices: Vec<i64> = indices.map(|index| index as i64).collect();
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}
