//! Which worlds share rows in which layer.
//!
//! Worlds on the same input are equal until the first edit that sets them apart, so they can share
//! a row until then. The schedule works that out from the plan alone, stage by stage;
//! [`execute`](super::execute) only follows it.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend;
use burn_align_models::{Mixing, Site};

use super::layout::{Edited, Layout, lower};
use super::plan::{Edit, Operand, Plan, Read, WorldId};
use super::stages::{Stage, Stages, Step};
use super::wanted::Uses;

/// How far a world must be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    UpTo(Site),
    Logits,
}

impl Need {
    fn reaches(self, site: Site) -> bool {
        self >= Self::UpTo(site)
    }

    /// The last stage that is run.
    pub(super) fn stage(self, stages: &Stages) -> Stage {
        match self {
            Self::UpTo(site) => stages.of(site),
            Self::Logits => Stage::Unembed,
        }
    }
}

/// Worlds that are equal so far and therefore share rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Never empty.
    pub(super) worlds: Vec<WorldId>,
    /// The group of the previous stage whose rows these are copies of.
    pub(super) parent: usize,
}

/// The groups of one stage.
#[derive(Clone, Debug)]
pub(super) struct StageGroups {
    pub(super) stage: Stage,
    pub(super) groups: Vec<Group>,
    /// Where the positions of their rows are.
    pub(super) layout: Layout,
    /// In an attention, where the querying positions are, if these are not all positions.
    pub(super) queries: Option<Layout>,
}

impl StageGroups {
    /// Where the positions of the stage's output are.
    pub(super) fn given(&self) -> &Layout {
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

/// Everything that a plan runs, in order.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) passes: Vec<Pass>,
    /// The pass in which each world runs; `None` if it is not needed.
    pub(super) pass_of: Vec<Option<usize>>,
    /// How far each world is run.
    pub(super) needs: Vec<Option<Need>>,
    pub(super) stages: Stages,
}

impl Schedule {
    /// Plans the passes. Fails with a site at which an edit depends on itself.
    ///
    /// - `reads`: indices of the reads to serve
    /// - `is_kept`: whether an operand is available already
    pub(super) fn new<B: Backend>(
        plan: &Plan<B>,
        stages: &Stages,
        reads: &[usize],
        is_kept: &dyn Fn(&Operand) -> bool,
    ) -> Result<Self, Site> {
        let needs = needs(plan, reads, is_kept);
        let pass_of = passes(plan, &needs)?;
        let count = pass_of.iter().flatten().max().map_or(0, |last| last + 1);
        let passes = (0..count)
            .map(|pass| {
                let worlds = plan.world_ids();
                let worlds: Vec<WorldId> = worlds
                    .filter(|world| pass_of[world.0] == Some(pass))
                    .collect();
                Pass::new(plan, &worlds, &needs, stages)
            })
            .collect();
        Ok(Self {
            passes,
            pass_of,
            needs,
            stages: stages.clone(),
        })
    }

    /// The edits of a world that are applied: those before its last use.
    pub(super) fn edits<'p, B: Backend>(
        &'p self,
        plan: &'p Plan<B>,
        world: WorldId,
    ) -> impl Iterator<Item = &'p Edit> {
        made_edits(plan, &self.needs, world)
    }
}

impl Schedule {
    /// Whether a world is run up to a site.
    pub(super) fn reaches(&self, world: WorldId, site: Site) -> bool {
        self.needs[world.0].is_some_and(|need| need.reaches(site))
    }
}

pub(super) fn made_edits<'p, B: Backend>(
    plan: &'p Plan<B>,
    needs: &'p [Option<Need>],
    world: WorldId,
) -> impl Iterator<Item = &'p Edit> {
    let need = needs[world.0];
    plan.worlds[world.0]
        .edits
        .iter()
        .filter(move |edit| need.is_some_and(|need| need.reaches(edit.site)))
}

