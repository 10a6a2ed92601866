//! Where the positions of rows are in the tensors of a stage.
//!
//! Causal attention never looks ahead, so rows on the same input are equal before the first
//! position at which one of them has been edited. One of them, the one that stays unedited longest,
//! is the *trunk* and is computed as a whole. Of the others only the *suffix* from that position on
//! is computed; what comes before it is taken from the trunk.

mod suffixes;

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::Indices;
use super::groups::{Groups, Sizes};
use super::plan::{InputId, WorldId};
use super::wanted::Wanted;

/// Where the positions of a stage's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Number of positions of the longest row of the pass.
    pub(super) pos: usize,
    /// The first row of each group.
    first_rows: Vec<usize>,
    rows: Vec<Row>,
    /// Suffixes that begin and end alike; `None` if all rows are computed as wholes.
    classes: Option<Vec<Class>>,
    /// Total number of computed positions, over all rows.
    tokens: usize,
}

/// One example of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    /// Number of positions.
    pos: usize,
    /// The first position that is computed.
    start: usize,
    /// The row that has the earlier positions; the row itself, if there are none or nothing needs
    /// them.
    trunk: usize,
    /// Whether keys and values before the start are cached from an earlier pass. Nothing else is
    /// known of these positions.
    kept: Option<(InputId, usize)>,
    /// The index of the first computed position among the positions of all rows.
    first_token: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    start: usize,
    pos: usize,
    /// Whether they follow cached keys and values.
    kept: bool,
    /// Rows with the same trunk are adjacent.
    rows: Vec<usize>,
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
        let mut starts = vec![0];
        for input in &sizes.of_world {
            starts.push(starts[starts.len() - 1] + sizes.inputs[input.0].batch);
        }
        Self {
            firsts: vec![usize::MAX; starts[starts.len() - 1]],
            starts,
        }
    }

    fn of(&self, world: WorldId) -> &[usize] {
        &self.firsts[self.starts[world.0]..self.starts[world.0 + 1]]
    }

    /// A world is edited at these positions.
    pub(super) fn edit(&mut self, world: WorldId, positions: &Indices) {
        let firsts = self.starts[world.0]..self.starts[world.0 + 1];
        lower(&mut self.firsts[firsts], positions);
    }
}

/// A number for each length and first position of rows.
#[derive(Default)]
struct Starts {
    /// For each length, a number for each first position.
    of_length: BTreeMap<usize, Vec<usize>>,
}

impl Starts {
    fn at(&mut self, pos: usize, start: usize) -> &mut usize {
        let numbers = self.of_length.entry(pos);
        &mut numbers.or_insert_with(|| vec![0; pos])[start]
    }

    fn count(&mut self, pos: usize, start: usize) {
        *self.at(pos, start) += 1;
    }

    fn set(&mut self, pos: usize, start: usize, number: usize) {
        *self.at(pos, start) = number;
    }

    fn get(&mut self, pos: usize, start: usize) -> usize {
        *self.at(pos, start)
    }

    /// Gives each first position without a number that of the one before.
    fn fill_forward(&mut self) {
        for numbers in self.of_length.values_mut() {
            let mut last = 0;
            for number in numbers {
                match *number {
                    0 => *number = last,
                    own => last = own,
                }
            }
        }
    }

