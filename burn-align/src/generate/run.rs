//! The loop over steps.

mod ends;
mod non_finite;

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;
use burn_align_models::nn::ReusedMemory;

use super::explain::{budgets, prompts_of};
use super::{
    Finish, Flow, GenerateError, GenerateOptions, GeneratedRow, GeneratedTexts, GeneratedWorld,
    Sampler, StepEdit, StepOperand, Token,
};
use crate::engine::{
    CachedRow, Edit, Indices, LogitPositions, Operand, Plan, PlanError, ReadId, Results,
    RunOptions, Units, WorldId, read_floats,
};
use crate::interventions::Intervention;

/// A row on its way.
struct Row<B: Backend> {
    world: usize,
    example: usize,
    prompt: usize,
    /// Prompt and new tokens, and those after its end, if others take from it.
    history: Vec<u32>,
    /// Number of new tokens.
    count: usize,
    sampler: Sampler,
    finish: Option<Finish>,
    logits: Vec<Tensor<B, 2>>,
    collected: Vec<Vec<Tensor<B, 2>>>,
    /// Number of positions that have been computed.
    pos: usize,
    /// Where it goes on, if it does.
    cached: Option<CachedRow<B>>,
    /// Where it ended, if that is to be kept.
    kept: Option<CachedRow<B>>,
    /// The logits of the prompt, `[position, vocab]`, if they are to be kept.
    prompt_logits: Option<Tensor<B, 2>>,
    /// The logits of the next token, `[1, vocab]`.
    next: Tensor<B, 2>,
}

impl<B: Backend> Row<B> {
    fn new_tokens(&self) -> &[u32] {
        &self.history[self.prompt..self.prompt + self.count]
    }
}

