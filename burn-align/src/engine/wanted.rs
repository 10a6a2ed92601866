//! Which positions are still needed.
//!
//! Before an attention all positions are needed up to the last one that is read, changed or used as
//! a source, because later ones attend to them. After the last attention that an input goes through,
//! only those positions are needed that are read, changed or used as a source.
//!
//! For example, two worlds on a prompt of 5 positions, of which one is edited at position 2 of the
//! last layer's MLP output, and logits are read at position 4 of both. Up to the last layer's keys
//! and values, everything is wanted. For that layer's queries, what it adds to the stream, and its
//! MLP, positions 2 to 4 are; for the final norm, position 4.
//!
//! Under causal masks, what comes after the last needed position of a row is not computed at all:
//! padding that nothing reads, and the end of a prompt of which an edit takes something in the
//! middle.

use std::ops::Range;

use burn::tensor::backend::Backend;

use super::groups::{Groups, Sizes};
use super::layout::{lower, merge_lengths};
use super::needs::Needs;
use super::plan::{LogitPositions, Operand, Plan, Read, WorldId};
use super::stages::{Stage, Stages};
use super::{Indices, Units};

/// Where activations and logits of worlds are used.
pub(super) struct Uses<'p> {
    /// The stages that mix positions, in order.
    mixing: Vec<Stage>,
    /// For each world: the last stage that is run, if it is run at all.
    ends: Vec<Option<Stage>>,
    /// Uses of all worlds, each with the index of the same world's use before it.
    all: Vec<(Stage, Use<'p>, Option<usize>)>,
    /// For each world: the index of its last use.
    last_of: Vec<Option<usize>>,
}

/// Positions that are used.
enum Use<'p> {
    Units(&'p Indices),
    Logits(&'p LogitPositions),
}

/// For each example of each input: the first position that is needed; `None` if all positions of
/// all inputs are.
pub(super) type Wanted = Option<Vec<usize>>;

/// Where rows end: after the last position that anything needs of them.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// For each example of each input.
    of_example: Vec<usize>,
    /// The same, in order, each once.
    distinct: Vec<usize>,
}

impl Ends {
    fn new(of_example: Vec<usize>) -> Self {
        let mut distinct = of_example.clone();
        distinct.sort_unstable();
        distinct.dedup();
        Self {
            of_example,
            distinct,
        }
    }

    /// After the last position of the input.
    pub(super) fn of_whole_inputs(sizes: &Sizes) -> Self {
        let inputs = sizes.inputs.iter();
        Self::new(
            inputs
                .flat_map(|input| std::iter::repeat_n(input.pos, input.batch))
                .collect(),
        )
    }

    /// The ends of these examples, of all inputs' examples.
    pub(super) fn of(&self, examples: Range<usize>) -> &[usize] {
        &self.of_example[examples]
    }

    /// All ends, in order, each once.
    pub(super) fn distinct(&self) -> &[usize] {
        &self.distinct
    }
}

impl<'p> Uses<'p> {
    pub(super) fn new<B: Backend>(plan: &'p Plan<B>, needs: &Needs, stages: &Stages) -> Self {
        let mut uses = Self {
            mixing: stages.mixing_stages().collect(),
            ends: needs.iter().map(|need| Some(need?.stage(stages))).collect(),
            all: Vec::with_capacity(2 * plan.worlds.len() + plan.reads.len()),
            last_of: vec![None; plan.worlds.len()],
        };
        for world in plan.world_ids() {
            for edit in &plan.worlds[world.0].edits {
                if needs.reaches(world, edit.site) {
                    uses.add_units(world, stages.of_use(edit.site), &edit.units);
                }
                // Sources of another part of the plan are kept as well.
                if let Operand::Activation { world, site, units } = &edit.operand {
                    uses.add_units(*world, stages.of_use(*site), units);
                }
            }
        }
        for read in &plan.reads {
            match read {
                Read::Activation { world, site, units } => {
                    uses.add_units(*world, stages.of_use(*site), units);
                }
                Read::Logits { world, positions } => {
                    uses.add(*world, Stage::Unembed, Use::Logits(positions));
                }
            }
        }
        uses
    }

    fn add_units(&mut self, world: WorldId, stage: Stage, units: &'p Units) {
        self.add(world, stage, Use::Units(&units.positions));
    }

    fn add(&mut self, world: WorldId, stage: Stage, used: Use<'p>) {
        let last = &mut self.last_of[world.0];
        self.all.push((stage, used, *last));
        *last = Some(self.all.len() - 1);
    }

