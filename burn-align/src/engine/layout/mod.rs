//! Where the positions of rows are in the tensors of a stage.
//!
//! Causal attention never looks ahead, so rows on the same input are equal before the first
//! position at which one of them has been edited. One of them, the one that stays unedited longest,
//! is the *trunk* and is computed as a whole. Of the others only the *suffix* from that position on
//! is computed; what comes before it is taken from the trunk.

mod suffixes;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::Indices;
use super::plan::{InputId, Plan};
use super::schedule::Group;
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

/// The first position at which a world has been edited so far, in each example; beyond the last
/// position if it has not been.
pub(super) type Edited = Vec<usize>;

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
    pub(super) fn whole<B: Backend>(plan: &Plan<B>, groups: &[Group], pos: usize) -> Self {
        let mut first_rows = Vec::with_capacity(groups.len());
        let mut rows = Vec::new();
        for group in groups {
            let input = plan.input_of(group.worlds[0]);
            first_rows.push(rows.len());
            for _example in 0..input.batch() {
                rows.push(Row {
                    pos: input.pos(),
                    start: 0,
                    trunk: rows.len(),
                    kept: None,
                    first_token: 0,
                });
            }
        }
        for (index, row) in rows.iter_mut().enumerate() {
            row.first_token = index * pos;
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
    ///
    /// - `edited`: for each group
    pub(super) fn with_suffixes<B: Backend>(
        plan: &Plan<B>,
        groups: &[Group],
        pos: usize,
        edited: &[&Edited],
    ) -> Self {
        let whole = Self::whole(plan, groups, pos);
        let layout = whole.suffixed(plan, groups, edited);
        match layout.is_kept() || 10 * layout.tokens <= 9 * whole.tokens {
            true => layout,
            false => whole,
        }
    }

    fn suffixed<B: Backend>(&self, plan: &Plan<B>, groups: &[Group], edited: &[&Edited]) -> Self {
        let mut layout = self.clone();
        layout.start_where_edited(plan, groups, edited);
        layout.classify(Self::MOST_CLASSES);
        layout
    }

    /// Whether keys and values of earlier positions come from an earlier pass.
    fn is_kept(&self) -> bool {
        self.rows.iter().any(|row| row.kept.is_some())
    }

    /// Like [`with_suffixes`](Self::with_suffixes), for an attention. If it saves a tenth of all
    /// queries, also the layout of the querying positions: those whose output is needed.
    pub(super) fn with_queries<B: Backend>(
        plan: &Plan<B>,
        groups: &[Group],
        pos: usize,
        edited: &[&Edited],
        wanted: &Wanted,
    ) -> (Self, Option<Self>) {
        let plain = Self::with_suffixes(plan, groups, pos, edited);
        if wanted.values().flatten().all(|first| *first == 0) {
            return (plain, None);
        }
        let layout = match plain.is_whole() {
            true => Self::whole(plan, groups, pos).suffixed(plan, groups, edited),
            false => plain.clone(),
        };
        let mut queries = layout.clone();
        for (group, first_row) in groups.iter().zip(&layout.first_rows) {
            let wanted = &wanted[&plan.worlds[group.worlds[0].0].input];
            for (row, wanted) in queries.rows[*first_row..].iter_mut().zip(wanted) {
                row.start = row.start.max(*wanted).min(row.pos);
            }
        }
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
    ///
    /// - `edited`: for each group
    pub(super) fn by_position<B: Backend>(
        plan: &Plan<B>,
        groups: &[Group],
        pos: usize,
        edited: &[&Edited],
        wanted: &Wanted,
    ) -> Self {
        let whole = Self::whole(plan, groups, pos);
        let mut layout = whole.clone();
        layout.start_where_edited(plan, groups, edited);
        let mut must_be = layout.is_kept();
        for (group, first_row) in groups.iter().zip(&whole.first_rows) {
            let wanted = &wanted[&plan.worlds[group.worlds[0].0].input];
            for (row, wanted) in layout.rows[*first_row..].iter_mut().zip(wanted) {
                // What an earlier stage has left out cannot come back.
                must_be |= *wanted > 0;
                row.start = row.start.max(*wanted).min(row.pos);
            }
        }
        layout.classify(usize::MAX);
        match must_be || 10 * layout.tokens <= 9 * whole.tokens {
            true => layout,
            false => whole,
        }
    }

    /// Starts each row at the first position that no other row has.
    fn start_where_edited<B: Backend>(
        &mut self,
        plan: &Plan<B>,
        groups: &[Group],
        edited: &[&Edited],
    ) {
        // The trunk of each example of each input.
        let mut trunks: BTreeMap<(InputId, usize), (usize, usize)> = BTreeMap::new();
        let input = |group: &Group| plan.worlds[group.worlds[0].0].input;
        for ((group, edited), first_row) in groups.iter().zip(edited).zip(&self.first_rows) {
            for (example, edited) in edited.iter().enumerate() {
                let here = (*edited, first_row + example);
                let trunk = trunks.entry((input(group), example)).or_insert(here);
                if here.0 > trunk.0 {
                    *trunk = here;
                }
            }
        }
        for ((group, edited), first_row) in groups.iter().zip(edited).zip(&self.first_rows) {
            let input = input(group);
            let past = plan.inputs[input.0].past();
            for (example, edited) in edited.iter().enumerate() {
                let (_, trunk) = trunks[&(input, example)];
                let row = &mut self.rows[first_row + example];
                if let Some(past) = past {
                    row.kept = Some((input, example));
                    row.start = past.starts[example];
                } else if trunk != first_row + example {
                    row.trunk = trunk;
                    row.start = (*edited).min(row.pos);
                }
            }
        }
    }

    /// Groups suffixes into classes, and assigns their tokens.
    fn classify(&mut self, most_classes: usize) {
        // A suffix may be empty.
        let rows = self.rows.iter().filter(|row| row.start < row.pos);
        let suffixes = rows
            .clone()
            .filter(|row| row.kept.is_none() && row.start > 0)
            .map(|row| (row.pos, row.start));
        // These starts cannot move: whole rows, and rows that follow cached keys and values.
        let fixed = rows
            .filter(|row| row.kept.is_some() || row.start == 0)
            .map(|row| (row.pos, row.start, row.kept.is_some()));
        let fixed: BTreeSet<(usize, usize, bool)> = fixed.collect();
        let merged = merge_suffixes(suffixes, most_classes);
        let mut classes: Vec<Class> = merged
            .into_iter()
            .map(|(pos, start)| (pos, start, false))
            .chain(fixed)
            .map(|(pos, start, kept)| Class {
                start,
                pos,
                kept,
                rows: Vec::new(),
            })
            .collect();
        for (index, row) in self.rows.iter_mut().enumerate() {
            if row.start == row.pos {
                continue;
            }
            let class = classes
                .iter_mut()
                .filter(|class| (class.pos, class.kept) == (row.pos, row.kept.is_some()))
                .filter(|class| class.start <= row.start)
                .max_by_key(|class| class.start)
                .expect("there is one for each row");
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
    let mut kinds: Vec<((usize, usize), usize)> = counts.into_iter().collect();
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
