//! Which worlds share rows in which stage.
//!
//! Worlds on the same input are equal until the first edit that sets them apart, so they can share
//! a row until then. The schedule works that out from the plan alone; [`execute`](super::execute)
//! only follows it. From stage to stage only what changes is worked out: the worlds that are edited
//! there, and those that are no longer needed.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_align_models::{Mixing, Site};

use super::groups::{Changes, Groups, MadeEdit, Sizes};
use super::layout::{Beginnings, Edited, Layout};
use super::needs::Needs;
use super::plan::{Edit, Operand, Plan, Read, WorldInput};
use super::stages::{ByStage, Stage, Stages, Step};
use super::wanted::{Ends, Uses, Wanted};

/// What one stage runs.
#[derive(Clone, Debug)]
pub(super) struct StageGroups {
    pub(super) stage: Stage,
    pub(super) groups: Arc<Groups>,
    /// The group of the previous stage whose rows each group's are copies of; `None` if the groups
    /// are the same.
    pub(super) parents: Option<Vec<usize>>,
    /// Where the positions of their rows are.
    pub(super) layout: Arc<Layout>,
    /// In an attention, where the querying positions are, if these are not all positions.
    pub(super) queries: Option<Arc<Layout>>,
    /// The edits that are made.
    pub(super) edits: Vec<MadeEdit>,
}

impl StageGroups {
    /// Where the positions of the stage's output are.
    pub(super) fn given(&self) -> &Arc<Layout> {
        self.queries.as_ref().unwrap_or(&self.layout)
    }

    /// Where the positions of an activation are.
    pub(super) fn layout_at(&self, stages: &Stages, site: Site) -> &Layout {
        match stages.of_use(site) {
            Stage::Layer {
                step: Step::Queries,
                ..
            } => self.given(),
            _ => &self.layout,
        }
    }
}

/// One walk through the network: the stages that are needed.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub(super) stages: Vec<StageGroups>,
}

/// Everything that a plan or a part of it runs, in order. It names worlds by their indices and
/// holds no tensors, so plans of one structure have the same.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) passes: Vec<Pass>,
    /// The pass in which each world runs; `None` if it is not needed.
    pub(super) pass_of: Vec<Option<usize>>,
    /// How far each world is run.
    pub(super) needs: Needs,
    pub(super) stages: Stages,
    pub(super) sizes: Arc<Sizes>,
    /// The plan's reads, by index.
    pub(super) reads: Arc<ByStage<usize>>,
    /// Edits that the whole plan makes and whose operands are activations of each stage: the index
    /// of the world, and that of the edit.
    pub(super) takers: Arc<ByStage<(usize, usize)>>,
    /// The stages in which attention scores or weights are read or changed.
    patterns: Arc<BTreeSet<Stage>>,
}

impl Schedule {
    /// Plans the passes of a whole plan. Fails with a site at which an edit depends on itself.
    pub(super) fn new<B: Backend>(
        plan: &Plan<B>,
        stages: Stages,
        sizes: Sizes,
    ) -> Result<Self, Site> {
        let open: Vec<usize> = plan.open_reads().map(|(index, _)| index).collect();
        let needs = Needs::new(plan, &open, &|_| false);
        let pass_of = needs.passes(plan)?;
        let reads = plan.reads.iter().enumerate().map(|(index, read)| {
            let stage = match read {
                Read::Activation { site, .. } => stages.of(*site),
                Read::Logits { .. } => Stage::Unembed,
            };
            (stage, index)
        });
        let mut takers: Vec<(Stage, (usize, usize))> = Vec::new();
        for world in plan.world_ids() {
            for (index, edit) in needs.edits(plan, world) {
                if let Operand::Activation { site, .. } = &edit.operand {
                    takers.push((stages.of(*site), (world.0, index)));
                }
            }
        }
        let mut schedule = Self {
            passes: Vec::new(),
            pass_of,
            needs,
            reads: Arc::new(ByStage::new(reads.collect())),
            takers: Arc::new(ByStage::new(takers)),
            patterns: Arc::new(pattern_stages(plan, &stages)),
            sizes: Arc::new(sizes),
            stages,
        };
        schedule.passes = schedule.passes_of(plan);
        Ok(schedule)
    }

