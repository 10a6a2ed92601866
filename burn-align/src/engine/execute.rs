//! The lockstep executor.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align_models::nn::add_to_stream;
use burn_align_models::{
    AlignableTransformer, Cx, Mixing, ModelInput, Pass as ModelPass, Reads, Site, SublayerOutput,
    Tables, Tap,
};

use super::PlanError;
use super::cache::{CachedRow, CachedRows, keep};
use super::cells::{Cells, gather};
use super::chunks::chunks;
use super::hash::QuickMap;
use super::layout::{Layout, int_tensor};
use super::lockstep_tap::LockstepTap;
use super::marks::Mark;
use super::options::RunOptions;
use super::origin::Origin;
use super::plan::{OperandKey, Plan, Read, ReadId, WorldId, WorldInput};
use super::schedule::{Pass, Schedule, StageGroups};
use super::stages::{Stage, Step};
use super::validate::{check_continuable, validate_reusing};
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
        let (results, _rows) = self.run_keeping(model, interventions, &[], options)?;
        Ok(results)
    }

    /// Runs all worlds in lockstep, and keeps the keys and values of some, so that they can be
    /// continued with more tokens. They are not part of the memory budget, and live as long as the
    /// rows. Each of these worlds must have logits read. Gives the results, and for each of these
    /// worlds a row for each example, in order.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with), or if a sublayer of the model needs whole rows, its inputs
    /// are vectors, or a world to be continued has no logits read.
    pub fn run_to_continue<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        worlds: &[WorldId],
        options: &RunOptions,
    ) -> Result<(Results<B>, CachedRows<B>), PlanError> {
        check_continuable(self, model.layout(), worlds)?;
        let distinct: BTreeSet<WorldId> = worlds.iter().copied().collect();
        let distinct: Vec<WorldId> = distinct.into_iter().collect();
        let (results, rows) = self.run_keeping(model, interventions, &distinct, options)?;
        let rows: HashMap<(WorldId, usize), CachedRow<B>> = rows
            .into_iter()
            .map(|(world, example, row)| ((world, example), row))
            .collect();
        let of_world = worlds.iter().map(|world| {
            let examples = 0..self.input_of(*world).batch();
            let rows = examples.filter_map(|example| rows.get(&(*world, example)).cloned());
            rows.collect()
        });
        Ok((results, of_world.collect()))
    }

    fn run_keeping<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        keeping: &[WorldId],
        options: &RunOptions,
    ) -> Result<(Results<B>, KeptRows<B>), PlanError> {
        let schedules = Some(&options.schedules);
        let whole = validate_reusing(self, model, interventions, schedules)?;
        let parts = chunks(self, &whole, model, options)?;
        let mut run = Run {
            plan: self,
            whole: &whole,
            in_parts: parts.len() > 1,
            schedule: &whole,
            interventions,
            device: model.device(),
            tables: options.tables.clone(),
            kept: QuickMap::default(),
            values: self.known.clone(),
            keeping,
            rows: Vec::new(),
        };
        for part in &parts {
            run.schedule = part;
            for (index, pass) in part.passes.iter().enumerate() {
                run.pass(index, pass, model)?;
            }
        }
        let values = run.values.into_iter();
        let results = Results {
            values: values
                .map(|value| value.expect("every read is reached"))
                .collect(),
            marks: self.marks.reads.clone(),
        };
        Ok((results, run.rows))
    }
}

/// Rows of worlds that can be continued, with the world and the example.
type KeptRows<B> = Vec<(WorldId, usize, CachedRow<B>)>;

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
    pub(super) tables: Tables,
    /// Activations of worlds that edits elsewhere will use.
    pub(super) kept: QuickMap<OperandKey<'a>, Tensor<B, 3>>,
    pub(super) values: Vec<Option<Tensor<B, 3>>>,
    /// Worlds whose keys and values are kept.
    keeping: &'a [WorldId],
    /// Their rows, once they have run.
    rows: KeptRows<B>,
}

/// What flows from one stage of a pass to the next.
struct Streams<B: Backend> {
    /// The residual stream.
    x: Tensor<B, 3>,
    /// The stream that entered the layer, while a sublayer will read it.
    input: Option<Tensor<B, 3>>,
    /// What a sublayer has computed, before it is added to the stream.
    added: Option<Tensor<B, 3>>,
    /// Whether the stream has been normalised.
    normed: bool,
}

