//! Where the positions of rows are in the tensors of a stage.
//!
//! Causal attention never looks ahead, so rows on the same input are equal before the first
//! position at which one of them has been edited. One of them, the one that stays unedited longest,
//! is the *trunk* and is computed as a whole. Of the others only the *suffix* from that position on
//! is computed; what comes before it is taken from the trunk.

mod kinds;
mod suffixes;

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

pub(super) use self::kinds::merge_suffixes;
use self::kinds::{Kind, Starts, merge_kinds};
use super::Indices;
use super::groups::{Groups, Sizes};
use super::wanted::Wanted;

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
    /// Number of positions.
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

/// The first position at which each world has been edited so far, in each example; beyond the last
/// position if it has not been.
pub(super) struct Edited {
    firsts: Vec<usize>,
    /// Where each world's examples begin, and where the last one's end.
    starts: Vec<usize>,
}

impl Edited {
    /// Nothing has been edited yet.
    pub(super) fn nowhere(sizes: &Sizes) -> Self {
        let mut starts = Vec::with_capacity(sizes.of_world.len() + 1);
        let mut end = 0;
        starts.push(end);
        for input in &sizes.of_world {
            end += sizes.inputs[*input].batch;
            starts.push(end);
        }
        Self {
            firsts: vec![usize::MAX; end],
            starts,
        }
    }

    fn of(&self, world: usize) -> &[usize] {
        &self.firsts[self.starts[world]..self.starts[world + 1]]
    }

    /// The world with this index is edited at these positions.
    pub(super) fn edit(&mut self, world: usize, positions: &Indices) {
        let firsts = self.starts[world]..self.starts[world + 1];
        lower(&mut self.firsts[firsts], positions);
    }
}

/// Lowers the first positions to positions that are edited or read.
pub(super) fn lower(firsts: &mut [usize], positions: &Indices) {
    for (example, first) in firsts.iter_mut().enumerate() {
        let earliest = match positions {
            Indices::All => Some(0),
            Indices::Same(positions) => positions.iter().min().copied(),
            Indices::Each(each) => each[example].iter().min().copied(),
        };
        *first = earliest.map_or(*first, |earliest| earliest.min(*first));
    }
}

impl Layout {
    /// Most classes of suffixes in a stage. Each class costs a few small operations per block and
    /// saves positions; with fewer classes, some suffixes begin earlier than necessary.
    pub(super) const MOST_CLASSES: usize = 8;