    /// Plans the passes of a part of the plan that this is the whole schedule of.
    ///
    /// - reads: indices of the reads to serve
    /// - is_kept: whether an operand is available already
    pub(super) fn part<B: Backend>(
        &self,
        plan: &Plan<B>,
        reads: &[usize],
        is_kept: &dyn Fn(&Operand) -> bool,
    ) -> Self {
        let needs = Needs::new(plan, reads, is_kept);
        let pass_of = needs.passes(plan);
        let mut part = Self {
            passes: Vec::new(),
            pass_of: pass_of.expect("a part of a plan without circles has none"),
            needs,
            stages: self.stages.clone(),
            sizes: self.sizes.clone(),
            reads: self.reads.clone(),
            takers: self.takers.clone(),
            patterns: self.patterns.clone(),
        };
        part.passes = part.passes_of(plan);
        part
    }

    /// The layers of a pass that attend, in order, with their windows.
    ///
    /// - pass: its index
    pub(super) fn attentions(
        &self,
        pass: usize,
    ) -> impl Iterator<Item = (usize, Option<usize>, &StageGroups)> {
        let stages = self.passes[pass].stages.iter();
        stages.filter_map(
            move |stage| match (stage.stage, self.stages.mixing(stage.stage)) {
                (Stage::Layer { layer, .. }, Mixing::Causal { window }) => {
                    Some((layer, window, stage))
                }
                _ => None,
            },
        )
    }

    /// The passes of a schedule that has everything else.
    fn passes_of<B: Backend>(&self, plan: &Plan<B>) -> Vec<Pass> {
        let last = self.pass_of.iter().flatten().max();
        let mut worlds: Vec<Vec<usize>> = vec![Vec::new(); last.map_or(0, |last| last + 1)];
        for (world, pass) in self.pass_of.iter().enumerate() {
            if let Some(pass) = pass {
                worlds[*pass].push(world);
            }
        }
        let uses = Uses::new(plan, &self.needs, &self.stages);
        let suffixes = self.stages.run_suffixes();
        let is_continued = matches!(plan.inputs.first(), Some(WorldInput::Continued(_)));
        let cuts = suffixes && !is_continued && !self.stages.depend_on_length();
        let ends = match cuts && self.patterns.is_empty() {
            true => uses.row_ends(&self.sizes),
            false => Ends::of_whole_inputs(&self.sizes),
        };
        let shared = Shared {
            plan,
            schedule: self,
            uses,
            ends,
            suffixes,
            is_continued,
        };
        worlds.iter().map(|worlds| shared.pass(worlds)).collect()
    }
}

/// What all passes of a schedule share.
struct Shared<'p, B: Backend> {
    plan: &'p Plan<B>,
    /// The schedule, whose passes are being planned.
    schedule: &'p Schedule,
    uses: Uses<'p>,
    ends: Ends,
    /// Whether the model runs suffixes of rows.
    suffixes: bool,
    /// Whether the inputs continue earlier runs.
    is_continued: bool,
}

