//! What is checked before anything is computed.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, TokenBatch};

use super::run::{Generator, units};
use super::{AtLimit, GenerateError, StepEdit, StepOperand};
use crate::engine::{Edit, LogitPositions, Plan};
use crate::interventions::Intervention;

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Generator<'_, B, M, I> {
    /// Checks everything that can be wrong before the prompts run, except for the prompts' own plan.
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
                    && prompt + options.max_new_tokens > max_positions
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

    /// Checks edits and reads of steps against the model: as a plan with one token for each row.
    fn check_steps(&self, prompts: &Plan<B>) -> Result<(), GenerateError> {
        let mut plan = Plan::new();
        let token = TokenBatch::new(vec![vec![0]]).expect("one token is a batch");
        let input = plan.tokens(&token);
        let mut firsts = Vec::new();
        let mut count = 0;
        for world in self.worlds {
            firsts.push(count);
            count += prompts.lengths_of(world.world)?.len();
        }
        let ids = plan.upcoming_worlds(count);
        for (place, world) in self.worlds.iter().enumerate() {
            let end = firsts.get(place + 1).copied().unwrap_or(count);
            for example in 0..end - firsts[place] {
                let source = |place: usize| Some((ids[firsts[place] + example], 0));
                let edits = world.edits.iter();
                let edits =
                    edits.filter_map(|edit| self.edit(&mut plan, edit, example, 0, &source));
                let edits: Vec<Edit> = edits.collect();
                let id = plan.world(input, edits);
                for (site, heads) in &self.options.collect {
                    plan.read(id, *site, units(0, heads));
                }
                plan.read_logits(id, LogitPositions::Last);
            }
        }
        Ok(plan.check(self.model, self.interventions)?)
    }
}