impl<B: Backend> Streams<B> {
    fn new(x: Tensor<B, 3>) -> Self {
        Self {
            x,
            input: None,
            added: None,
            normed: false,
        }
    }

    fn map(self, f: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            x: f(self.x),
            input: self.input.map(&f),
            added: self.added.map(&f),
            normed: self.normed,
        }
    }
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
        let tables = self.tables.clone();
        let whole = ModelPass::new(pos, &self.device, &tables);
        let whole = match self.keeping.is_empty() {
            true => whole,
            false => whole.keeping_keys_values(),
        };
        // The layout of the last sublayer that mixed positions of suffixes, and what belongs to it.
        let mut suffixes: Option<(&StageGroups, ModelPass<B>)> = None;
        let mut streams = match first.stage {
            Stage::Embed => {
                let new = (first.layout).suffixes(None, self.plan, (&tables, &self.device));
                suffixes = new.map(|new| (first, whole.with_suffixes(new)));
                match &suffixes {
                    Some((_, new)) => Streams::new(model.embed(self.new_tokens(first), new)),
                    None => {
                        let input = stack(self.plan, first, pos, &self.device);
                        Streams::new(model.embed(input, &whole))
                    }
                }
            }
            _ => {
                let residuals = stack_residuals(self.plan, first, pos);
                let rows = Layout::whole(&self.schedule.sizes, &first.groups, pos);
                let parents = in_place(first);
                let x = rearrange(residuals, &rows, &first.layout, &parents, &tables);
                Streams::new(x)
            }
        };
        let mut before: Option<&StageGroups> = None;
        for current in &pass.stages {
            if let Some(before) = before
                && !(current.parents.is_none() && Arc::ptr_eq(before.given(), &current.layout))
            {
                streams = streams.map(|x| fork(x, before.given(), current, &tables));
            }
            before = Some(current);
            let stages = &self.schedule.stages;
            if stages.mixing(current.stage) != Mixing::None
                && current.stage != Stage::Embed
                && suffixes.as_ref().is_none_or(|(other, _)| {
                    (&other.layout, &other.queries) != (&current.layout, &current.queries)
                })
            {
                let queries = current.queries.as_deref();
                let new = (current.layout).suffixes(queries, self.plan, (&tables, &self.device));
                suffixes = new.map(|new| (current, whole.with_suffixes(new)));
            }
            let given = suffixes.as_ref().map_or(&whole, |(_, pass)| pass);
            let needs_input = stages.needs_layer_input(current.stage);
            let reads = stages.reads(current.stage);
            let layout = model.layout();
            let mut tap = LockstepTap::new(self, index, current);
            match current.stage {
                Stage::Embed if layout.stream_is_activation() => {
                    streams.x = (&mut tap as &mut dyn Tap<B>).stream(Site::Embedding, streams.x);
                }
                Stage::Embed => {}
                Stage::Layer {
                    layer,
                    sublayer,
                    step: Step::Run,
                } => {
                    let mut cx = Cx::new(&mut tap, given);
                    if sublayer == 0 {
                        if let Some(component) = layout.layers()[layer].entry() {
                            streams.x = cx.stream(Site::Block(layer, component), streams.x);
                        }
                        streams.input = needs_input.then(|| streams.x.clone());
                    }
                    let read = match (reads, &streams.input) {
                        (Reads::LayerInput, Some(input)) => input.clone(),
                        _ => streams.x.clone(),
                    };
                    let output = model.sublayer(layer, sublayer, read, &mut cx);
                    let to_given = |x| match &current.queries {
                        Some(queries) => {
                            let parents = in_place(current);
                            rearrange(x, &current.layout, queries, &parents, &tables)
                        }
                        None => x,
                    };
                    streams.input = streams.input.filter(|_| needs_input).map(to_given);
                    match layout.sublayer(layer, sublayer).output() {
                        SublayerOutput::Adds(_) => {
                            streams.x = to_given(streams.x);
                            streams.added = Some(output);
                        }
                        SublayerOutput::Replaces => streams.x = output,
                    }
                }
                Stage::Layer {
                    layer,
                    sublayer,
                    step,
                } => {
                    let sublayer = layout.sublayer(layer, sublayer);
                    let tap: &mut dyn Tap<B> = &mut tap;
                    match (
                        step,
                        sublayer.output(),
                        sublayer.exit(),
                        streams.added.take(),
                    ) {
                        (Step::Output, SublayerOutput::Adds(component), _, Some(added)) => {
                            let added = tap.stream(Site::Block(layer, component), added);
                            streams.x = add_to_stream(streams.x, added);
                        }
                        (Step::Exit, _, Some(component), _) => {
                            streams.x = tap.stream(Site::Block(layer, component), streams.x);
                        }
                        _ => unreachable!("stages follow from the layout"),
                    }
                }
                // Only logits remain to be read: only their positions are normalised.
                Stage::FinalNorm if tap.is_idle() => {}
                Stage::FinalNorm => {
                    streams.normed = true;
                    let normed = model.final_norm(streams.x);
                    streams.x = (&mut tap as &mut dyn Tap<B>).stream(Site::FinalNorm, normed);
                }
                Stage::Unembed => {
                    self.unembed(streams.x, streams.normed, current, model);
                    let (plan, schedule) = (self.plan, self.schedule);
                    let group_of = current.groups.by_world();
                    let here = self.keeping.iter().copied();
                    let here: Vec<WorldId> = here
                        .filter(|world| group_of.get(*world).is_some())
                        .collect();
                    let kept = whole.take_keys_values();
                    if let Some(world) = here.first() {
                        let kept = (&kept[..], &Origin::of(model));
                        let rows = keep(plan, schedule, index, &here, kept);
                        self.rows.extend(rows.ok_or(PlanError::NotContinuable {
                            world: world.0,
                            reason: "a layer of the model attends without nn::attend",
                        })?);
                    }
                    return Ok(());
                }
            }
            tap.finish()?;
        }
        Ok(())
    }

    /// The tokens of continued rows that are not cached, `[1, token]`.
    fn new_tokens(&self, stage: &StageGroups) -> ModelInput<B> {
        let inputs: Vec<&WorldInput<B>> = stage
            .groups
            .firsts()
            .map(|world| self.plan.input_of_index(world))
            .collect();
        // Each group is a row.
        let tokens = stage.layout.places().into_iter().map(|(row, position)| {
            let WorldInput::Continued(continued) = inputs[row] else {
                unreachable!("only continued rows have suffixes from the start");
            };
            continued.tokens[position - continued.past.pos()] as usize
        });
        ModelInput::Tokens(int_tensor(tokens, &self.device).unsqueeze())
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
        let group_of = current.groups.by_world();
        let reads = self.schedule.reads.at(Stage::Unembed).iter();
        let open = reads.filter(|index| self.values[**index].is_none());
        let here = open.filter_map(|index| {
            let group = group_of.get(self.plan.reads[*index].world())?;
            Some((group, *index))
        });
        let mut here: Vec<(usize, usize)> = here.collect();
        here.sort_unstable();
        for (group, index) in here {
            let Read::Logits { world, positions } = &self.plan.reads[index] else {
                continue;
            };
            let start = current.layout.first_row(group);
            let input = self.schedule.sizes.of(world.0);
            let units = positions.units(&input.lengths);
            let unit_count = units.positions.count(input.pos);
            let sizes = [input.pos, 1];
            let place = |example: usize, _head: usize, position: usize| {
                current.layout.token(start + example, position)
            };
            cells.append(Cells::of_units(&units, input.batch, sizes, place));
            wanted.push((index, [input.batch, unit_count]));
        }
        // [cell, d_model]
        let x = gather(&x.reshape([rows, 1, pos, d_model]), &cells, &self.tables);
        let x = x.unsqueeze_dim::<3>(0); // [1, cell, d_model]
        let x = match normed {
            true => x,
            false => model.final_norm(x),
        };
        let mut first: usize = 0;
        for part in self.parts_to_unembed(&wanted) {
            let all = part.iter().map(|(_, [batch, units])| batch * units).sum();
            let x = x.clone().narrow(1, first, all);
            first += all;
            let logits = model.unembed(x).squeeze_dim::<2>(0); // [cell, vocab]
            let [_all, vocab] = logits.dims();
            let mut start: usize = 0;
            for (index, [batch, units]) in part.iter().copied() {
                let count = batch * units;
                // Slicing a tensor of the right shape gives a view; slicing while reshaping would
                // copy.
                let divides = all.is_multiple_of(units) && start.is_multiple_of(units);
                let logits = logits.clone();
                self.values[index] = Some(match divides {
                    true => {
                        logits
                            .reshape([all / units, units, vocab])
                            .narrow(0, start / units, batch)
                    }
                    false => logits
                        .narrow(0, start, count)
                        .reshape([batch, units, vocab]),
                });
                start += count;
            }
        }
    }

    /// The reads whose logits come from one product: all, except that with gradients there are no
    /// more than make a product worth its weight. The gradient of a part of the logits is as large
    /// as the whole, and nearly all of it zeros.
    fn parts_to_unembed<'r>(
        &self,
        reads: &'r [(usize, [usize; 2])],
    ) -> Vec<&'r [(usize, [usize; 2])]> {
        const ENOUGH: usize = 16;
        if !B::ad_enabled(&self.device) {
            return vec![reads];
        }
        let (mut parts, mut start, mut cells) = (Vec::new(), 0, 0);
        for (index, (_, [batch, units])) in reads.iter().enumerate() {
            cells += batch * units;
            if cells >= ENOUGH {
                parts.push(&reads[start..=index]);
                (start, cells) = (index + 1, 0);
            }
        }
        if start < reads.len() {
            parts.push(&reads[start..]);
        }
        parts
    }
}