impl<B: Backend> Shared<'_, B> {
    /// The stages that worlds go through together.
    ///
    /// - worlds: their indices, in order
    fn pass(&self, worlds: &[usize]) -> Pass {
        let (plan, stages, sizes) = (self.plan, &self.schedule.stages, &self.schedule.sizes);
        let inputs = worlds.iter().map(|world| sizes.of_world[*world]);
        let ends = inputs.flat_map(|input| self.ends.of(sizes.examples_of(input)));
        let pos = ends.max().copied().unwrap_or(0);
        // All edits in the order of their stages, those of a world and stage in their own order.
        let edits = worlds.iter().flat_map(|world| {
            let edits = self.schedule.needs.edits(plan, plan.world_id(*world));
            edits.map(|(index, edit)| (stages.of(edit.site), *world, index, edit))
        });
        let mut edits: Vec<(Stage, usize, usize, &Edit)> = edits.collect();
        edits.sort_by_key(|(stage, world, _, _)| (*stage, *world));
        let mut edits = edits.into_iter().peekable();
        // The last stages of worlds, in order.
        let ends = worlds
            .iter()
            .filter_map(|world| Some((self.uses.end(*world)?, *world)));
        let mut ends: Vec<(Stage, usize)> = ends.collect();
        ends.sort_unstable();
        let mut ends = ends.into_iter().peekable();

        let mut before = Arc::new(Groups::of_inputs(sizes, worlds));
        let mut edited = Edited::nowhere(sizes);
        let mut changes = Changes::new(plan.worlds.len());
        let mut known = Known::default();
        let start = plan.start();
        let mut all: Vec<StageGroups> = Vec::new();
        for stage in stages.all().filter(|stage| *stage >= start) {
            let own = std::iter::from_fn(|| edits.next_if(|(at, ..)| *at <= stage));
            let ended = std::iter::from_fn(|| ends.next_if(|(end, _)| *end < stage));
            let has_changes = changes.set(
                own.map(|(_, world, index, edit)| (world, index, edit)),
                ended.map(|(_, world)| world),
            );
            let Some((first_end, _)) = ends.peek().copied() else {
                break;
            };
            let mut parents = None;
            if has_changes && let Some((groups, continued)) = before.split(&changes) {
                before = Arc::new(groups);
                parents = Some(continued);
            }
            for (world, _, edit) in changes.edits() {
                edited.edit(*world, &edit.units.positions);
            }

            let kind = self.kind(stage, &before, first_end);
            if parents.is_some() || !changes.edits().is_empty() {
                known = Known::default();
            }
            let (layout, queries) =
                known.layout::<B>(kind, (sizes, &self.ends), &before, pos, &edited);
            all.push(StageGroups {
                stage,
                groups: before.clone(),
                parents,
                layout,
                queries,
                edits: changes.made_by(&before),
            });
        }
        Pass { stages: all }
    }

    /// How the rows of a stage are laid out.
    fn kind(&self, stage: Stage, groups: &Groups, first_end: Stage) -> LayoutKind {
        // Taps get attention patterns as wholes.
        if !self.suffixes || self.schedule.patterns.contains(&stage) {
            return LayoutKind::Whole;
        }
        let (stages, sizes) = (&self.schedule.stages, &self.schedule.sizes);
        let wanted = |stage| self.uses.wanted(sizes, stage, groups, first_end);
        match stages.mixing(stage) {
            // The new tokens of continued rows.
            Mixing::Rows if stage == Stage::Embed && self.is_continued => LayoutKind::Suffixes,
            Mixing::Rows => LayoutKind::Whole,
            Mixing::None => LayoutKind::ByPosition(wanted(stage)),
            Mixing::Causal { .. } if stages.adds(stage) => {
                LayoutKind::Queries(wanted(stage.queries()))
            }
            // What replaces the stream replaces all of it.
            Mixing::Causal { .. } => LayoutKind::Suffixes,
        }
    }
}

/// What the layout of a stage depends on, apart from its groups and where they have been edited.
#[derive(PartialEq)]
enum LayoutKind {
    /// Whole rows.
    Whole,
    /// Suffixes of rows.
    Suffixes,
    /// Suffixes of rows, and queries where they are wanted.
    Queries(Wanted),
    /// Suffixes of rows, from where they are wanted.
    ByPosition(Wanted),
}

/// Layouts of stages with the same groups, which have been edited at the same positions.
#[derive(Default)]
struct Known {
    /// Where their rows begin.
    beginnings: Option<Beginnings>,
    layouts: Vec<(LayoutKind, LayoutAndQueries)>,
}

/// A layout, and that of the querying positions.
type LayoutAndQueries = (Arc<Layout>, Option<Arc<Layout>>);

