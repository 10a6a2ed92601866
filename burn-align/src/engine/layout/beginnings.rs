//! Where rows begin: the layouts of a stage.

use burn::tensor::backend::Backend;

use super::kinds::{Kind, Starts, merge_kinds, most_classes};
use super::{Class, Layout, Row};
use crate::engine::Indices;
use crate::engine::groups::{Groups, Sizes};
use crate::engine::wanted::{Ends, Wanted};

/// The first position at which each world has been edited so far, in each example; beyond the last
/// position if it has not been.
pub(in crate::engine) struct Edited {
    firsts: Vec<usize>,
    /// Where each world's examples begin, and where the last one's end.
    starts: Vec<usize>,
}

impl Edited {
    /// Nothing has been edited yet.
    pub(in crate::engine) fn nowhere(sizes: &Sizes) -> Self {
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
    pub(in crate::engine) fn edit(&mut self, world: usize, positions: &Indices) {
        let firsts = self.starts[world]..self.starts[world + 1];
        lower(&mut self.firsts[firsts], positions);
    }
}

/// Lowers the first positions to positions that are edited or read.
pub(in crate::engine) fn lower(firsts: &mut [usize], positions: &Indices) {
    for (example, first) in firsts.iter_mut().enumerate() {
        let earliest = match positions {
            Indices::All => Some(0),
            Indices::Same(positions) => positions.iter().min().copied(),
            Indices::Each(each) => each[example].iter().min().copied(),
        };
        *first = earliest.map_or(*first, |earliest| earliest.min(*first));
    }
}

/// Rows that begin at the first position that no other row has: what all layouts of stages with the
/// same groups, edited at the same positions, have in common.
pub(in crate::engine) struct Beginnings {
    /// The rows, which have no classes yet.
    rows: Layout,
    /// How many of them have which length and begin where.
    counts: Counts,
    /// The lengths that rows can have, in order.
    lengths: Vec<usize>,
    /// Most classes of suffixes in an attention.
    most_classes: usize,
}

/// How many rows of each length begin at each position, apart from empty ones: those whose earlier
/// positions are in a trunk, and those that follow cached keys and values.
type Counts = [Starts; 2];

impl Beginnings {
    /// - pos: the number of positions of the longest row of the pass
    pub(in crate::engine) fn new<B: Backend>(
        (sizes, ends): (&Sizes, &Ends),
        groups: &Groups,
        pos: usize,
        edited: &Edited,
    ) -> Self {
        // The trunk of each example of each input: the first edited position, and the row.
        let mut trunks: Vec<Option<(usize, u32)>> = vec![None; sizes.examples()];
        let mut count = 0;
        for world in groups.firsts() {
            let trunks = &mut trunks[sizes.examples_of(sizes.of_world[world])];
            for (edited, trunk) in edited.of(world).iter().zip(trunks) {
                if trunk.is_none_or(|(latest, _)| *edited > latest) {
                    *trunk = Some((*edited, count));
                }
                count += 1;
            }
        }
        let mut first_rows = Vec::with_capacity(groups.len());
        let mut rows: Vec<Row> = Vec::with_capacity(count as usize);
        let mut kept = Vec::new();
        let mut counts = [(); 2].map(|()| Starts::new(ends.distinct()));
        for world in groups.firsts() {
            first_rows.push(rows.len() as u32);
            let input = sizes.of_world[world];
            let size = &sizes.inputs[input];
            let examples = sizes.examples_of(input);
            let known = trunks[examples.clone()].iter().zip(ends.of(examples));
            for (example, (edited, (trunk, end))) in edited.of(world).iter().zip(known).enumerate()
            {
                let index = rows.len() as u32;
                let mut row = Row {
                    first_token: 0,
                    pos: *end as u32,
                    start: 0,
                    trunk: index,
                };
                if let Some(starts) = &size.starts {
                    kept.resize(count as usize, None);
                    kept[index as usize] = Some((input, example));
                    row.start = starts[example] as u32;
                } else if let Some((_, trunk)) = *trunk
                    && trunk != index
                {
                    row.trunk = trunk;
                    row.start = (*edited).min(*end) as u32;
                }
                if row.start < row.pos {
                    let counts = &mut counts[usize::from(size.starts.is_some())];
                    *counts.at(*end, row.start as usize) += 1;
                }
                rows.push(row);
            }
        }
        Self {
            rows: Layout {
                pos,
                first_rows,
                tokens: 0,
                rows,
                kept,
                classes: None,
            },
            counts,
            lengths: ends.distinct().to_vec(),
            most_classes: most_classes::<B>(ends.distinct()),
        }
    }

    /// Number of positions of whole rows.
    fn all(&self) -> usize {
        self.rows.rows.len() * self.rows.pos
    }

    /// Suffixes, if that saves a tenth of all positions.
    pub(in crate::engine) fn with_suffixes(&self, sizes: &Sizes, groups: &Groups) -> Layout {
        self.if_it_saves(self.suffixes(), sizes, groups)
    }

    fn suffixes(&self) -> Layout {
        let mut layout = self.rows.clone();
        layout.classify(self.counts.clone(), self.most_classes);
        layout
    }

    fn saves(&self, layout: &Layout) -> bool {
        layout.is_kept() || 10 * layout.tokens <= 9 * self.all()
    }

    fn if_it_saves(&self, layout: Layout, sizes: &Sizes, groups: &Groups) -> Layout {
        match self.saves(&layout) {
            true => layout,
            false => Layout::whole(sizes, groups, self.rows.pos),
        }
    }

