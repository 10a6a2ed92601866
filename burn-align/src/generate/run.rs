//! The loop over steps.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::{GenerateError, GenerateOptions, GeneratedWorld, Sampler, StepEdit, StepOperand};
use crate::engine::{
    CachedRow, Edit, Indices, LogitPositions, Operand, Plan, ReadId, Results, Units, WorldId,
    read_numbers,
};
use crate::interventions::Intervention;

/// The texts of all rows: the worlds in the order in which they were given, each example by example.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GeneratedTexts<B: Backend> {
    /// The rows.
    pub rows: Vec<GeneratedRow<B>>,
}

/// The text of a row.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GeneratedRow<B: Backend> {
    /// The world.
    pub world: WorldId,
    /// The example of the world.
    pub example: usize,
    /// The new tokens, with the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// The logits from which each token was chosen, `[token, vocab]`, if they were to be kept.
    pub logits: Option<Tensor<B, 2>>,
    /// The activations to be collected, `[token, d_site]` each: at the positions of all new tokens but the
    /// last. `None` where there was no such token.
    pub collected: Vec<Option<Tensor<B, 2>>>,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// It has as many tokens as asked for.
    Length,
    /// A stop token.
    StopToken(u32),
    /// A stop text, which may be followed by the rest of the last token.
    StopText(String),
    /// The model reads no longer texts.
    ModelEnd,
}

/// A token that has just been chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Token<'a> {
    /// The row, in the order of [`GeneratedTexts::rows`].
    pub row: usize,
    /// Its number, counted from 0.
    pub step: usize,
    /// The token.
    pub token: u32,
    /// Why the row ends with it, if it does.
    pub finish: Option<&'a Finish>,
}

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
    /// Where it goes on.
    cached: CachedRow<B>,
    /// The logits of the next token, `[1, vocab]`.
    next: Tensor<B, 2>,
}

impl<B: Backend> Row<B> {
    fn new_tokens(&self) -> &[u32] {
        &self.history[self.prompt..self.prompt + self.count]
    }
}

/// Generates from the prompts of a plan, under its edits and those of the steps. All rows go through the
/// network together; each goes on from its cache, and leaves when it ends.
///
/// - plan: the prompts, as token ids. Other reads of it are not computed
/// - worlds: those to be continued
/// - on_token: gets each token as it is chosen, for showing text while it is generated
///
/// # Errors
/// If the plan, the edits or the options are wrong; nothing is computed then. Also if logits are not
/// finite, or the device fails.
pub fn generate<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    model: &M,
    interventions: &[I],
    plan: &Plan<B>,
    worlds: &[GeneratedWorld<B>],
    options: &GenerateOptions,
    mut on_token: impl FnMut(Token<'_>),
) -> Result<GeneratedTexts<B>, GenerateError> {
    let ids: Vec<WorldId> = worlds.iter().map(|world| world.world).collect();
    let generator = Generator {
        model,
        interventions,
        worlds,
        options,
        place: ids.iter().copied().zip(0..).collect(),
    };
    let mut prompts = plan.without_reads();
    let reads: Vec<ReadId> = ids
        .iter()
        .filter(|id| plan.has_world(**id))
        .map(|id| prompts.read_logits(*id, LogitPositions::Last))
        .collect();
    generator.check(&prompts)?;
    if options.max_new_tokens == 0 {
        let mut rows = Vec::new();
        for id in ids {
            let examples = 0..prompts.lengths_of(id)?.len();
            rows.extend(examples.map(|example| GeneratedRow {
                world: id,
                example,
                tokens: Vec::new(),
                finish: Finish::Length,
                logits: None,
                collected: vec![None; options.collect.len()],
            }));
        }
        return Ok(GeneratedTexts { rows });
    }
    let run = prompts.run_to_continue(model, interventions, &ids, &options.run);
    let (results, cached) = run?;
    let mut rows = generator.rows(&prompts, &reads, &results, cached)?;
    for step in 0.. {
        generator.choose(step, &mut rows, &mut on_token)?;
        let going = generator.going(&rows);
        if going.is_empty() {
            break;
        }
        generator.step(step, &mut rows, &going)?;
    }
    let rows = rows.into_iter().map(|row| {
        let join = |parts: Vec<Tensor<B, 2>>| (!parts.is_empty()).then(|| Tensor::cat(parts, 0));
        GeneratedRow {
            world: ids[row.world],
            example: row.example,
            tokens: row.new_tokens().to_vec(),
            finish: row.finish.clone().unwrap_or(Finish::Length),
            logits: join(row.logits),
            collected: row.collected.into_iter().map(join).collect(),
        }
    });
    Ok(GeneratedTexts {
        rows: rows.collect(),
    })
}

