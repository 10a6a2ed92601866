//! Which worlds are run, how far, and in which pass.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::backend::Backend;
use burn_align_models::Site;

use super::plan::{Edit, Operand, Plan, Read, WorldId};
use super::stages::{Stage, Stages};

/// How far a world must be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    UpTo(Site),
    Logits,
}

impl Need {
    pub(super) fn reaches(self, site: Site) -> bool {
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

/// How far each world is run; `None` if it is not needed.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    of_world: Vec<Option<Need>>,
}

impl Needs {
    /// What the reads need, and the operands of the worlds that are run.
    ///
    /// - reads: indices of the reads to serve
    /// - is_kept: whether an operand is available already
    pub(super) fn new<B: Backend>(
        plan: &Plan<B>,
        reads: &[usize],
        is_kept: &dyn Fn(&Operand) -> bool,
    ) -> Self {
        let mut needs = Self {
            of_world: vec![None; plan.worlds.len()],
        };
        let mut changed: BTreeSet<WorldId> = BTreeSet::new();
        for read in reads.iter().map(|index| &plan.reads[*index]) {
            let need = match read {
                Read::Activation { site, .. } => Need::UpTo(*site),
                Read::Logits { .. } => Need::Logits,
            };
            let world = read.world();
            needs.of_world[world.0] = needs.of_world[world.0].max(Some(need));
            changed.insert(world);
        }
        while let Some(world) = changed.pop_first() {
            for edit in &plan.worlds[world.0].edits {
                let Operand::Activation {
                    world: source,
                    site,
                    ..
                } = &edit.operand
                else {
                    continue;
                };
                if needs.reaches(world, edit.site)
                    && !needs.reaches(*source, *site)
                    && !is_kept(&edit.operand)
                {
                    needs.of_world[source.0] = Some(Need::UpTo(*site));
                    changed.insert(*source);
                }
            }
        }
        needs
    }

    /// How far a world is run.
    pub(super) fn of(&self, world: WorldId) -> Option<Need> {
        self.of_world[world.0]
    }

    /// For each world.
    pub(super) fn iter(&self) -> impl Iterator<Item = Option<Need>> + '_ {
        self.of_world.iter().copied()
    }

    /// Whether a world is run up to a site.
    pub(super) fn reaches(&self, world: WorldId, site: Site) -> bool {
        self.of(world).is_some_and(|need| need.reaches(site))
    }

    /// The edits of a world that are made: those before its last use. With their indices.
    pub(super) fn edits<'p, B: Backend>(
        &'p self,
        plan: &'p Plan<B>,
        world: WorldId,
    ) -> impl Iterator<Item = (usize, &'p Edit)> {
        let edits = plan.worlds[world.0].edits.iter().enumerate();
        edits.filter(move |(_, edit)| self.reaches(world, edit.site))
    }

    /// All edits that are made and take another world's activation: the world, the edit, and what it
    /// takes.
    fn taking<'p, B: Backend>(
        &'p self,
        plan: &'p Plan<B>,
    ) -> impl Iterator<Item = (WorldId, &'p Edit, WorldId, Site)> {
        plan.world_ids().flat_map(move |world| {
            self.edits(plan, world)
                .filter_map(move |(_, edit)| match &edit.operand {
                    Operand::Activation {
                        world: source,
                        site,
                        ..
                    } => Some((world, edit, *source, *site)),
                    Operand::None | Operand::Constant(_) => None,
                })
        })
    }

    /// The pass in which each world runs; `None` if it is not needed.
    ///
    /// An operand from a site deeper than the edit's must come from an earlier pass. Fails at an edit
    /// that would have to wait for itself.
    pub(super) fn passes<B: Backend>(&self, plan: &Plan<B>) -> Result<Vec<Option<usize>>, Site> {
        let count = plan.worlds.len();
        let mut pass_of: Vec<Option<usize>> = self.iter().map(|need| need.map(|_| 0)).collect();
        loop {
            let mut changed = None;
            for (world, edit, source, site) in self.taking(plan) {
                let later = usize::from(site > edit.site);
                let earliest = pass_of[source.0].map(|pass| pass + later);
                if pass_of[world.0] < earliest {
                    pass_of[world.0] = earliest;
                    changed = Some(edit.site);
                }
            }
            match changed {
                None => break,
                // No chain of worlds is longer than the number of worlds.
                Some(site) if pass_of.iter().flatten().any(|pass| *pass > count) => {
                    return Err(site);
                }
                Some(_) => {}
            }
        }
        self.check_same_site_order(plan)?;
        Ok(pass_of)
    }

    /// Checks that edits at one site that use each other's results form no cycle.
    fn check_same_site_order<B: Backend>(&self, plan: &Plan<B>) -> Result<(), Site> {
        // For each site: the worlds whose edits wait there, and for what.
        let mut waiting: BTreeMap<Site, BTreeMap<WorldId, Vec<WorldId>>> = BTreeMap::new();
        for (world, edit, source, site) in self.taking(plan) {
            if site == edit.site {
                let at_site = waiting.entry(site).or_default();
                at_site.entry(world).or_default().push(source);
            }
        }
        for (site, mut waiting) in waiting {
            // Worlds become ready when everything they wait for is done.
            loop {
                let is_ready = |sources: &Vec<WorldId>| {
                    let mut sources = sources.iter();
                    sources.all(|source| !waiting.contains_key(source))
                };
                let ready = waiting.iter().filter(|(_, sources)| is_ready(sources));
                let ready: Vec<WorldId> = ready.map(|(world, _)| *world).collect();
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
}