    /// All rows as wholes, padded to `pos` positions.
    pub(super) fn whole(sizes: &Sizes, groups: &Groups, pos: usize) -> Self {
        let mut first_rows = Vec::with_capacity(groups.len());
        let mut rows = Vec::with_capacity(groups.len());
        for world in groups.firsts() {
            let input = sizes.of(world);
            first_rows.push(rows.len() as u32);
            for _example in 0..input.batch {
                rows.push(Row {
                    first_token: rows.len() * pos,
                    pos: input.pos as u32,
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

    /// Suffixes, if that saves a tenth of all positions.
    pub(super) fn with_suffixes(
        sizes: &Sizes,
        groups: &Groups,
        pos: usize,
        edited: &Edited,
    ) -> Self {
        let whole = Self::whole(sizes, groups, pos);
        let all = whole.tokens;
        let layout = whole.suffixed(sizes, groups, edited);
        match layout.is_kept() || 10 * layout.tokens <= 9 * all {
            true => layout,
            false => Self::whole(sizes, groups, pos),
        }
    }

    fn suffixed(mut self, sizes: &Sizes, groups: &Groups, edited: &Edited) -> Self {
        self.start_where_edited(sizes, groups, edited);
        self.classify(sizes, Self::MOST_CLASSES);
        self
    }

    /// Whether keys and values of earlier positions come from an earlier pass.
    fn is_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether those of a row do.
    fn row_is_kept(&self, row: usize) -> bool {
        self.is_kept() && self.kept[row].is_some()
    }

    /// Like [`with_suffixes`](Self::with_suffixes), for an attention. If it saves a tenth of all
    /// queries, also the layout of the querying positions: those whose output is needed.
    pub(super) fn with_queries(
        sizes: &Sizes,
        groups: &Groups,
        pos: usize,
        edited: &Edited,
        wanted: &Wanted,
    ) -> (Self, Option<Self>) {
        let plain = Self::with_suffixes(sizes, groups, pos, edited);
        let Some(wanted) = wanted else {
            return (plain, None);
        };
        let layout = match plain.is_whole() {
            true => Self::whole(sizes, groups, pos).suffixed(sizes, groups, edited),
            false => plain.clone(),
        };
        let mut queries = layout.clone();
        queries.start_where_wanted(sizes, groups, wanted);
        // The rows of a class begin together.
        queries.tokens = 0;
        for class in queries.classes.iter_mut().flatten() {
            let rows = class.rows.iter();
            let first = rows.map(|row| queries.rows[*row as usize].start).min();
            class.start = first.map_or(class.start, |first| first as usize);
            for row in &class.rows {
                let row = &mut queries.rows[*row as usize];
                row.start = class.start as u32;
                row.first_token = queries.tokens;
                queries.tokens += class.pos - class.start;
            }
        }
        match queries.tokens > 0 && 10 * queries.tokens <= 9 * plain.tokens {
            true => (layout, Some(queries)),
            false => (plain, None),
        }
    }

    /// Like [`with_suffixes`](Self::with_suffixes), for a stage that does not mix positions: only
    /// the needed part of the suffixes.
    pub(super) fn by_position(
        sizes: &Sizes,
        groups: &Groups,
        pos: usize,
        edited: &Edited,
        wanted: &Wanted,
    ) -> Self {
        let mut layout = Self::whole(sizes, groups, pos);
        let all = layout.tokens;
        layout.start_where_edited(sizes, groups, edited);
        let mut must_be = layout.is_kept();
        if let Some(wanted) = wanted {
            // What an earlier stage has left out cannot come back.
            let mut inputs = groups.firsts().map(|world| sizes.of_world[world]);
            must_be |= inputs.any(|input| {
                let mut firsts = wanted[sizes.examples_of(input)].iter();
                firsts.any(|first| *first > 0)
            });
            layout.start_where_wanted(sizes, groups, wanted);
        }
        layout.classify(sizes, usize::MAX);
        match must_be || 10 * layout.tokens <= 9 * all {
            true => layout,
            false => Self::whole(sizes, groups, pos),
        }
    }

    /// Starts each row no earlier than it is wanted.
    fn start_where_wanted(&mut self, sizes: &Sizes, groups: &Groups, wanted: &[usize]) {
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let wanted = &wanted[sizes.examples_of(sizes.of_world[world])];
            for (row, wanted) in self.rows[*first_row as usize..].iter_mut().zip(wanted) {
                let wanted = (*wanted).min(row.pos as usize) as u32;
                row.start = row.start.max(wanted);
            }
        }
    }

    /// Starts each row at the first position that no other row has.
    fn start_where_edited(&mut self, sizes: &Sizes, groups: &Groups, edited: &Edited) {
        // The trunk of each example of each input: the first edited position, and the row.
        let mut trunks: Vec<Option<(usize, u32)>> = vec![None; sizes.examples()];
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let trunks = &mut trunks[sizes.examples_of(sizes.of_world[world])];
            for ((edited, trunk), row) in edited.of(world).iter().zip(trunks).zip(*first_row..) {
                if trunk.is_none_or(|(latest, _)| *edited > latest) {
                    *trunk = Some((*edited, row));
                }
            }
        }
        let count = self.rows.len();
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let input = sizes.of_world[world];
            let starts = sizes.inputs[input].starts.as_ref();
            let trunks = &trunks[sizes.examples_of(input)];
            for (example, edited) in edited.of(world).iter().enumerate() {
                let index = *first_row as usize + example;
                let row = &mut self.rows[index];
                if let Some(starts) = starts {
                    self.kept.resize(count, None);
                    self.kept[index] = Some((input, example));
                    row.start = starts[example] as u32;
                } else if let Some((_, trunk)) = trunks[example]
                    && trunk as usize != index
                {
                    row.trunk = trunk;
                    row.start = (*edited).min(row.pos as usize) as u32;
                }
            }
        }
    }

    /// Groups suffixes into classes, and assigns their tokens.
    fn classify(&mut self, sizes: &Sizes, most_classes: usize) {
        // How many rows of each length begin at each position, those that follow cached keys and
        // values apart. A suffix may be empty.
        let mut counts = [(); 2].map(|()| Starts::new(&sizes.row_lengths));
        for (index, row) in self.rows.iter().enumerate() {
            if row.start < row.pos {
                let counts = &mut counts[usize::from(self.row_is_kept(index))];
                *counts.at(row.pos as usize, row.start as usize) += 1;
            }
        }
        // The starts of whole rows, and of rows that follow cached keys and values, cannot move.
        let [own, kept] = counts.each_mut().map(Starts::kinds);
        let (whole, suffixes): (Vec<Kind>, Vec<Kind>) =
            own.into_iter().partition(|((_, start), _)| *start == 0);
        let suffixes = merge_kinds(suffixes, most_classes).into_iter();
        let whole = whole.into_iter().map(|(kind, count)| (kind, false, count));
        let kept = kept.into_iter().map(|(kind, count)| (kind, true, count));
        let mut fixed: Vec<((usize, usize), bool, usize)> = whole.chain(kept).collect();
        fixed.sort_unstable();
        let mut classes: Vec<Class> = suffixes
            .map(|(kind, count)| (kind, false, count))
            .chain(fixed)
            .map(|((pos, start), kept, count)| Class {
                start,
                pos,
                kept,
                rows: Vec::with_capacity(count),
            })
            .collect();
        // The class of the rows of each length that begin at a position: the last before it.
        let mut class_of = counts;
        class_of.iter_mut().for_each(Starts::clear);
        for (class, number) in classes.iter().zip(1..) {
            *class_of[usize::from(class.kept)].at(class.pos, class.start) = number;
        }
        class_of.iter_mut().for_each(Starts::fill_forward);
        for index in 0..self.rows.len() {
            let is_kept = self.row_is_kept(index);
            let row = &mut self.rows[index];
            if row.start == row.pos {
                continue;
            }
            let class = class_of[usize::from(is_kept)].at(row.pos as usize, row.start as usize);
            let class = &mut classes[*class as usize - 1];
            row.start = class.start as u32;
            class.rows.push(index as u32);
        }
        self.tokens = 0;
        for class in &mut classes {
            let key = |row: &u32| (self.rows[*row as usize].trunk, *row);
            class.rows.sort_unstable_by_key(key);
            for row in &class.rows {
                self.rows[*row as usize].first_token = self.tokens;
                self.tokens += class.pos - class.start;
            }
        }
        self.classes = Some(classes);
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