pub(super) struct Generator<'a, B: Backend, M, I> {
    pub(super) model: &'a M,
    pub(super) interventions: &'a [I],
    pub(super) worlds: &'a [GeneratedWorld<B>],
    pub(super) options: &'a GenerateOptions,
    /// The index of each world.
    pub(super) place: BTreeMap<WorldId, usize>,
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
            StepOperand::World { world, site, heads } => {
                let (world, position) = source(self.place[world])?;
                Operand::Activation {
                    world,
                    site: *site,
                    units: units(position, heads),
                }
            }
        };
        let features = match &edit.features {
            Indices::Each(each) => Indices::Same(each.get(example).cloned().unwrap_or_default()),
            other => other.clone(),
        };
        let edit = Edit::new(
            edit.site,
            units(position, &edit.heads),
            edit.intervention,
            operand,
        );
        Some(edit.with_features(features))
    }

    fn rows(
        &self,
        plan: &Plan<B>,
        reads: &[ReadId],
        results: &Results<B>,
        cached: Vec<Vec<CachedRow<B>>>,
    ) -> Result<Vec<Row<B>>, GenerateError> {
        let mut rows = Vec::new();
        for (place, (world, cached)) in self.worlds.iter().zip(cached).enumerate() {
            let logits = results.get(reads[place]); // [batch, 1, vocab]
            let prompts = plan.tokens_of(world.world);
            for (example, (cached, prompt)) in cached.into_iter().zip(prompts).enumerate() {
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
                    finish: None,
                    logits: Vec::new(),
                    collected: vec![Vec::new(); self.options.collect.len()],
                    cached,
                    next: logits.clone().narrow(0, example, 1).squeeze_dim::<2>(1),
                });
            }
        }
        Ok(rows)
    }

    /// Chooses the next token of each row that goes on.
    fn choose(
        &self,
        step: usize,
        rows: &mut [Row<B>],
        on_token: &mut impl FnMut(Token<'_>),
    ) -> Result<(), GenerateError> {
        let is_going = self.going(rows);
        for (index, row) in rows.iter_mut().enumerate() {
            let has_ended = row.finish.is_some();
            if has_ended && !is_going.contains(&index) {
                continue;
            }
            let logits: Vec<f32> = read_numbers(row.next.clone())?
                .into_iter()
                .map(|logit| logit as f32)
                .collect();
            let token = row.sampler.next(&logits, &row.history);
            let token = token.map_err(|cause| GenerateError::Sampling {
                row: Some(index),
                step,
                cause,
            })?;
            if has_ended {
                // Goes on only because others take from it.
                row.history.push(token);
                continue;
            }
            if self.options.keep_logits {
                row.logits.push(row.next.clone());
            }
            row.history.push(token);
            row.count += 1;
            row.finish = self.finish(row)?;
            on_token(Token {
                row: index,
                step,
                token,
                finish: row.finish.as_ref(),
            });
        }
        Ok(())
    }

    /// Why a row ends with its last token, if it does.
    fn finish(&self, row: &Row<B>) -> Result<Option<Finish>, GenerateError> {
        let new = row.new_tokens();
        let last = new.last().copied();
        if let Some(token) = last.filter(|token| self.options.stop_tokens.contains(token)) {
            return Ok(Some(Finish::StopToken(token)));
        }
        if let Some((tokenizer, texts)) = &self.options.stop_texts {
            // A text has no more tokens than bytes, and one that has just been completed has the last
            // token. The first token's text may depend on the one before.
            let longest = texts.iter().map(String::len).max().unwrap_or(0);
            let tail = &new[new.len().saturating_sub(longest + 1)..];
            let text = tokenizer.decode(tail).map_err(GenerateError::StopText)?;
            if let Some(found) = texts.iter().find(|stop| text.contains(*stop)) {
                return Ok(Some(Finish::StopText(found.clone())));
            }
        }
        if new.len() == self.options.max_new_tokens {
            return Ok(Some(Finish::Length));
        }
        let max_positions = self.model.dims().max_positions;
        let is_full = max_positions.is_some_and(|most| row.cached.pos() + 1 >= most);
        Ok(is_full.then_some(Finish::ModelEnd))
    }

    /// The rows that go on: those that have not ended, and those that they take from.
    fn going(&self, rows: &[Row<B>]) -> BTreeSet<usize> {
        let going = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.finish.is_none());
        let mut going: BTreeSet<usize> = going.map(|(index, _)| index).collect();
        let mut new: Vec<usize> = going.iter().copied().collect();
        while let Some(index) = new.pop() {
            let row = &rows[index];
            for edit in &self.worlds[row.world].edits {
                let StepOperand::World { world, .. } = &edit.operand else {
                    continue;
                };
                let place = self.place[world];
                let source = rows
                    .iter()
                    .position(|other| (other.world, other.example) == (place, row.example));
                if let Some(source) = source
                    && going.insert(source)
                {
                    new.push(source);
                }
            }
        }
        let most = self.model.dims().max_positions.unwrap_or(usize::MAX);
        going.retain(|index| rows[*index].cached.pos() < most);
        going
    }

    /// Computes the last token of some rows.
    fn step(
        &self,
        step: usize,
        rows: &mut [Row<B>],
        going: &BTreeSet<usize>,
    ) -> Result<(), GenerateError> {
        let mut plan = Plan::new();
        let ids = plan.upcoming_worlds(going.len());
        let id_of: BTreeMap<(usize, usize), (WorldId, usize)> = going
            .iter()
            .zip(&ids)
            .map(|(index, id)| {
                let row = &rows[*index];
                ((row.world, row.example), (*id, row.cached.pos()))
            })
            .collect();
        let mut reads: Vec<(ReadId, Vec<ReadId>)> = Vec::new();
        for index in going {
            let row = &rows[*index];
            let position = row.cached.pos();
            let token = row.history.last().copied().unwrap_or_default();
            let input = plan.input(row.cached.then([token]));
            let source = |place: usize| id_of.get(&(place, row.example)).copied();
            let edits = self.worlds[row.world].edits.iter();
            let edits = edits.filter(|edit| edit.is_made_at(step));
            let edits =
                edits.filter_map(|edit| self.edit(&mut plan, edit, row.example, position, &source));
            let edits: Vec<Edit> = edits.collect();
            let world = plan.world(input, edits);
            let collected = self.options.collect.iter();
            let collected =
                collected.map(|(site, heads)| plan.read(world, *site, units(position, heads)));
            let collected: Vec<ReadId> = collected.collect();
            reads.push((plan.read_logits(world, LogitPositions::Last), collected));
        }
        let run = plan.run_to_continue(self.model, self.interventions, &ids, &self.options.run);
        let (results, cached) = run?;
        for ((index, (logits, collected)), cached) in going.iter().zip(reads).zip(cached) {
            let row = &mut rows[*index];
            row.next = results.get(logits).squeeze_dim::<2>(0);
            row.cached = cached.into_iter().next().expect("a row has one example");
            if row.finish.is_none() {
                for (all, read) in row.collected.iter_mut().zip(collected) {
                    all.push(results.get(read).squeeze_dim::<2>(0));
                }
            }
        }
        Ok(())
    }
}

/// Some heads at one position.
pub(super) fn units(position: usize, heads: &Indices) -> Units {
    Units {
        heads: heads.clone(),
        ..Units::position(position)
    }
}