/// Makes the rows of the next stage's groups, as copies of their parents' rows.
fn fork<B: Backend>(
    x: Tensor<B, 3>,
    before: &Layout,
    next: &StageGroups,
    tables: &Tables,
) -> Tensor<B, 3> {
    match &next.parents {
        Some(parents) => rearrange(x, before, &next.layout, parents, tables),
        None => rearrange(x, before, &next.layout, &in_place(next), tables),
    }
}

/// The groups of a stage, each as its own parent.
fn in_place(stage: &StageGroups) -> Vec<usize> {
    (0..stage.groups.len()).collect()
}

/// The residual stream of the next stage.
///
/// - `parents`: which group of the stage before each group of the next one continues
fn rearrange<B: Backend>(
    x: Tensor<B, 3>,
    before: &Layout,
    next: &Layout,
    parents: &[usize],
    tables: &Tables,
) -> Tensor<B, 3> {
    let [rows, pos, d_model] = x.dims();
    let rows_before = next.rows_before(before, parents);
    if before.is_whole() && next.is_whole() {
        return chosen(x, rows_before, tables);
    }
    let tokens = next.tokens_in(before, &rows_before);
    let x = chosen(x.reshape([rows * pos, d_model]), tokens, tables);
    let [rows, pos] = next.shape();
    x.reshape([rows, pos, d_model])
}

