//! The lockstep executor.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, ModelInput, NoTap, Site, Tap};

use super::cells::{Cells, gather};
use super::chunks::{OperandKey, chunks};
use super::layout::{Layout, int_tensor};
use super::lockstep_tap::LockstepTap;
use super::marks::Mark;
use super::plan::{InputId, LogitPositions, Plan, Read, ReadId, WorldInput};
use super::schedule::{Pass, Schedule, StageGroups};
use super::stages::{Part, Stage};
use super::validate::validate;
use super::{PlanError, Units};
use crate::interventions::Intervention;

/// The values of a plan's reads.
#[derive(Clone, Debug)]
pub struct Results<B: Backend> {
    pub(super) values: Vec<Tensor<B, 3>>,
    /// The marks of the reads.
    pub(super) marks: Vec<Mark>,
}

impl<B: Backend> Results<B> {
    /// The value of a read.
    ///
    /// # Shapes
    /// - an activation: `[batch, unit, d_site]`
    /// - logits: `[batch, unit, vocab]`, with a unit for each position asked for
    ///
    /// # Panics
    /// If the read belongs to another plan.
    pub fn get(&self, read: ReadId) -> Tensor<B, 3> {
        let ReadId(index, mark) = read;
        assert!(
            self.marks.get(index) == Some(&mark),
            "read {index} belongs to a different plan than these results: use the ids given by \
             this plan"
        );
        self.values[index].clone()
    }

    /// The values of all reads, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor<B, 3>> {
        self.values.iter()
    }
}

/// How to run a plan.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// Maximum number of rows (examples of worlds) that go through a layer together. A plan with
    /// more is split into parts, which still share their sources. Default: no limit.
    pub max_rows: Option<usize>,
    /// Bytes available for activations at a time, as estimated by [`explain`](Plan::explain)
    /// ([`Explanation::peak_bytes`](super::Explanation::peak_bytes)): without the model's weights,
    /// and without activations kept for gradients. A plan that needs more is split into parts as
    /// with [`max_rows`](Self::max_rows). Default: no limit.
    pub memory_budget: Option<u64>,
}

impl RunOptions {
    /// At most this many rows at a time.
    pub fn with_max_rows(mut self, max_rows: usize) -> Self {
        self.max_rows = Some(max_rows);
        self
    }

    /// At most this many bytes of activations at a time.
    pub fn with_memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = Some(bytes);
        self
    }
}

impl<B: Backend> Plan<B> {
    /// Runs all worlds in lockstep.
    ///
    /// # Errors
    /// If the plan does not fit the model or the interventions; nothing is computed then. Also if
    /// the model turns out not to tap a site that it declares.
    pub fn run<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
    ) -> Result<Results<B>, PlanError> {
        self.run_with(model, interventions, &RunOptions::default())
    }

    /// Runs all worlds in lockstep, within budgets. These change no result.
    ///
    /// # Errors
    /// As [`run`](Self::run), or if a budget is too small for a single world.
    pub fn run_with<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        options: &RunOptions,
    ) -> Result<Results<B>, PlanError> {
        let whole = validate(self, model, interventions)?;
        let parts = chunks(self, &whole, model, options)?;
        let mut run = Run {
            plan: self,
            whole: &whole,
            in_parts: parts.len() > 1,
            schedule: &whole,
            interventions,
            device: model.device(),
            kept: HashMap::new(),
            values: self.known.clone(),
        };
        for part in &parts {
            run.schedule = part;
            for (index, pass) in part.passes.iter().enumerate() {
                run.pass(index, pass, model)?;
            }
        }
        let values = run.values.into_iter();
        Ok(Results {
            values: values
                .map(|value| value.expect("every read is reached"))
                .collect(),
            marks: self.marks.reads.clone(),
        })
    }
}

/// Activations of worlds that edits elsewhere will use.
type Kept<B> = HashMap<OperandKey, Tensor<B, 3>>;