    /// The stages at which a world is used, and how.
    fn of(&self, world: usize) -> impl Iterator<Item = (Stage, &Use<'p>)> {
        let mut last = self.last_of[world];
        std::iter::from_fn(move || {
            let (stage, used, before) = &self.all[last?];
            last = *before;
            Some((*stage, used))
        })
    }

    /// The last stage that a world is run to; `None` if it is not run.
    ///
    /// - world: its index
    pub(super) fn end(&self, world: usize) -> Option<Stage> {
        self.ends[world]
    }

    /// Where rows end if no position depends on later ones. Few ends differ from each other.
    pub(super) fn row_ends(&self, sizes: &Sizes) -> Ends {
        let mut ends = vec![0; sizes.examples()];
        for (input, size) in sizes.inputs.iter().enumerate().filter(|(_, it)| it.is_kept) {
            ends[sizes.examples_of(input)].copy_from_slice(&size.lengths);
        }
        let runs = self.ends.iter().enumerate();
        for (world, _) in runs.filter(|(_, end)| end.is_some()) {
            let input = sizes.of_world[world];
            let size = &sizes.inputs[input];
            let ends = &mut ends[sizes.examples_of(input)];
            for (_, used) in self.of(world) {
                match used {
                    Use::Logits(LogitPositions::All) | Use::Units(Indices::All) => {
                        ends.fill(size.pos);
                    }
                    Use::Logits(LogitPositions::Last) => raise(ends, &size.lengths),
                    Use::Units(Indices::Same(positions)) => {
                        let end = positions.iter().max().map_or(0, |last| last + 1);
                        ends.iter_mut().for_each(|own| *own = end.max(*own));
                    }
                    Use::Units(Indices::Each(each)) | Use::Logits(LogitPositions::Each(each)) => {
                        let last = |of_example: &Vec<usize>| of_example.iter().max().copied();
                        let lasts = each.iter().map(last);
                        let each: Vec<usize> =
                            lasts.map(|last| last.map_or(0, |it| it + 1)).collect();
                        raise(ends, &each);
                    }
                }
            }
        }
        let few = merge_lengths(ends.iter().copied().filter(|end| *end > 0));
        for (input, size) in sizes.inputs.iter().enumerate() {
            for end in &mut ends[sizes.examples_of(input)] {
                let next = few.get(few.partition_point(|other| *other < *end));
                // Every row has a position, and none is longer than its input.
                *end = next.map_or(1, |next| size.pos.min(*next));
            }
        }
        Ends::new(ends)
    }

    /// What is needed of the rows of a stage, in this stage and later ones.
    ///
    /// - first_end: the first stage at which one of the worlds ends
    pub(super) fn wanted(
        &self,
        sizes: &Sizes,
        stage: Stage,
        groups: &Groups,
        first_end: Stage,
    ) -> Wanted {
        let later = self.mixing.partition_point(|mixing| *mixing <= stage);
        let next = self.mixing.get(later);
        if next.is_some_and(|next| first_end >= *next) {
            return None;
        }
        let mut wanted = vec![usize::MAX; sizes.examples()];
        for world in groups.worlds() {
            let world = *world as usize;
            let input = sizes.of_world[world];
            let firsts = &mut wanted[sizes.examples_of(input)];
            let goes_on = next.is_some_and(|next| self.ends[world] >= Some(*next));
            if goes_on {
                firsts.fill(0);
                continue;
            }
            for (_, used) in self.of(world).filter(|(at, _)| *at >= stage) {
                match used {
                    Use::Units(positions) => lower(firsts, positions),
                    Use::Logits(LogitPositions::All) => firsts.fill(0),
                    Use::Logits(LogitPositions::Last) => {
                        for (first, length) in firsts.iter_mut().zip(&sizes.inputs[input].lengths) {
                            *first = (*first).min(length - 1);
                        }
                    }
                    Use::Logits(LogitPositions::Each(examples)) => {
                        for (first, positions) in firsts.iter_mut().zip(examples) {
                            let earliest = positions.iter().min().copied();
                            *first = (*first).min(earliest.unwrap_or(usize::MAX));
                        }
                    }
                }
            }
        }
        Some(wanted)
    }
}

fn raise(ends: &mut [usize], others: &[usize]) {
    for (end, other) in ends.iter_mut().zip(others) {
        *end = (*other).max(*end);
    }
}
