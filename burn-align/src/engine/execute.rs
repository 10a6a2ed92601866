//! The lockstep executor.

mod rows;
mod unembed;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::{ReusedMemory, add_to_stream};
use burn_align_models::{
    AlignableTransformer, Cx, Mixing, ModelInput, Pass as ModelPass, Reads, Site, SublayerOutput,
    Tables, Tap,
};

use super::PlanError;
use super::cache::{CachedRow, CachedRows, keep};
use super::chunks::chunks;
use super::hash::QuickMap;
use super::layout::{Layout, int_tensor};
use super::lockstep_tap::LockstepTap;
use super::marks::Mark;
use super::options::RunOptions;
use super::origin::Origin;
use super::plan::{OperandKey, Plan, ReadId, WorldId, WorldInput};
use super::schedule::{Pass, Schedule, StageGroups};
use super::stages::{Stage, Step};
use super::validate::{check_continuable, validate_keeping};
use crate::interventions::Intervention;
pub(super) use rows::stack_inputs;
use rows::{fork, in_place, rearrange, stack, stack_residuals};

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
        let _memory = ReusedMemory::in_pass();
        let schedules = Some(&options.schedules);
        let whole = validate_keeping(self, model, interventions, keeping, schedules)?;
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
}