/// How far each world must be run, for the reads and for the operands of running worlds.
fn needs<B: Backend>(
    plan: &Plan<B>,
    reads: &[usize],
    is_kept: &dyn Fn(&Operand) -> bool,
) -> Vec<Option<Need>> {
    let mut needs = vec![None; plan.worlds.len()];
    let mut changed: BTreeSet<WorldId> = BTreeSet::new();
    for read in reads.iter().map(|index| &plan.reads[*index]) {
        let need = match read {
            Read::Activation { site, .. } => Need::UpTo(*site),
            Read::Logits { .. } => Need::Logits,
        };
        let world = read.world();
        needs[world.0] = needs[world.0].max(Some(need));
        changed.insert(world);
    }
    while let Some(world) = changed.pop_first() {
        let operands: Vec<(WorldId, Site)> = made_edits(plan, &needs, world)
            .filter(|edit| !is_kept(&edit.operand))
            .filter_map(|edit| match &edit.operand {
                Operand::Activation { world, site, .. } => Some((*world, *site)),
                Operand::None | Operand::Constant(_) => None,
            })
            .collect();
        for (source, site) in operands {
            if needs[source.0] < Some(Need::UpTo(site)) {
                needs[source.0] = Some(Need::UpTo(site));
                changed.insert(source);
            }
        }
    }
    needs
}

/// The pass in which each world runs.
///
/// An operand from a site deeper than the edit's must come from an earlier pass. Fails at an edit
/// that would have to wait for itself.
fn passes<B: Backend>(plan: &Plan<B>, needs: &[Option<Need>]) -> Result<Vec<Option<usize>>, Site> {
    let count = plan.worlds.len();
    let mut pass_of: Vec<Option<usize>> = needs.iter().map(|need| need.map(|_| 0)).collect();
    loop {
        let mut changed = None;
        for world in 0..count {
            for edit in made_edits(plan, needs, plan.world_id(world)) {
                let Operand::Activation {
                    world: source,
                    site,
                    ..
                } = &edit.operand
                else {
                    continue;
                };
                let later = usize::from(*site > edit.site);
                let earliest = pass_of[source.0].map(|pass| pass + later);
                if pass_of[world] < earliest {
                    pass_of[world] = earliest;
                    changed = Some(edit.site);
                }
            }
        }
        match changed {
            None => break,
            // No chain of worlds is longer than the number of worlds.
            Some(site) if pass_of.iter().flatten().any(|pass| *pass > count) => return Err(site),
            Some(_) => {}
        }
    }
    check_same_site_order(plan, needs)?;
    Ok(pass_of)
}

/// Checks that edits at one site that use each other's results form no cycle.
fn check_same_site_order<B: Backend>(plan: &Plan<B>, needs: &[Option<Need>]) -> Result<(), Site> {
    let edges = |world: usize, at: Site| {
        made_edits(plan, needs, plan.world_id(world)).filter_map(move |edit| match &edit.operand {
            Operand::Activation { world, site, .. } if edit.site == at && *site == at => {
                Some(world.0)
            }
            _ => None,
        })
    };
    let sites: BTreeSet<Site> = plan
        .world_ids()
        .flat_map(|world| made_edits(plan, needs, world).map(|edit| edit.site))
        .collect();
    for site in sites {
        // Worlds become ready when everything they wait for is done.
        let mut waiting: BTreeSet<usize> = (0..plan.worlds.len()).collect();
        loop {
            let ready: Vec<usize> = waiting
                .iter()
                .copied()
                .filter(|world| edges(*world, site).all(|source| !waiting.contains(&source)))
                .collect();
            if ready.is_empty() {
                break;
            }
            for world in ready {
                waiting.remove(&world);
            }
        }
        if !waiting.is_empty() {
            return Err(site);
        }
    }
    Ok(())
}