/// Entries of the first axis, by index.
fn chosen<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    indices: Vec<usize>,
    tables: &Tables,
) -> Tensor<B, D> {
    let (first, count) = (indices.first().copied().unwrap_or(0), indices.len());
    let adjacent = count > 0 && indices.iter().copied().eq(first..first + count);
    match adjacent {
        true if count == x.dims()[0] => x,
        true => x.narrow(0, first, count),
        false => {
            let device = x.device();
            x.select(0, tables.indices::<B>(indices, &device))
        }
    }
}

/// The stacked inputs of all groups, padded on the right.
fn stack<B: Backend>(
    plan: &Plan<B>,
    stage: &StageGroups,
    pos: usize,
    device: &B::Device,
) -> ModelInput<B> {
    let inputs = stage.groups.firsts();
    let inputs = inputs.map(|world| plan.input_of_index(world));
    stack_inputs(inputs, pos, device)
}

/// The stacked residuals that all groups start from, padded on the right.
fn stack_residuals<B: Backend>(plan: &Plan<B>, stage: &StageGroups, pos: usize) -> Tensor<B, 3> {
    let residuals = stage
        .groups
        .firsts()
        .map(|world| match plan.input_of_index(world) {
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
            WorldInput::Resumed(_) | WorldInput::Continued(_) => {
                unreachable!("a run that goes on does not begin with whole rows")
            }
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