    /// Like [`with_suffixes`](Self::with_suffixes), for an attention. If it saves a tenth of all
    /// queries, also the layout of the querying positions: those whose output is needed.
    pub(in crate::engine) fn with_queries(
        &self,
        sizes: &Sizes,
        groups: &Groups,
        wanted: &Wanted,
    ) -> (Layout, Option<Layout>) {
        let layout = self.suffixes();
        let Some(wanted) = wanted else {
            return (self.if_it_saves(layout, sizes, groups), None);
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
        let without = match self.saves(&layout) {
            true => layout.tokens,
            false => self.all(),
        };
        match queries.tokens > 0 && 10 * queries.tokens <= 9 * without {
            true => (layout, Some(queries)),
            false => (self.if_it_saves(layout, sizes, groups), None),
        }
    }

    /// Like [`with_suffixes`](Self::with_suffixes), for a stage that does not mix positions: only
    /// the needed part of the suffixes.
    pub(in crate::engine) fn by_position(
        &self,
        sizes: &Sizes,
        groups: &Groups,
        wanted: &Wanted,
    ) -> Layout {
        let mut layout = self.rows.clone();
        let Some(wanted) = wanted else {
            layout.classify(self.counts.clone(), usize::MAX);
            return self.if_it_saves(layout, sizes, groups);
        };
        layout.start_where_wanted(sizes, groups, wanted);
        layout.classify(layout.counts(&self.lengths), usize::MAX);
        // What an earlier stage has left out cannot come back.
        let mut inputs = groups.firsts().map(|world| sizes.of_world[world]);
        let is_partial = inputs.any(|input| {
            let mut firsts = wanted[sizes.examples_of(input)].iter();
            firsts.any(|first| *first > 0)
        });
        match is_partial {
            true => layout,
            false => self.if_it_saves(layout, sizes, groups),
        }
    }
}

impl Layout {
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

    /// Counts rows.
    ///
    /// - lengths: those that rows can have, in order
    fn counts(&self, lengths: &[usize]) -> Counts {
        let mut counts = [(); 2].map(|()| Starts::new(lengths));
        for (index, row) in self.rows.iter().enumerate() {
            if row.start < row.pos {
                let counts = &mut counts[usize::from(self.row_is_kept(index))];
                *counts.at(row.pos as usize, row.start as usize) += 1;
            }
        }
        counts
    }

    /// Groups suffixes into classes, and assigns their tokens.
    fn classify(&mut self, mut counts: Counts, most_classes: usize) {
        // The starts of whole rows, and of rows that follow cached keys and values, cannot move.
        let [own, kept] = counts.each_mut().map(Starts::kinds);
        let (whole, suffixes): (Vec<Kind>, Vec<Kind>) =
            own.into_iter().partition(|((_, start), _)| *start == 0);
        let suffixes = merge_kinds(suffixes, most_classes).into_iter();
        let whole = whole.into_iter().map(|(kind, count)| (kind, false, count));
        let kept = kept.into_iter().map(|(kind, count)| (kind, true, count));
        let mut fixed: Vec<((usize, usize), bool, usize)> = whole.chain(kept).collect();
        fixed.sort_unstable();
        self.tokens = 0;
        let classes = suffixes
            .map(|(kind, count)| (kind, false, count))
            .chain(fixed)
            .map(|((pos, start), kept, count)| {
                let first_token = self.tokens;
                self.tokens += count * (pos - start);
                Filling {
                    class: Class {
                        start,
                        pos,
                        kept,
                        rows: Vec::with_capacity(count),
                    },
                    first_token,
                    next_token: first_token,
                    last_trunk: 0,
                    is_sorted: true,
                }
            });
        let mut classes: Vec<Filling> = classes.collect();
        // The class of the rows of each length that begin at a position: the last before it.
        let mut class_of = counts;
        class_of.iter_mut().for_each(Starts::clear);
        for (Filling { class, .. }, number) in classes.iter().zip(1..) {
            *class_of[usize::from(class.kept)].at(class.pos, class.start) = number;
        }
        class_of.iter_mut().for_each(Starts::fill_forward);
        for index in 0..self.rows.len() {
            let is_kept = self.row_is_kept(index);
            let row = &mut self.rows[index];
            if row.start < row.pos {
                let class = class_of[usize::from(is_kept)].at(row.pos as usize, row.start as usize);
                classes[*class as usize - 1].add(index, row);
            }
        }
        let classes = classes
            .into_iter()
            .map(|filling| filling.class(&mut self.rows));
        self.classes = Some(classes.collect());
    }
}

/// A class to which rows are added in order.
struct Filling {
    class: Class,
    /// The index of the first row's first token.
    first_token: usize,
    /// And of the next one's.
    next_token: usize,
    /// The trunk of the row that was added last.
    last_trunk: u32,
    /// Whether rows with the same trunk are adjacent so far, in the order of trunks.
    is_sorted: bool,
}

impl Filling {
    fn add(&mut self, index: usize, row: &mut Row) {
        row.start = self.class.start as u32;
        row.first_token = self.next_token;
        self.next_token += self.class.pos - self.class.start;
        self.is_sorted &= self.last_trunk <= row.trunk;
        self.last_trunk = row.trunk;
        self.class.rows.push(index as u32);
    }

    /// The class with all its rows.
    fn class(mut self, rows: &mut [Row]) -> Class {
        if !self.is_sorted {
            let key = |row: &u32| (rows[*row as usize].trunk, *row);
            self.class.rows.sort_unstable_by_key(key);
            let tokens = (self.first_token..).step_by(self.class.pos - self.class.start);
            for (row, first_token) in self.class.rows.iter().zip(tokens) {
                rows[*row as usize].first_token = first_token;
            }
        }
        self.class
    }
}