/// A plan being run.
pub(super) struct Run<'a, B: Backend, I> {
    pub(super) plan: &'a Plan<B>,
    /// Everything that the plan runs, in one part or several.
    pub(super) whole: &'a Schedule,
    /// Whether there are several parts.
    pub(super) in_parts: bool,
    /// The part being run.
    pub(super) schedule: &'a Schedule,
    pub(super) interventions: &'a [I],
    device: B::Device,
    pub(super) kept: Kept<B>,
    pub(super) values: Vec<Option<Tensor<B, 3>>>,
}

impl<'p, B: Backend, I: Intervention<B>> Run<'p, B, I> {
    fn pass<M: AlignableTransformer<B>>(
        &mut self,
        index: usize,
        pass: &'p Pass,
        model: &M,
    ) -> Result<(), PlanError> {
        let Some(first) = pass.stages.first() else {
            return Ok(());
        };
        let pos = first.layout.pos;
        let shared = model.begin(pos, &self.device);
        // The layout of the last block that ran on suffixes, and what belongs to it.
        let mut suffixes: Option<(&StageGroups, M::Pass)> = None;
        let (halves, dims) = (model.halves(), model.dims());
        let mut x = None;
        // The block's input, in blocks whose MLP reads it.
        let mut block_input: Option<Tensor<B, 3>> = None;
        // What half a block has computed, before it is added to the residual stream.
        let mut added: Option<Tensor<B, 3>> = None;
        let mut normed = false;
        let mut before: Option<&StageGroups> = None;
        for current in &pass.stages {
            let forked = match (x.take(), before) {
                (Some(x), Some(before)) => {
                    added = added.map(|added| fork(added, before.given(), current));
                    block_input = block_input.map(|input| fork(input, before.given(), current));
                    Some(fork(x, before.given(), current))
                }
                _ if current.stage != Stage::Embed => {
                    let residuals = stack_residuals(self.plan, current, pos);
                    let whole = Layout::whole(self.plan, &current.groups, pos);
                    let in_place: Vec<usize> = (0..current.groups.len()).collect();
                    Some(rearrange(residuals, &whole, &current.layout, &in_place))
                }
                _ => None,
            };
            before = Some(current);
            let mut tap = LockstepTap::new(self, index, current);
            let (stage, Some(stream)) = (current.stage, forked) else {
                let input = stack(tap.run.plan, current, pos, &tap.run.device);
                x = Some(model.embed(input, &mut tap));
                tap.finish()?;
                continue;
            };
            if let Stage::Layer(_, Part::Block | Part::Attention) = stage
                && suffixes.as_ref().is_none_or(|(other, _)| {
                    (&other.layout, &other.queries) != (&current.layout, &current.queries)
                })
            {
                let queries = current.queries.as_ref();
                let new = (current.layout).suffixes(queries, tap.run.plan, &tap.run.device);
                suffixes = new.map(|new| {
                    let runs = model.suffixes().expect("the layout is of a model that can");
                    (current, runs.begin_suffixes(&shared, new))
                });
            }
            let shared = suffixes.as_ref().map_or(&shared, |(_, shared)| shared);
            x = Some(match stage {
                Stage::Embed => unreachable!("nothing comes before the embedding"),
                Stage::Layer(layer, Part::Block) => model.block(layer, stream, shared, &mut tap),
                Stage::Layer(layer, part) => {
                    let at = |component| Site::Block(layer, component);
                    let tap: &mut dyn Tap<B> = &mut tap;
                    match part {
                        Part::Block | Part::Queries => unreachable!("no stage of halves"),
                        Part::Attention => {
                            let stream = tap.stream(at(Component::BlockInput), stream);
                            let halves = halves.expect("the stages are those of halves");
                            added = Some(halves.attention(layer, stream.clone(), shared, tap));
                            let in_place: Vec<usize> = (0..current.groups.len()).collect();
                            let stream =
                                rearrange(stream, &current.layout, current.given(), &in_place);
                            block_input = dims.parallel.then(|| stream.clone());
                            stream
                        }
                        Part::AttentionOutput => {
                            add(stream, &mut added, at(dims.added_by_attention()), tap)
                        }
                        Part::ResidualMid => tap.stream(at(Component::ResidualMid), stream),
                        Part::Mlp => {
                            let halves = halves.expect("the stages are those of halves");
                            let read = block_input.take().unwrap_or_else(|| stream.clone());
                            added = Some(halves.mlp(layer, read, tap));
                            stream
                        }
                        Part::MlpOutput => add(stream, &mut added, at(dims.added_by_mlp()), tap),
                        Part::BlockOutput => tap.stream(at(Component::BlockOutput), stream),
                    }
                }
                // Only logits remain to be read: only their positions are normalised.
                Stage::FinalNorm if tap.is_idle() => stream,
                Stage::FinalNorm => {
                    normed = true;
                    model.final_norm(stream, &mut tap)
                }
                Stage::Unembed => {
                    self.unembed(stream, normed, current, model);
                    return Ok(());
                }
            });
            tap.finish()?;
        }
        Ok(())
    }

