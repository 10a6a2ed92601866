//! Freezing several plans of the same inputs in one pass.
//!
//! A grid of interventions has a plan for each cell, and all of them begin with the same two runs:
//! of the base and of the source. Their sites differ, but one pass reaches all of them.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::Freezer;
use crate::engine::plan::{InputId, Plan, Read, ReadId, WorldId, WorldInput};
use crate::engine::validate::validate;
use crate::engine::{PlanError, RunOptions};
use crate::interventions::{Intervention, VanillaIntervention};

impl<B: Backend> Plan<B> {
    /// Freezes each of these plans. What they have in common before the first edit is run once:
    /// each different input of token ids passes the model up to the deepest site that some plan
    /// needs.
    ///
    /// - plans: with their interventions; all of these will change
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub(crate) fn freeze_together<M: AlignableTransformer<B>, I: Intervention<B>>(
        plans: &[(&Self, &[I])],
        model: &M,
        options: &RunOptions,
    ) -> Result<Vec<Self>, PlanError> {
        let all = |_intervention: usize| true;
        for (plan, interventions) in plans {
            validate(plan, model, interventions)?;
        }
        let freezers = plans.iter().map(|(plan, _)| plan.freezer(model, &all));
        let freezers: Vec<Option<Freezer<'_, B>>> = freezers.collect();
        let mut shared = Shared::default();
        let mut parts = Vec::new();
        for freezer in &freezers {
            parts.push(match freezer {
                Some(freezer) => {
                    let (prefix, kept) = freezer.prefix();
                    shared.add(&prefix).map(|reads| (kept, reads))
                }
                None => None,
            });
        }
        let results = match shared.plan.reads.is_empty() {
            true => None,
            false => {
                let none = [VanillaIntervention; 0];
                Some(shared.plan.run_with(model, &none, options)?)
            }
        };
        let frozen = freezers.iter().zip(parts).zip(plans);
        let frozen = frozen.map(|((freezer, part), (plan, interventions))| {
            match (freezer, part, &results) {
                (Some(freezer), Some((kept, reads)), Some(results)) => {
                    Ok(freezer.rest(&kept, |read| results.get(reads[read.0])))
                }
                // Without a first part, or with edits in it.
                _ => plan.freeze(model, interventions, all, options),
            }
        });
        frozen.collect()
    }
}

/// The first parts of several plans as one plan, with a world for each different input.
struct Shared<B: Backend> {
    plan: Plan<B>,
    worlds: Vec<(InputId, WorldId)>,
    reads: Vec<(Read, ReadId)>,
}

impl<B: Backend> Default for Shared<B> {
    fn default() -> Self {
        Self {
            plan: Plan::new(),
            worlds: Vec::new(),
            reads: Vec::new(),
        }
    }
}

impl<B: Backend> Shared<B> {
    /// Adds the first part of a plan: for each of its reads, the read that has the same value.
    /// `None` if it has edits, or inputs that are not token ids.
    fn add(&mut self, prefix: &Plan<B>) -> Option<Vec<ReadId>> {
        let edited = prefix.worlds.iter().any(|world| !world.edits.is_empty());
        let are_tokens = |input: &WorldInput<B>| matches!(input, WorldInput::Tokens(_));
        if edited || !prefix.inputs.iter().all(are_tokens) {
            return None;
        }
        let reads = prefix.reads.iter().map(|read| {
            let world = self.world(prefix.input_of(read.world()).clone());
            self.read(match read {
                Read::Activation { site, units, .. } => Read::Activation {
                    world,
                    site: *site,
                    units: units.clone(),
                },
                Read::Logits { positions, .. } => Read::Logits {
                    world,
                    positions: positions.clone(),
                },
            })
        });
        Some(reads.collect())
    }

    fn world(&mut self, input: WorldInput<B>) -> WorldId {
        let input = self.plan.input(input);
        match self.worlds.iter().find(|(known, _)| *known == input) {
            Some((_, world)) => *world,
            None => {
                let world = self.plan.world(input, []);
                self.worlds.push((input, world));
                world
            }
        }
    }

    fn read(&mut self, read: Read) -> ReadId {
        if let Some((_, same)) = self.reads.iter().find(|(known, _)| *known == read) {
            return *same;
        }
        let id = match read.clone() {
            Read::Activation { world, site, units } => self.plan.read(world, site, units),
            Read::Logits { world, positions } => self.plan.read_logits(world, positions),
        };
        self.reads.push((read, id));
        id
    }
}
