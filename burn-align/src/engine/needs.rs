//! Which worlds are run, how far, and in which pass.

use std::collections::{BTreeMap, VecDeque};

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
        let mut changed = Waiting::new(plan.worlds.len());
        for read in reads.iter().map(|index| &plan.reads[*index]) {
            let need = match read {
                Read::Activation { site, .. } => Need::UpTo(*site),
                Read::Logits { .. } => Need::Logits,
            };
            let WorldId(world, _) = read.world();
            needs.of_world[world] = needs.of_world[world].max(Some(need));
            changed.add(world);
        }
        while let Some(world) = changed.take_first() {
            for edit in &plan.worlds[world].edits {
                let Operand::Activation {
                    world: source,
                    site,
                    ..
                } = &edit.operand
                else {
                    continue;
                };
                if needs.of_world[world].is_some_and(|need| need.reaches(edit.site))
                    && !needs.reaches(*source, *site)
                    && !is_kept(&edit.operand)
                {
                    needs.of_world[source.0] = Some(Need::UpTo(*site));
                    changed.add(source.0);
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

    /// All edits that are made and take another world's activation.
    fn taking<B: Backend>(&self, plan: &Plan<B>) -> Vec<Taking> {
        let mut all = Vec::new();
        for world in plan.world_ids() {
            for (_, edit) in self.edits(plan, world) {
                if let Operand::Activation {
                    world: source,
                    site,
                    ..
                } = &edit.operand
                {
                    all.push(Taking {
                        world: world.0,
                        at: edit.site,
                        source: source.0,
                        from: *site,
                    });
                }
            }
        }
        all
    }

    /// The pass in which each world runs; `None` if it is not needed.
    ///
    /// An operand from a site deeper than the edit's must come from an earlier pass. Fails at an
    /// edit that would have to wait for itself.
    pub(super) fn passes<B: Backend>(&self, plan: &Plan<B>) -> Result<Vec<Option<usize>>, Site> {
        let count = plan.worlds.len();
        let mut pass_of: Vec<Option<usize>> = self.iter().map(|need| need.map(|_| 0)).collect();
        let taking = self.taking(plan);
        loop {
            let mut changed = None;
            for edit in &taking {
                let later = usize::from(edit.from > edit.at);
                let earliest = pass_of[edit.source].map(|pass| pass + later);
                if pass_of[edit.world] < earliest {
                    pass_of[edit.world] = earliest;
                    changed = Some(edit.at);
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
        check_same_site_order(&taking, count)?;
        Ok(pass_of)
    }
}

/// An edit that is made and takes another world's activation.
struct Taking {
    /// The index of the edited world.
    world: usize,
    /// Where it is edited.
    at: Site,
    /// The index of the other world.
    source: usize,
    /// The site of what is taken.
    from: Site,
}

/// Worlds whose needs have changed, each once.
struct Waiting {
    worlds: VecDeque<usize>,
    is_waiting: Vec<bool>,
}

impl Waiting {
    fn new(worlds: usize) -> Self {
        Self {
            worlds: VecDeque::new(),
            is_waiting: vec![false; worlds],
        }
    }

    fn add(&mut self, world: usize) {
        if !std::mem::replace(&mut self.is_waiting[world], true) {
            self.worlds.push_back(world);
        }
    }

    fn take_first(&mut self) -> Option<usize> {
        let world = self.worlds.pop_front()?;
        self.is_waiting[world] = false;
        Some(world)
    }
}

/// Checks that edits at one site that use each other's results form no cycle. Fails with the site.
///
/// - worlds: their number
fn check_same_site_order(taking: &[Taking], worlds: usize) -> Result<(), Site> {
    let mut at_once: Vec<&Taking> = taking.iter().filter(|edit| edit.at == edit.from).collect();
    at_once.sort_by_key(|edit| edit.at);
    // For each world: the last site at which its edits use others' results.
    let mut takes_at: Vec<Option<Site>> = vec![None; worlds];
    for edits in at_once.chunk_by(|a, b| a.at == b.at) {
        for edit in edits {
            takes_at[edit.world] = Some(edit.at);
        }
        // Nearly always, nothing that is taken has been changed at this site.
        let source_takes = |edit: &&Taking| takes_at[edit.source] == Some(edit.at);
        if edits.iter().any(source_takes) && has_cycle(edits) {
            return Err(edits[0].at);
        }
    }
    Ok(())
}

/// Whether edits at one site use each other's results in a circle.
fn has_cycle(edits: &[&Taking]) -> bool {
    // For each world: how many of its sources are changed at this site and not ready yet; and the
    // worlds that take from it.
    let mut left: BTreeMap<usize, usize> = edits.iter().map(|edit| (edit.world, 0)).collect();
    let mut takers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for edit in edits.iter().filter(|edit| left.contains_key(&edit.source)) {
        takers.entry(edit.source).or_default().push(edit.world);
    }
    for taker in takers.values().flatten() {
        *left.entry(*taker).or_default() += 1;
    }
    let ready = left.iter().filter(|(_, left)| **left == 0);
    let mut ready: Vec<usize> = ready.map(|(world, _)| *world).collect();
    let mut done = 0;
    while let Some(world) = ready.pop() {
        done += 1;
        for taker in takers.get(&world).into_iter().flatten() {
            let left = left.entry(*taker).or_default();
            *left -= 1;
            if *left == 0 {
                ready.push(*taker);
            }
        }
    }
    done < left.len()
}