/// Generates from the prompts of a plan, under its edits and those of the steps. All rows go
/// through the network together; each goes on from its cache, and leaves when it ends.
///
/// - plan: the prompts, as token ids or as rows to be continued. What it reads is computed as well
/// - worlds: those to be continued
/// - on_token: gets each token as it is chosen, for showing text while it is generated; it returns
///   nothing, or a [`Flow`] to end rows
///
/// # Errors
/// If the plan, the edits or the options are wrong, or the caches do not fit the memory budget;
/// nothing is computed then. Also if logits are not finite, or the device fails.
pub fn generate<B, M, I, F>(
    model: &M,
    interventions: &[I],
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
    mut on_token: impl FnMut(Token<'_>) -> F,
) -> Result<GeneratedTexts<B>, GenerateError>
where
    B: Backend,
    M: AlignableTransformer<B>,
    I: Intervention<B>,
    F: Into<Flow>,
{
    let _memory = ReusedMemory::in_pass();
    let ids: Vec<WorldId> = worlds.iter().map(|world| world.world).collect();
    let mut count = 0;
    let mut first_rows = Vec::new();
    for id in &ids {
        first_rows.push(count);
        count += plan.lengths_of(*id)?.len();
    }
    let generator = Generator {
        model,
        interventions,
        worlds,
        options,
        place: ids.iter().copied().zip(0..).collect(),
        first_rows,
    };
    let (prompts, reads) = prompts_of(plan, worlds, options);
    generator.check(&prompts)?;
    if options.max_new_tokens == 0 {
        let run = match options.keep_prompt_logits {
            true => &prompts,
            false => plan,
        };
        let results = run.run_with(model, interventions, &options.run)?;
        return Ok(nothing(plan, &ids, &reads.logits, options, results)?);
    }
    let budgets = budgets(model, &prompts, &ids, options)?;
    let run = prompts.run_to_continue(model, interventions, &ids, &budgets.prompts);
    let (results, cached) = run?;
    let mut operands = reads.operands.iter();
    let worlds = worlds.iter().map(|world| {
        world.with_constants(|_world, _site, _units| {
            let read = operands.next().expect("a read for each of them");
            results.get(*read)
        })
    });
    let worlds: Vec<GeneratedWorld<B>> = worlds.collect();
    let generator = Generator {
        worlds: &worlds,
        ..generator
    };
    let mut rows = generator.rows(&prompts, &reads.logits, &results, cached)?;
    let going = (0..rows.len()).filter(|row| rows[*row].finish.is_none());
    let mut going: BTreeSet<usize> = going.collect();
    for step in 0.. {
        let chosen = generator.choose(step, &mut rows, &going, &mut on_token);
        chosen.map_err(|error| generator.with_place(error, step, &rows, &going))?;
        going = generator.going(&mut rows);
        if going.is_empty() {
            break;
        }
        generator.step(step, &mut rows, &going, &budgets.steps)?;
    }
    let rows = rows.into_iter().map(|row| {
        let join = |parts: Vec<Tensor<B, 2>>| (!parts.is_empty()).then(|| Tensor::cat(parts, 0));
        GeneratedRow {
            world: ids[row.world],
            example: row.example,
            tokens: row.new_tokens().to_vec(),
            finish: row.finish.clone().unwrap_or(Finish::Length),
            logits: join(row.logits),
            prompt_logits: row.prompt_logits,
            collected: row.collected.into_iter().map(join).collect(),
            cached: row.kept,
        }
    });
    Ok(GeneratedTexts {
        rows: rows.collect(),
        prompts: results,
    })
}

/// Rows without tokens.
fn nothing<B: Backend>(
    plan: &Plan<B>,
    ids: &[WorldId],
    logits: &[ReadId],
    options: &GenerateOptions,
    prompts: Results<B>,
) -> Result<GeneratedTexts<B>, PlanError> {
    let mut rows = Vec::new();
    for (id, logits) in ids.iter().zip(logits) {
        let of_world = options.keep_prompt_logits.then(|| prompts.get(*logits));
        let examples = plan.lengths_of(*id)?.into_iter().enumerate();
        rows.extend(examples.map(|(example, length)| GeneratedRow {
            world: *id,
            example,
            tokens: Vec::new(),
            finish: Finish::Length,
            logits: None,
            prompt_logits: of_world.as_ref().map(|it| logits_of(it, example, length)),
            collected: vec![None; options.collect.len()],
            cached: None,
        }));
    }
    Ok(GeneratedTexts { rows, prompts })
}

pub(super) struct Generator<'a, B: Backend, M, I> {
    pub(super) model: &'a M,
    pub(super) interventions: &'a [I],
    pub(super) worlds: &'a [GeneratedWorld<B>],
    pub(super) options: &'a GenerateOptions,
    /// The index of each world.
    pub(super) place: BTreeMap<WorldId, usize>,
    /// The first row of each world.
    pub(super) first_rows: Vec<usize>,
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Generator<'_, B, M, I> {
    /// An edit of a row at a position, if its operand is there.
    ///
    /// - source: gives the world and the position of the same example of another generated world
    pub(super) fn edit(
        &self,
        plan: &mut Plan<B>,
        edit: &StepEdit<B>,
        example: usize,
        position: usize,
        source: &dyn Fn(usize) -> Option<(WorldId, usize)>,
    ) -> Option<Edit> {
        let operand = match &edit.operand {
            StepOperand::None => Operand::None,
            StepOperand::Constant(values) => {
                let [rows, _, _] = values.dims();
                let values = values.clone();
                let own = match rows {
                    1 => values,
                    _ => values.narrow(0, example, 1),
                };
                Operand::Constant(plan.constant(own))
            }
            // Taken when the prompts have run.
            StepOperand::Activation { .. } => return None,
            StepOperand::World { world, site, heads } => {
                let (world, position) = source(self.place[world])?;
                Operand::Activation {
                    world,
                    site: *site,
                    units: units(position, heads, example),
                }
            }
        };
        let units = units(position, &edit.heads, example);
        let edit = Edit::new(edit.site, units, edit.intervention, operand)
            .with_features(of_example(&edit.features, example));
        Some(edit)
    }

    fn rows(
        &self,
        plan: &Plan<B>,
        reads: &[ReadId],
        results: &Results<B>,
        cached: Vec<Vec<CachedRow<B>>>,
    ) -> Result<Vec<Row<B>>, GenerateError> {
        let most = self.model.dims().max_positions.unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for (place, (world, cached)) in self.worlds.iter().zip(cached).enumerate() {
            let logits = results.get(reads[place]); // [batch, unit, vocab]
            for (example, cached) in cached.into_iter().enumerate() {
                let prompt = plan.tokens_of_example(world.world, example);
                let logits = logits_of(&logits, example, cached.pos());
                let [units, _vocab] = logits.dims();
                let stream = world.streams.get(example).copied().unwrap_or(0);
                let sampler = Sampler::new(&self.options.sampling, stream);
                let sampler = sampler.map_err(|cause| GenerateError::Sampling {
                    row: None,
                    step: 0,
                    cause,
                })?;
                rows.push(Row {
                    world: place,
                    example,
                    prompt: prompt.len(),
                    count: 0,
                    history: prompt,
                    sampler,
                    // A prompt that fills the model.
                    finish: (cached.pos() >= most).then_some(Finish::ModelEnd),
                    logits: Vec::new(),
                    collected: vec![Vec::new(); self.options.collect.len()],
                    pos: cached.pos(),
                    cached: Some(cached),
                    kept: None,
                    next: logits.clone().narrow(0, units - 1, 1),
                    prompt_logits: self.options.keep_prompt_logits.then_some(logits),
                });
            }
        }
        Ok(rows)
    }

    /// Chooses the next token of each row that goes on, unless the caller ends all rows.
    fn choose<F: Into<Flow>>(
        &self,
        step: usize,
        rows: &mut [Row<B>],
        going: &BTreeSet<usize>,
        on_token: &mut impl FnMut(Token<'_>) -> F,
    ) -> Result<(), GenerateError> {
        if going.is_empty() {
            return Ok(());
        }
        // Read at once, so that the device is waited for once.
        let next = going.iter().map(|index| rows[*index].next.clone());
        let next: Tensor<B, 2> = Tensor::cat(next.collect(), 0);
        let [_row, vocab] = next.dims();
        let logits = read_floats(next)?;
        for (index, logits) in going.iter().zip(logits.chunks(vocab)) {
            let row = &mut rows[*index];
            let token = row.sampler.next(logits, &row.history);
            let token = token.map_err(|cause| GenerateError::Sampling {
                row: Some(*index),
                step,
                cause,
            })?;
            row.history.push(token);
            if row.finish.is_some() {
                // It goes on only because others take from it.
                continue;
            }
            if self.options.keep_logits {
                row.logits.push(row.next.clone());
            }
            row.count += 1;
            row.finish = self.finish(row)?;
            let flow = on_token(Token {
                row: *index,
                step,
                token,
                finish: row.finish.as_ref(),
            });
            match flow.into() {
                Flow::Continue => {}
                Flow::EndRow => row.finish = row.finish.take().or(Some(Finish::Stopped)),
                Flow::EndAll => {
                    for row in rows.iter_mut() {
                        row.finish = row.finish.take().or(Some(Finish::Stopped));
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Computes the last token of some rows.
    fn step(
        &self,
        step: usize,
        rows: &mut [Row<B>],
        going: &BTreeSet<usize>,
        options: &RunOptions,
    ) -> Result<(), GenerateError> {
        let pasts = going.iter().map(|index| rows[*index].cached.clone());
        let pasts: Option<Vec<CachedRow<B>>> = pasts.collect();
        let pasts = pasts.expect("rows that go on have a cache");
        let StepPlan {
            plan,
            worlds,
            reads,
        } = self.plan_of_step(step, rows, going, &pasts);
        let run = plan.run_to_continue(self.model, self.interventions, &worlds, options);
        let (results, cached) = run?;
        for ((index, (logits, collected)), cached) in going.iter().zip(reads).zip(cached) {
            let row = &mut rows[*index];
            row.next = results.get(logits).squeeze_dim::<2>(0);
            row.pos += 1;
            row.cached = cached.into_iter().next();
            if row.finish.is_none() {
                for (all, read) in row.collected.iter_mut().zip(collected) {
                    all.push(results.get(read).squeeze_dim::<2>(0));
                }
            }
        }
        Ok(())
    }

    /// The plan that computes the token of a step, a world for each row that goes on.
    ///
    /// - pasts: what is cached of each of them before the token
    fn plan_of_step(
        &self,
        step: usize,
        rows: &[Row<B>],
        going: &BTreeSet<usize>,
        pasts: &[CachedRow<B>],
    ) -> StepPlan<B> {
        let mut plan = Plan::new();
        let ids = plan.upcoming_worlds(going.len());
        let id_of: BTreeMap<(usize, usize), (WorldId, usize)> = going
            .iter()
            .zip(ids.iter().zip(pasts))
            .map(|(index, (id, past))| {
                let row = &rows[*index];
                ((row.world, row.example), (*id, past.pos()))
            })
            .collect();
        let mut reads: Vec<(ReadId, Vec<ReadId>)> = Vec::new();
        for (index, past) in going.iter().zip(pasts) {
            let row = &rows[*index];
            let position = past.pos();
            let token = row.history.get(row.prompt + step);
            let input = plan.input(past.then([token.copied().unwrap_or_default()]));
            let source = |place: usize| id_of.get(&(place, row.example)).copied();
            let edits = self.worlds[row.world].edits.iter();
            let edits = edits.filter(|edit| edit.is_made_at(step));
            let edits =
                edits.filter_map(|edit| self.edit(&mut plan, edit, row.example, position, &source));
            let edits: Vec<Edit> = edits.collect();
            let world = plan.world(input, edits);
            let collected = self.options.collect.iter();
            let collected = collected
                .map(|(site, heads)| plan.read(world, *site, units(position, heads, row.example)));
            let collected: Vec<ReadId> = collected.collect();
            reads.push((plan.read_logits(world, LogitPositions::Last), collected));
        }
        StepPlan {
            plan,
            worlds: ids,
            reads,
        }
    }
}

/// The plan of a step.
struct StepPlan<B: Backend> {
    plan: Plan<B>,
    /// One for each row.
    worlds: Vec<WorldId>,
    /// For each row, its logits and what is collected.
    reads: Vec<(ReadId, Vec<ReadId>)>,
}

/// The logits that are read of an example, `[unit, vocab]`, without those at padding.
///
/// - logits: of all examples, `[batch, unit, vocab]`
/// - length: number of positions of the example
fn logits_of<B: Backend>(logits: &Tensor<B, 3>, example: usize, length: usize) -> Tensor<B, 2> {
    let [_batch, units, _vocab] = logits.dims();
    let own = logits.clone().narrow(0, example, 1);
    own.narrow(1, 0, units.min(length)).squeeze_dim::<2>(0)
}

/// Some heads of an example at one position.
pub(super) fn units(position: usize, heads: &Indices, example: usize) -> Units {
    Units {
        heads: of_example(heads, example),
        ..Units::position(position)
    }
}

/// The indices of an example, which becomes an input of its own.
fn of_example(indices: &Indices, example: usize) -> Indices {
    match indices {
        Indices::Each(each) => Indices::Same(each.get(example).cloned().unwrap_or_default()),
        other => other.clone(),
    }
}