    /// Lengths and first positions with their numbers, if these are not 0.
    fn kinds(&self) -> impl Iterator<Item = ((usize, usize), usize)> + '_ {
        self.of_length.iter().flat_map(|(pos, numbers)| {
            let numbers = numbers
                .iter()
                .enumerate()
                .filter(|(_, number)| **number > 0);
            numbers.map(|(start, number)| ((*pos, start), *number))
        })
    }

    fn merged(&self, most_classes: usize) -> Vec<(usize, usize)> {
        merge_kinds(self.kinds().collect(), most_classes)
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
            first_rows.push(rows.len());
            for _example in 0..input.batch {
                rows.push(Row {
                    pos: input.pos,
                    start: 0,
                    trunk: rows.len(),
                    kept: None,
                    first_token: rows.len() * pos,
                });
            }
        }
        Self {
            pos,
            first_rows,
            tokens: rows.len() * pos,
            rows,
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
        self.classify(Self::MOST_CLASSES);
        self
    }

    /// Whether keys and values of earlier positions come from an earlier pass.
    fn is_kept(&self) -> bool {
        self.rows.iter().any(|row| row.kept.is_some())
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
            let first = rows.map(|row| queries.rows[*row].start).min();
            class.start = first.unwrap_or(class.start);
            for row in &class.rows {
                queries.rows[*row].start = class.start;
                queries.rows[*row].first_token = queries.tokens;
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
            let mut inputs = groups.firsts().map(|world| sizes.of_world[world.0].0);
            must_be |= inputs.any(|input| wanted[input].iter().any(|first| *first > 0));
            layout.start_where_wanted(sizes, groups, wanted);
        }
        layout.classify(usize::MAX);
        match must_be || 10 * layout.tokens <= 9 * all {
            true => layout,
            false => Self::whole(sizes, groups, pos),
        }
    }

    /// Starts each row no earlier than it is wanted.
    fn start_where_wanted(&mut self, sizes: &Sizes, groups: &Groups, wanted: &[Vec<usize>]) {
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let wanted = &wanted[sizes.of_world[world.0].0];
            for (row, wanted) in self.rows[*first_row..].iter_mut().zip(wanted) {
                row.start = row.start.max(*wanted).min(row.pos);
            }
        }
    }

    /// Starts each row at the first position that no other row has.
    fn start_where_edited(&mut self, sizes: &Sizes, groups: &Groups, edited: &Edited) {
        // The trunk of each example of each input: the first edited position, and the row.
        let inputs = sizes.inputs.iter();
        let mut trunks: Vec<Vec<Option<(usize, usize)>>> =
            inputs.map(|input| vec![None; input.batch]).collect();
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let trunks = &mut trunks[sizes.of_world[world.0].0];
            for (example, (edited, trunk)) in edited.of(world).iter().zip(trunks).enumerate() {
                if trunk.is_none_or(|(latest, _)| *edited > latest) {
                    *trunk = Some((*edited, first_row + example));
                }
            }
        }
        for (world, first_row) in groups.firsts().zip(&self.first_rows) {
            let id = sizes.of_world[world.0];
            let starts = sizes.inputs[id.0].starts.as_ref();
            for (example, edited) in edited.of(world).iter().enumerate() {
                let row = &mut self.rows[first_row + example];
                if let Some(starts) = starts {
                    row.kept = Some((id, example));
                    row.start = starts[example];
                } else if let Some((_, trunk)) = trunks[id.0][example]
                    && trunk != first_row + example
                {
                    row.trunk = trunk;
                    row.start = (*edited).min(row.pos);
                }
            }
        }
    }

    /// Groups suffixes into classes, and assigns their tokens.
    fn classify(&mut self, most_classes: usize) {
        // How many rows of each length begin at each position. A suffix may be empty.
        let (mut suffixes, mut fixed) = (Starts::default(), [Starts::default(), Starts::default()]);
        for row in self.rows.iter().filter(|row| row.start < row.pos) {
            // The starts of whole rows, and of rows that follow cached keys and values, cannot move.
            match (row.kept.is_some(), row.start) {
                (false, 1..) => suffixes.count(row.pos, row.start),
                (kept, _) => fixed[usize::from(kept)].count(row.pos, row.start),
            }
        }
        let merged = suffixes.merged(most_classes);
        let kinds = merged.into_iter().map(|(pos, start)| (pos, start, false));
        let mut fixed_kinds: Vec<(usize, usize, bool)> = Vec::new();
        for (kept, fixed) in [false, true].into_iter().zip(&fixed) {
            let kinds = fixed.kinds().map(|((pos, start), _)| (pos, start, kept));
            fixed_kinds.extend(kinds);
        }
        fixed_kinds.sort_unstable();
        let mut classes: Vec<Class> = kinds
            .chain(fixed_kinds)
            .map(|(pos, start, kept)| Class {
                start,
                pos,
                kept,
                rows: Vec::new(),
            })
            .collect();
        // The class of the rows of each length that begin at a position: the last before it.
        let mut class_of = [Starts::default(), Starts::default()];
        for (index, class) in classes.iter().enumerate() {
            class_of[usize::from(class.kept)].set(class.pos, class.start, index + 1);
        }
        class_of.iter_mut().for_each(Starts::fill_forward);
        for (index, row) in self.rows.iter_mut().enumerate() {
            if row.start == row.pos {
                continue;
            }
            let class = class_of[usize::from(row.kept.is_some())].get(row.pos, row.start);
            let class = &mut classes[class - 1];
            row.start = class.start;
            class.rows.push(index);
        }
        self.tokens = 0;
        for class in &mut classes {
            class.rows.sort_by_key(|row| (self.rows[*row].trunk, *row));
            for row in &class.rows {
                self.rows[*row].first_token = self.tokens;
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
        self.first_rows[group]
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
        if position < here.start {
            assert!(here.kept.is_none(), "checked when the plan was validated");
            assert!(here.trunk != row, "position {position} is not needed");
            return self.token(here.trunk, position);
        }
        here.first_token + position - here.start
    }

    /// The first position after `positions.start`, up to its end, at which not all of these rows are the same
    /// row.
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
                        places.extend(positions.map(|position| (*row, position)));
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
        let all = self.rows.len();
        let ends = self.first_rows.iter().skip(1).copied().chain([all]);
        let groups = self.first_rows.iter().zip(ends).zip(parents);
        groups
            .flat_map(|((first, end), parent)| {
                let start = before.first_rows[*parent];
                start..start + end - first
            })
            .collect()
    }

    /// For each position of this layout: its index in another one. Positions after the end of a row
    /// are arbitrary.
    pub(super) fn tokens_in(&self, before: &Self, rows_before: &[usize]) -> Vec<usize> {
        let places = self.places().into_iter().map(|(row, position)| {
            let row = rows_before[row];
            before.token(row, position.min(before.rows[row].pos - 1))
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

/// Chooses starts for suffixes with these ends and starts, so that there are at most `most_classes`
/// kinds of them and little more is computed. The result is sorted.
pub(super) fn merge_suffixes(
    suffixes: impl Iterator<Item = (usize, usize)>,
    most_classes: usize,
) -> Vec<(usize, usize)> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for kind in suffixes {
        *counts.entry(kind).or_default() += 1;
    }
    merge_kinds(counts.into_iter().collect(), most_classes)
}

fn merge_kinds(
    mut kinds: Vec<((usize, usize), usize)>,
    most_classes: usize,
) -> Vec<(usize, usize)> {
    kinds.sort_unstable();
    while kinds.len() > most_classes {
        // The cost of starting the suffixes of a kind where the previous kind starts.
        let costs = kinds.windows(2).enumerate().filter_map(|(index, pair)| {
            let ([(pos, start), (other_pos, later)], count) = ([pair[0].0, pair[1].0], pair[1].1);
            (pos == other_pos).then_some(((later - start) * count, index))
        });
        let Some((_, index)) = costs.min() else {
            break;
        };
        kinds[index].1 += kinds.remove(index + 1).1;
    }
    kinds.into_iter().map(|(kind, _count)| kind).collect()
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
