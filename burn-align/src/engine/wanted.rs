//! Which positions are still needed.
//!
//! Before an attention all positions are needed, because others attend to them. After the last
//! attention that an input goes through, only those positions are needed that are read, changed or
//! used as a source.
//!
//! For example, two worlds on a prompt of 5 positions, of which one is edited at position 2 of the last
//! layer's MLP output, and logits are read at position 4 of both. Up to the last layer's keys and values,
//! everything is wanted. For that layer's queries, what it adds to the stream, and its MLP, positions 2
//! to 4 are; for the final norm, position 4.

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
    /// For each world: stages and positions.
    of_world: Vec<Vec<(Stage, Use<'p>)>>,
}

/// Positions that are used.
enum Use<'p> {
    Units(&'p Indices),
    Logits(&'p LogitPositions),
}

/// For each input and each of its examples: the first position that is needed; `None` if all positions
/// of all inputs are.
pub(super) type Wanted = Option<Vec<Vec<usize>>>;

impl<'p> Uses<'p> {
    pub(super) fn new<B: Backend>(plan: &'p Plan<B>, needs: &Needs, stages: &Stages) -> Self {
        let mut of_world: Vec<Vec<(Stage, Use<'p>)>> = Vec::new();
        of_world.resize_with(plan.worlds.len(), Vec::new);
        let mut add = |world: WorldId, site, units: &'p Units| {
            of_world[world.0].push((stages.of_use(site), Use::Units(&units.positions)));
        };
        for world in plan.world_ids() {
            for edit in &plan.worlds[world.0].edits {
                if needs.reaches(world, edit.site) {
                    add(world, edit.site, &edit.units);
                }
                // Sources of another part of the plan are kept as well.
                if let Operand::Activation { world, site, units } = &edit.operand {
                    add(*world, *site, units);
                }
            }
        }
        for read in &plan.reads {
            match read {
                Read::Activation { world, site, units } => add(*world, *site, units),
                Read::Logits { .. } => {}
            }
        }
        for read in &plan.reads {
            if let Read::Logits { world, positions } = read {
                of_world[world.0].push((Stage::Unembed, Use::Logits(positions)));
            }
        }
        Self {
            mixing: stages.mixing_stages().collect(),
            ends: needs.iter().map(|need| Some(need?.stage(stages))).collect(),
            of_world,
        }
    }

    /// The last stage that a world is run to; `None` if it is not run.
    pub(super) fn end(&self, world: WorldId) -> Option<Stage> {
        self.ends[world.0]
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
        let inputs = sizes.inputs.iter();
        let mut wanted: Vec<Vec<usize>> = inputs.map(|size| vec![usize::MAX; size.batch]).collect();
        for world in groups.worlds() {
            let input = sizes.of_world[world.0].0;
            let firsts = &mut wanted[input];
            let goes_on = next.is_some_and(|next| self.ends[world.0] >= Some(*next));
            if goes_on {
                firsts.fill(0);
                continue;
            }
            for (_, used) in self.of_world[world.0].iter().filter(|(at, _)| *at >= stage) {
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