    /// Computes the logits that are read, at their positions only.
    fn unembed<M: AlignableTransformer<B>>(
        &mut self,
        x: Tensor<B, 3>,
        normed: bool,
        current: &StageGroups,
        model: &M,
    ) {
        let [rows, pos, d_model] = x.dims();
        let mut cells = Cells::default();
        let mut wanted = Vec::new();
        for (number, group) in current.groups.iter().enumerate() {
            let start = current.layout.first_row(number);
            for (index, read) in self.plan.reads.iter().enumerate() {
                let Read::Logits { world, positions } = read else {
                    continue;
                };
                if !group.worlds.contains(world) || self.values[index].is_some() {
                    continue;
                }
                let input = self.plan.input_of(*world);
                let units = logit_units(positions, input);
                let unit_count = units.positions.count(input.pos());
                let sizes = [input.pos(), 1];
                let place = |example: usize, _head: usize, position: usize| {
                    current.layout.token(start + example, position)
                };
                cells.append(Cells::of_units(&units, input.batch(), sizes, place));
                wanted.push((index, [input.batch(), unit_count]));
            }
        }
        let x = gather(&x.reshape([rows, 1, pos, d_model]), &cells); // [cell, d_model]
        let x = x.unsqueeze_dim::<3>(0); // [1, cell, d_model]
        let x = match normed {
            true => x,
            false => model.final_norm(x, &mut NoTap),
        };
        let logits = model.unembed(x).squeeze_dim::<2>(0); // [cell, vocab]
        let [all, vocab] = logits.dims();
        let mut start: usize = 0;
        for (index, [batch, units]) in wanted {
            let count = batch * units;
            // Slicing a tensor of the right shape gives a view; slicing while reshaping would copy.
            let divides = all.is_multiple_of(units) && start.is_multiple_of(units);
            let logits = logits.clone();
            self.values[index] = Some(match divides {
                true => logits
                    .reshape([all / units, units, vocab])
                    .narrow(0, start / units, batch),
                false => logits
                    .narrow(0, start, count)
                    .reshape([batch, units, vocab]),
            });
            start += count;
        }
    }
}

/// Makes the rows of the next stage's groups, as copies of their parents' rows.
fn fork<B: Backend>(x: Tensor<B, 3>, before: &Layout, next: &StageGroups) -> Tensor<B, 3> {
    let parents: Vec<usize> = next.groups.iter().map(|group| group.parent).collect();
    rearrange(x, before, &next.layout, &parents)
}

/// Adds what half a block has computed to the residual stream.
fn add<B: Backend>(
    stream: Tensor<B, 3>,
    added: &mut Option<Tensor<B, 3>>,
    site: Site,
    tap: &mut dyn Tap<B>,
) -> Tensor<B, 3> {
    let added = added.take().expect("the half comes before its output");
    stream + tap.stream(site, added)
}

