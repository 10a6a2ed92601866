//! Which positions are still needed.
//!
//! Before an attention all positions are needed, because others attend to them. After the last
//! attention that an input goes through, only those positions are needed that are read, changed or
//! used as a source.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;

use super::execute::logit_units;
use super::layout::lower;
use super::plan::{InputId, Operand, Plan, Read, WorldId};
use super::schedule::{Group, Need, made_edits};
use super::stages::{Stage, Stages};
use super::{Indices, Units};

/// Where activations and logits of worlds are used.
pub(super) struct Uses<'s> {
    stages: &'s Stages,
    /// The stages that mix positions, in order.
    mixing: Vec<Stage>,
    /// For each world: stages and positions.
    of_world: Vec<Vec<(Stage, Indices)>>,
}

/// For each input and each of its examples: the first position that is needed.
pub(super) type Wanted = BTreeMap<InputId, Vec<usize>>;

impl<'s> Uses<'s> {
    pub(super) fn new<B: Backend>(
        plan: &Plan<B>,
        needs: &[Option<Need>],
        stages: &'s Stages,
    ) -> Self {
        let mut of_world: Vec<Vec<(Stage, Indices)>> = vec![Vec::new(); plan.worlds.len()];
        let mut add = |world: WorldId, stage, units: &Units| {
            of_world[world.0].push((stage, units.positions.clone()));
        };
        for world in plan.world_ids() {
            for edit in made_edits(plan, needs, world) {
                add(world, stages.of_use(edit.site), &edit.units);
            }
            // Sources of another part of the plan are kept as well.
            for edit in &plan.worlds[world.0].edits {
                if let Operand::Activation { world, site, units } = &edit.operand {
                    add(*world, stages.of_use(*site), units);
                }
            }
        }
        for read in &plan.reads {
            match read {
                Read::Activation { world, site, units } => add(*world, stages.of_use(*site), units),
                Read::Logits { world, positions } => {
                    let units = logit_units(positions, plan.input_of(*world));
                    add(*world, Stage::Unembed, &units);
                }
            }
        }
        Self {
            stages,
            mixing: stages.mixing_stages().collect(),
            of_world,
        }
    }

    /// What is needed of the rows of a stage, in this stage and later ones.
    pub(super) fn wanted<B: Backend>(
        &self,
        plan: &Plan<B>,
        needs: &[Option<Need>],
        stage: Stage,
        groups: &[Group],
    ) -> Wanted {
        let next = self.mixing.iter().find(|mixing| **mixing > stage);
        let mut wanted = Wanted::new();
        for world in groups.iter().flat_map(|group| &group.worlds) {
            let input = plan.worlds[world.0].input;
            let batch = plan.input_of(*world).batch();
            let firsts = wanted
                .entry(input)
                .or_insert_with(|| vec![usize::MAX; batch]);
            let goes_on = next.is_some_and(|next| {
                needs[world.0].is_some_and(|need| need.stage(self.stages) >= *next)
            });
            if goes_on {
                firsts.fill(0);
                continue;
            }
            let uses = self.of_world[world.0].iter();
            for (_, positions) in uses.filter(|(at, _)| *at >= stage) {
                lower(firsts, positions);
            }
        }
        wanted
    }
}