impl Known {
    fn layout<B: Backend>(
        &mut self,
        kind: LayoutKind,
        (sizes, ends): (&Sizes, &Ends),
        groups: &Groups,
        pos: usize,
        edited: &Edited,
    ) -> LayoutAndQueries {
        if let Some((_, known)) = self.layouts.iter().find(|(other, _)| *other == kind) {
            return known.clone();
        }
        let new = || Beginnings::new::<B>((sizes, ends), groups, pos, edited);
        let begun = &mut self.beginnings;
        let (layout, queries) = match &kind {
            LayoutKind::Whole => (Layout::whole(sizes, groups, pos), None),
            LayoutKind::Suffixes => {
                let begun = begun.get_or_insert_with(new);
                (begun.with_suffixes(sizes, groups), None)
            }
            LayoutKind::Queries(wanted) => {
                let begun = begun.get_or_insert_with(new);
                begun.with_queries(sizes, groups, wanted)
            }
            LayoutKind::ByPosition(wanted) => {
                let begun = begun.get_or_insert_with(new);
                (begun.by_position(sizes, groups, wanted), None)
            }
        };
        let layouts = (Arc::new(layout), queries.map(Arc::new));
        self.layouts.push((kind, layouts.clone()));
        layouts
    }
}

/// The stages in which attention scores or weights are read or changed.
fn pattern_stages<B: Backend>(plan: &Plan<B>, stages: &Stages) -> BTreeSet<Stage> {
    let edits = plan.worlds.iter().flat_map(|world| &world.edits);
    let of_edits = edits.flat_map(|edit| match &edit.operand {
        Operand::Activation { site, .. } => [Some(edit.site), Some(*site)],
        Operand::None | Operand::Constant(_) => [Some(edit.site), None],
    });
    let of_reads = plan.reads.iter().map(|read| match read {
        Read::Activation { site, .. } => Some(*site),
        Read::Logits { .. } => None,
    });
    let sites = of_edits.flatten().chain(of_reads.flatten());
    sites
        .filter(|site| site.is_attention_pattern())
        .map(|site| stages.of(site))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use burn::backend::Flex;
    use burn_align_models::{
        AlignableTransformer, Component, Decoder, DecoderConfig, Site, TokenBatch,
    };
    use serde_json::json;

    use crate::engine::validate::validate;
    use crate::engine::{Edit, LogitPositions, Plan, Units};
    use crate::interventions::VanillaIntervention;

    fn sweep(layers: usize, pos: usize) -> (Decoder<Flex>, Plan<Flex>) {
        let config = DecoderConfig::from_json(&json!({
            "model_type": "llama",
            "vocab_size": 20,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "max_position_embeddings": pos,
        }));
        let model = config.expect("valid").init::<Flex>(&Default::default());
        let mut plan = Plan::new();
        let tokens = |id| TokenBatch::new(vec![vec![id; pos]]).expect("not empty");
        let (base, source) = (plan.tokens(&tokens(1)), plan.tokens(&tokens(2)));
        let donor = plan.world(source, []);
        for layer in 0..layers {
            for position in 0..pos {
                let site = Site::Block(layer, Component::BlockOutput);
                let edit = Edit::from_world(donor, site, Units::position(position), 0);
                let world = plan.world(base, [edit]);
                plan.read_logits(world, LogitPositions::Last);
            }
        }
        (model, plan)
    }

    /// Prints how long planning takes: `cargo test --release -p burn-align --lib -- --ignored
    /// --nocapture planning_times`.
    #[test]
    #[ignore = "a benchmark"]
    #[expect(clippy::print_stdout, reason = "a benchmark prints what it measures")]
    fn planning_times() {
        for (layers, pos) in [(8, 20), (16, 40), (32, 80), (32, 800), (300, 80)] {
            let (model, plan) = sweep(layers, pos);
            let time = |run: &dyn Fn()| {
                let times = (0..5).map(|_| {
                    let start = Instant::now();
                    run();
                    start.elapsed().as_secs_f64() * 1e3
                });
                times.fold(f64::INFINITY, f64::min)
            };
            let schedule = time(&|| drop(validate(&plan, &model, &[VanillaIntervention])));
            let explain = time(&|| drop(plan.explain(&model)));
            println!("{layers} x {pos}: plan {schedule:.2} ms, explain {explain:.2} ms");
        }
        assert!(sweep(1, 1).0.dims().layers == 1);
    }
}
