//! What is checked before anything is computed.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, SiteWidth, TokenBatch};

use super::run::{Generator, units};
use super::{AtLimit, GenerateError, GeneratedWorld, StepEdit, StepOperand};
use crate::engine::{Edit, Indices, LogitPositions, Plan, Units};
use crate::interventions::Intervention;

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Generator<'_, B, M, I> {
    /// Checks everything that can be wrong before the prompts run, except for the prompts' own
    /// plan.
    pub(super) fn check(&self, plan: &Plan<B>) -> Result<(), GenerateError> {
        let options = self.options;
        options
            .sampling
            .validate()
            .map_err(|cause| GenerateError::Sampling {
                row: None,
                step: 0,
                cause,
            })?;
        if self.worlds.is_empty() {
            return Err(GenerateError::NoWorlds);
        }
        if let Some((_, texts)) = &options.stop_texts
            && texts.iter().any(String::is_empty)
        {
            return Err(GenerateError::EmptyStopText);
        }
        let (mut seen, mut row) = (BTreeSet::new(), 0);
        for world in self.worlds {
            let index = world.world.index();
            if !seen.insert(world.world) {
                return Err(GenerateError::RepeatedWorld { world: index });
            }
            let lengths = plan.lengths_of(world.world)?;
            let batch = lengths.len();
            if !world.streams.is_empty() && world.streams.len() != batch {
                return Err(GenerateError::Streams {
                    world: index,
                    expected: batch,
                    found: world.streams.len(),
                });
            }
            for prompt in lengths {
                if let (Some(max_positions), AtLimit::Refuse) =
                    (self.model.dims().max_positions, options.at_limit)
                    && prompt.saturating_add(options.max_new_tokens) > max_positions
                {
                    return Err(GenerateError::TooLong {
                        row,
                        prompt,
                        new: options.max_new_tokens,
                        max_positions,
                    });
                }
                row += 1;
            }
            for edit in &world.edits {
                self.check_edit(plan, index, batch, edit)?;
            }
        }
        self.check_steps(plan)
    }

    fn check_edit(
        &self,
        plan: &Plan<B>,
        world: usize,
        batch: usize,
        edit: &StepEdit<B>,
    ) -> Result<(), GenerateError> {
        let steps = self.options.max_new_tokens.saturating_sub(1);
        if let Some(found) = edit.step.filter(|step| *step >= steps) {
            return Err(GenerateError::NoSuchStep {
                world,
                found,
                steps,
            });
        }
        let (heads, site) = match &edit.operand {
            StepOperand::World { site, heads, .. } => (heads, *site),
            StepOperand::Activation { site, units, .. } => (&units.heads, *site),
            StepOperand::None | StepOperand::Constant(_) => (&edit.heads, edit.site),
        };
        for site in [edit.site, site] {
            if site.is_attention_pattern() {
                return Err(GenerateError::Pattern { site });
            }
        }
        for indices in [&edit.heads, heads, &edit.features] {
            check_indices(world, batch, indices)?;
        }
        match &edit.operand {
            StepOperand::None => Ok(()),
            StepOperand::Constant(values) => {
                let found = values.dims();
                let [rows, units, _] = found;
                match units == 1 && (rows == 1 || rows == batch) {
                    true => Ok(()),
                    false => Err(GenerateError::Operand {
                        world,
                        batch,
                        found,
                    }),
                }
            }
            StepOperand::Activation {
                world: source,
                units,
                ..
            } => {
                let lengths = plan.lengths_of(*source)?;
                let longest = lengths.iter().copied().max().unwrap_or(0);
                let positions = units.positions.count(longest);
                match positions == 1 && lengths.len() == batch {
                    true => Ok(()),
                    false => Err(GenerateError::SourceUnits {
                        world,
                        source_world: source.index(),
                        batch,
                        examples: lengths.len(),
                        positions,
                    }),
                }
            }
            StepOperand::World { world: source, .. } => {
                let is_generated = self.place.contains_key(source);
                match is_generated && plan.lengths_of(*source)?.len() == batch {
                    true => Ok(()),
                    false => Err(GenerateError::OperandWorld {
                        world,
                        found: source.index(),
                    }),
                }
            }
        }
    }

    /// Checks edits and reads of steps against the model: as plans with one token for each row, one
    /// for each step that an edit names, and one for all others.
    fn check_steps(&self, prompts: &Plan<B>) -> Result<(), GenerateError> {
        if let Some((site, _)) = self
            .options
            .collect
            .iter()
            .find(|it| it.0.is_attention_pattern())
        {
            return Err(GenerateError::Pattern { site: *site });
        }
        let batches = self.worlds.iter().map(|it| prompts.lengths_of(it.world));
        let batches = batches.collect::<Result<Vec<_>, _>>()?;
        for (world, lengths) in self.worlds.iter().zip(&batches) {
            for (_, heads) in &self.options.collect {
                check_indices(world.world.index(), lengths.len(), heads)?;
            }
        }
        // What the prompts give has its shape only.
        let is_given = |edit: &StepEdit<B>| matches!(edit.operand, StepOperand::Activation { .. });
        if self.worlds.iter().flat_map(|it| &it.edits).any(is_given) {
            prompts.check(self.model, self.interventions)?;
        }
        let worlds = self.worlds.iter();
        let worlds: Vec<GeneratedWorld<B>> = worlds
            .map(|it| it.with_constants(|_world, site, units| self.zeros_of(site, units)))
            .collect();
        let edits = worlds.iter().flat_map(|world| &world.edits);
        let mut steps: BTreeSet<Option<usize>> = edits.map(|edit| edit.step).collect();
        steps.insert(None);
        for step in steps {
            let mut plan = Plan::new();
            let token = TokenBatch::new(vec![vec![0]]).expect("one token is a batch");
            let input = plan.tokens(&token);
            let ids = plan.upcoming_worlds(batches.iter().map(Vec::len).sum());
            for (place, world) in worlds.iter().enumerate() {
                for example in 0..batches[place].len() {
                    let source = |place: usize| Some((ids[self.first_rows[place] + example], 0));
                    let is_made = |edit: &&StepEdit<B>| edit.step.is_none() || edit.step == step;
                    let edits = world.edits.iter().filter(is_made);
                    let edits =
                        edits.filter_map(|edit| self.edit(&mut plan, edit, example, 0, &source));
                    let edits: Vec<Edit> = edits.collect();
                    let id = plan.world(input, edits);
                    for (site, heads) in &self.options.collect {
                        plan.read(id, *site, units(0, heads, example));
                    }
                    plan.read_logits(id, LogitPositions::Last);
                }
            }
            plan.check(self.model, self.interventions)?;
        }
        Ok(())
    }

    /// Zeros of the shape of an activation at one position, `[1, 1, d_site]`.
    fn zeros_of(&self, site: Site, units: &Units) -> Tensor<B, 3> {
        let dims = self.model.layout().site(site);
        let width = dims.map_or(1, |dims| match dims.width {
            SiteWidth::Features(width) => units.heads.count(dims.heads) * width,
            SiteWidth::KeyPositions => 1,
        });
        Tensor::zeros([1, 1, width], &self.model.device())
    }
}

/// Checks that lists for each example are as many as the examples.
fn check_indices(world: usize, batch: usize, indices: &Indices) -> Result<(), GenerateError> {
    match indices {
        Indices::Each(each) if each.len() != batch => Err(GenerateError::Indices {
            world,
            batch,
            found: each.len(),
        }),
        _ => Ok(()),
    }
}