impl Pass {
    fn new<B: Backend>(
        plan: &Plan<B>,
        worlds: &[WorldId],
        needs: &[Option<Need>],
        model: &Stages,
    ) -> Self {
        let mut stages: Vec<StageGroups> = Vec::new();
        // Before the first stage, worlds on the same input are equal.
        let mut before: Vec<Vec<WorldId>> = vec![Vec::new(); plan.inputs.len()];
        for world in worlds {
            before[plan.worlds[world.0].input.0].push(*world);
        }
        let inputs = worlds.iter().map(|world| plan.input_of(*world).pos());
        let pos = inputs.max().unwrap_or(0);
        let start = plan.start();
        let suffixes = model.run_suffixes();
        let patterns = pattern_stages(plan, model);
        let uses = Uses::new(plan, needs, model);
        let mut edited: Vec<Edited> = plan
            .worlds
            .iter()
            .map(|world| vec![usize::MAX; plan.inputs[world.input.0].batch()])
            .collect();
        for stage in model.all().filter(|stage| *stage >= start) {
            let mut groups: Vec<Group> = Vec::new();
            for (parent, members) in before.iter().enumerate() {
                let mut split: Vec<(Vec<&Edit>, Vec<WorldId>)> = Vec::new();
                for world in members {
                    if needs[world.0].is_none_or(|need| need.stage(model) < stage) {
                        continue;
                    }
                    let edits: Vec<&Edit> = made_edits(plan, needs, *world)
                        .filter(|edit| model.of(edit.site) == stage)
                        .collect();
                    match split.iter_mut().find(|(others, _)| *others == edits) {
                        Some((_, worlds)) => worlds.push(*world),
                        None => split.push((edits, vec![*world])),
                    }
                }
                groups.extend(
                    split
                        .into_iter()
                        .map(|(_, worlds)| Group { worlds, parent }),
                );
            }
            if groups.is_empty() {
                break;
            }
            before = groups.iter().map(|group| group.worlds.clone()).collect();
            for world in groups.iter().flat_map(|group| &group.worlds) {
                for edit in made_edits(plan, needs, *world) {
                    if model.of(edit.site) == stage {
                        lower(&mut edited[world.0], &edit.units.positions);
                    }
                }
            }
            let edited = groups.iter().map(|group| &edited[group.worlds[0].0]);
            let edited: Vec<&Edited> = edited.collect();
            // The embedding consists of whole rows, and taps get attention patterns as wholes.
            let mut queries = None;
            let layout = match (model.mixing(stage), stage) {
                _ if !suffixes || patterns.contains(&stage) => Layout::whole(plan, &groups, pos),
                (Mixing::Rows, _) => Layout::whole(plan, &groups, pos),
                (Mixing::None, _) => {
                    let wanted = uses.wanted(plan, needs, stage, &groups);
                    Layout::by_position(plan, &groups, pos, &edited, &wanted)
                }
                // What replaces the stream replaces all of it.
                (Mixing::Causal { .. }, _) if !model.adds(stage) => {
                    Layout::with_suffixes(plan, &groups, pos, &edited)
                }
                (Mixing::Causal { .. }, stage) => {
                    let wanted = uses.wanted(plan, needs, stage.queries(), &groups);
                    let layout;
                    (layout, queries) = Layout::with_queries(plan, &groups, pos, &edited, &wanted);
                    layout
                }
            };
            stages.push(StageGroups {
                stage,
                groups,
                layout,
                queries,
            });
        }
        Self { stages }
    }
}

/// The stages in which attention scores or weights are read or changed.
fn pattern_stages<B: Backend>(plan: &Plan<B>, model: &Stages) -> BTreeSet<Stage> {
    let edits = plan.worlds.iter().flat_map(|world| &world.edits);
    let of_edits = edits.flat_map(|edit| match &edit.operand {
        Operand::Activation { site, .. } => vec![edit.site, *site],
        Operand::None | Operand::Constant(_) => vec![edit.site],
    });
    let of_reads = plan.reads.iter().filter_map(|read| match read {
        Read::Activation { site, .. } => Some(*site),
        Read::Logits { .. } => None,
    });
    let sites = of_edits.chain(of_reads);
    sites
        .filter(|site| site.is_attention_pattern())
        .map(|site| model.of(site))
        .collect()
}