/// The positions of a logit read, as units.
pub(super) fn logit_units<B: Backend>(positions: &LogitPositions, input: &WorldInput<B>) -> Units {
    Units::positions(match positions {
        LogitPositions::All => super::Indices::All,
        LogitPositions::Last => {
            let last = input.lengths().into_iter().map(|length| vec![length - 1]);
            super::Indices::Each(last.collect())
        }
        LogitPositions::Each(examples) => super::Indices::Each(examples.clone()),
    })
}

/// The residual stream of the next stage.
///
/// - `parents`: which group of the stage before each group of the next one continues
fn rearrange<B: Backend>(
    x: Tensor<B, 3>,
    before: &Layout,
    next: &Layout,
    parents: &[usize],
) -> Tensor<B, 3> {
    let device = x.device();
    let [rows, pos, d_model] = x.dims();
    let is_in_place = |indices: &[usize], count: usize| {
        indices.len() == count && indices.iter().zip(0..).all(|(a, b)| *a == b)
    };
    let rows_before = next.rows_before(before, parents);
    if before.is_whole() && next.is_whole() {
        return match is_in_place(&rows_before, rows) {
            true => x,
            false => x.select(0, int_tensor(rows_before.into_iter(), &device)),
        };
    }
    let tokens = next.tokens_in(before, &rows_before);
    let x = x.reshape([rows * pos, d_model]);
    let x = match is_in_place(&tokens, rows * pos) {
        true => x,
        false => x.select(0, int_tensor(tokens.into_iter(), &device)),
    };
    let [rows, pos] = next.shape();
    x.reshape([rows, pos, d_model])
}

/// The stacked inputs of all groups, padded on the right.
fn stack<B: Backend>(
    plan: &Plan<B>,
    stage: &StageGroups,
    pos: usize,
    device: &B::Device,
) -> ModelInput<B> {
    let inputs: Vec<InputId> = stage
        .groups
        .iter()
        .map(|group| plan.worlds[group.worlds[0].0].input)
        .collect();
    stack_inputs(
        inputs.iter().map(|input| &plan.inputs[input.0]),
        pos,
        device,
    )
}

/// The stacked residuals that all groups start from, padded on the right.
fn stack_residuals<B: Backend>(plan: &Plan<B>, stage: &StageGroups, pos: usize) -> Tensor<B, 3> {
    let residuals = stage
        .groups
        .iter()
        .map(|group| match plan.input_of(group.worlds[0]) {
            WorldInput::Resumed(resumed) => padded(&resumed.x, pos),
            _ => unreachable!("checked when the plan was validated"),
        });
    Tensor::cat(residuals.collect(), 0)
}

/// Appends zeros, up to `pos` positions.
fn padded<B: Backend>(x: &Tensor<B, 3>, pos: usize) -> Tensor<B, 3> {
    let [batch, own_pos, width] = x.dims();
    if own_pos == pos {
        return x.clone();
    }
    let padding = Tensor::zeros([batch, pos - own_pos, width], (&x.device(), x.dtype()));
    Tensor::cat(vec![x.clone(), padding], 1)
}

/// Stacked inputs, padded on the right to `pos` positions.
pub(super) fn stack_inputs<'a, B: Backend>(
    inputs: impl Iterator<Item = &'a WorldInput<B>>,
    pos: usize,
    device: &B::Device,
) -> ModelInput<B> {
    let mut tokens: Vec<i64> = Vec::new();
    let mut features: Vec<Tensor<B, 3>> = Vec::new();
    for input in inputs {
        match input {
            WorldInput::Tokens(batch) => {
                for ids in batch.ids() {
                    tokens.extend(ids.iter().map(|id| i64::from(*id)));
                    tokens.extend(std::iter::repeat_n(0, pos - ids.len()));
                }
            }
            WorldInput::Features(x) => features.push(padded(x, pos)),
            WorldInput::Resumed(_) => unreachable!("a resumed run has its residuals"),
        }
    }
    if features.is_empty() {
        let rows = tokens.len() / pos;
        ModelInput::Tokens(Tensor::from_data(
            TensorData::new(tokens, [rows, pos]),
            device,
        ))
    } else {
        ModelInput::Features(Tensor::cat(features, 0))
    }
}
