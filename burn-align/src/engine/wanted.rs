//! Which positions are still needed.
//!
//! Before an attention all positions are needed, because others attend to them. After the last
//! attention that an input goes through, only those positions are needed that are read, changed or
//! used as a source.
//!
//! For example, two worlds on a prompt of 5 positions, of which one is edited at position 2 of the
//! last layer's MLP output, and logits are read at position 4 of both. Up to the last layer's keys
//! and values, everything is wanted. For that layer's queries, what it adds to the stream, and its
//! MLP, positions 2 to 4 are; for the final norm, position 4.

use burn::tensor::backend::Backend;

use super::groups::{Groups, Sizes};
use super::layout::lower;
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
