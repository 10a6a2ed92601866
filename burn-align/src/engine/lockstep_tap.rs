//! Edits and reads of many worlds at once.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{Site, Tap};

use super::cells::{Cells, feature_count, feature_mask, gather, gather_to_keep, scatter};
use super::execute::Run;
use super::groups::GroupOf;
use super::hash::QuickSet;
use super::plan::{Edit, Operand, Read, WorldId};
use super::schedule::StageGroups;
use super::{Indices, PlanError, Units};
use crate::interventions::{Intervention, Operands};

/// What happens at one site, to the worlds of one stage.
#[derive(Default)]
struct SiteWork<'p> {
    /// Edits of each group, in order.
    edits: Vec<(usize, &'p Edit)>,
    /// Activations to keep for edits elsewhere.
    keeps: Vec<(WorldId, &'p Units)>,
    /// Activations to return.
    reads: Vec<(usize, WorldId, &'p Units)>,
}

/// What edits made by one call of an intervention have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    intervention: usize,
    in_subspace: bool,
    unit: usize,
    d_site: usize,
}

/// Makes the edits and the reads of one stage.
pub(super) struct LockstepTap<'r, 'a, B: Backend, I> {
    pub(super) run: &'r mut Run<'a, B, I>,
    work: BTreeMap<Site, SiteWork<'a>>,
    stage: &'a StageGroups,
    /// A world of each group.
    worlds: Vec<WorldId>,
    group_of: GroupOf,
}

impl<'r, 'a, B: Backend, I: Intervention<B>> LockstepTap<'r, 'a, B, I> {
    pub(super) fn new(run: &'r mut Run<'a, B, I>, pass: usize, stage: &'a StageGroups) -> Self {
        let mut tap = Self {
            run,
            work: BTreeMap::new(),
            stage,
            worlds: Vec::new(),
            group_of: GroupOf::default(),
        };
        let (plan, schedule, whole) = (tap.run.plan, tap.run.schedule, tap.run.whole);
        let reads = schedule.reads.at(stage.stage);
        // Including worlds that run in another part.
        let takers = whole.takers.at(stage.stage);
        // At most stages, nothing happens.
        if stage.edits.is_empty() && reads.is_empty() && takers.is_empty() {
            return tap;
        }
        let firsts = stage.groups.firsts();
        tap.worlds = firsts.map(|world| plan.world_id(world)).collect();
        tap.group_of = stage.groups.by_world();
        for made in &stage.edits {
            let edit = &plan.worlds[made.world].edits[made.index];
            let work = tap.work.entry(edit.site).or_default();
            work.edits.push((made.group, edit));
        }
        for (taker, index) in takers {
            let edit = &plan.worlds[*taker].edits[*index];
            if let Operand::Activation { world, site, units } = &edit.operand
                && tap.group_of.get(*world).is_some()
            {
                // A world whose operand is available at once in this part may run again in a later
                // one.
                let taken_at_once = !tap.run.in_parts
                    && *site == edit.site
                    && schedule.pass_of[*taker] == Some(pass);
                if !taken_at_once {
                    tap.work
                        .entry(*site)
                        .or_default()
                        .keeps
                        .push((*world, units));
                }
            }
        }
        for index in reads {
            if let Read::Activation { world, site, units } = &plan.reads[*index]
                && tap.group_of.get(*world).is_some()
            {
                let work = tap.work.entry(*site).or_default();
                work.reads.push((*index, *world, units));
            }
        }
        tap
    }

    pub(super) fn is_idle(&self) -> bool {
        self.work.is_empty()
    }

    /// Checks that the stage has tapped everything it should.
    pub(super) fn finish(self) -> Result<(), PlanError> {
        match self.work.into_keys().next() {
            None => Ok(()),
            Some(site) => Err(PlanError::NeverTapped { site }),
        }
    }

    /// Makes the edits of all groups at one site.
    ///
    /// In each round every group may make its next edit, unless it uses the result of an edit that
    /// has not been made yet. Edits with the same intervention are made in one call.
    fn make_edits(
        &self,
        site: Site,
        edits: &[(usize, &'a Edit)],
        mut activation: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let mut waiting: Vec<(usize, &Edit)> = edits.to_vec();
        while !waiting.is_empty() {
            let busy: QuickSet<usize> = waiting.iter().map(|(group, _)| *group).collect();
            let mut moved: QuickSet<usize> = QuickSet::default();
            let (ready, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(group, edit)| {
                    let waits = self
                        .source_here(site, edit)
                        .is_some_and(|source| busy.contains(&source));
                    // After the first edit that has to wait, the group's other edits wait as well.
                    moved.insert(*group) && !waits
                });
            waiting = later;
            let mut calls: BTreeMap<Call, Vec<(usize, &Edit)>> = BTreeMap::new();
            for (group, edit) in ready {
                let [unit, d_site] = self.shape(site, group, edit, &activation);
                let call = Call {
                    intervention: edit.intervention,
                    in_subspace: edit.features != Indices::All,
                    unit,
                    d_site,
                };
                calls.entry(call).or_default().push((group, edit));
            }
            for (call, edits) in calls {
                activation = self.call(site, call, &edits, activation);
            }
        }
        activation
    }

    /// The group whose rows of this activation are the operand of an edit.
    fn source_here(&self, site: Site, edit: &Edit) -> Option<usize> {
        match &edit.operand {
            Operand::Activation {
                world,
                site: source,
                ..
            } if *source == site => self.group_of.get(*world),
            _ => None,
        }
    }

    /// What an edit changes: number of units and width of each.
    fn shape(
        &self,
        site: Site,
        group: usize,
        edit: &Edit,
        activation: &Tensor<B, 4>,
    ) -> [usize; 2] {
        let [_row, heads, _pos, _width] = activation.dims();
        let world = self.world_of(group);
        [
            edit.units
                .positions
                .count(self.run.plan.input_of(world).pos()),
            edit.units.heads.count(heads) * self.own_width(site, world, activation),
        ]
    }

    /// The width of a world's cells, without key positions that only longer inputs have.
    fn own_width(&self, site: Site, world: WorldId, activation: &Tensor<B, 4>) -> usize {
        let [_row, _heads, _pos, width] = activation.dims();
        match site.is_attention_pattern() {
            true => self.run.plan.input_of(world).pos(),
            false => width,
        }
    }

    /// One world of a group.
    fn world_of(&self, group: usize) -> WorldId {
        self.worlds[group]
    }

    /// Makes several edits by one intervention in one call.
    fn call(
        &self,
        site: Site,
        call: Call,
        edits: &[(usize, &Edit)],
        activation: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let (unit, d_site) = (call.unit, call.d_site);
        let [_row, heads, _pos, width] = activation.dims();
        let own_width = self.own_width(site, self.world_of(edits[0].0), &activation);
        let mut cells = Cells::default();
        for (group, edit) in edits {
            cells.append(self.cells(site, self.world_of(*group), &edit.units, heads));
        }
        let tables = &self.run.tables;
        let old = gather(&activation, &cells, tables); // [cell, width]
        // What does not belong to the world. Nothing else is held of the old values, so that the
        // new ones can be written in place.
        let more = width - own_width;
        let rest = (more > 0).then(|| old.clone().narrow(1, own_width, more));
        let base = narrowed(old, own_width);
        let batch = base.shape().num_elements() / (unit * d_site);
        let base = base.reshape([batch, unit, d_site]);
        let source = self.sources(site, edits, [unit, d_site], &activation);
        let subspace = call.in_subspace.then(|| {
            let features = edits.iter().map(|(group, edit)| {
                let input = self.run.plan.input_of(self.world_of(*group));
                (&edit.features, input.batch())
            });
            let count = feature_count(&self.run.interventions[call.intervention], unit, d_site);
            feature_mask(features, count, tables, &base.device())
        });
        let changed = self.run.interventions[call.intervention]
            .apply(base, Operands::new(source, subspace))
            .cast(activation.dtype())
            .reshape([batch * unit * d_site / own_width, own_width]);
        let changed = match rest {
            None => changed,
            Some(rest) => Tensor::cat(vec![changed, rest], 1),
        };
        scatter(activation, &cells, changed, tables)
    }

    /// The stacked operands of several edits, `[batch, unit, d_site]`.
    fn sources(
        &self,
        site: Site,
        edits: &[(usize, &Edit)],
        [unit, d_site]: [usize; 2],
        activation: &Tensor<B, 4>,
    ) -> Option<Tensor<B, 3>> {
        let [_row, heads, _pos, _width] = activation.dims();
        let own_width = self.own_width(site, self.world_of(edits[0].0), activation);
        let mut parts: Vec<Tensor<B, 3>> = Vec::new();
        // Adjacent edits that use this same activation are handled together.
        let mut here = Cells::default();
        let take = |cells: &mut Cells, parts: &mut Vec<Tensor<B, 3>>| {
            if !cells.is_empty() {
                let taken = gather(activation, &std::mem::take(cells), &self.run.tables);
                let taken = narrowed(taken, own_width);
                let size = taken.shape().num_elements();
                parts.push(taken.reshape([size / (unit * d_site), unit, d_site]));
            }
        };
        for (group, edit) in edits {
            match &edit.operand {
                Operand::None => return None,
                Operand::Activation { world, units, .. }
                    if self.source_here(site, edit).is_some() =>
                {
                    here.append(self.cells(site, *world, units, heads));
                }
                Operand::Activation { world, site, units } => {
                    take(&mut here, &mut parts);
                    parts.push(self.run.kept[&(*world, *site, units)].clone());
                }
                Operand::Constant(id) => {
                    take(&mut here, &mut parts);
                    let batch = self.run.plan.input_of(self.world_of(*group)).batch();
                    let constant = self.run.plan.constants[id.0].clone();
                    parts.push(
                        constant
                            .cast(activation.dtype())
                            .expand([batch, unit, d_site]),
                    );
                }
            }
        }
        take(&mut here, &mut parts);
        Some(match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 0),
        })
    }

    /// Units of a world, `[batch, unit, d_site]`.
    fn read(
        &self,
        site: Site,
        world: WorldId,
        units: &Units,
        activation: &Tensor<B, 4>,
    ) -> Tensor<B, 3> {
        let [_row, heads, _pos, _width] = activation.dims();
        let width = self.own_width(site, world, activation);
        let input = self.run.plan.input_of(world);
        let cells = self.cells(site, world, units, heads);
        let taken = gather_to_keep(activation, &cells, &self.run.tables);
        narrowed(taken, width).reshape([
            input.batch(),
            units.positions.count(input.pos()),
            units.heads.count(heads) * width,
        ])
    }

    fn cells(&self, site: Site, world: WorldId, units: &Units, heads: usize) -> Cells {
        let input = self.run.plan.input_of(world);
        let layout = self.stage.layout_at(&self.run.schedule.stages, site);
        let first_row = layout.first_row(self.group_of.at(world));
        let sizes = [input.pos(), heads];
        Cells::of_units(units, input.batch(), sizes, |example, head, position| {
            layout.cell(first_row + example, [head, heads], position)
        })
    }
}

impl<B: Backend, I: Intervention<B>> Tap<B> for LockstepTap<'_, '_, B, I> {
    fn wants(&self, site: Site) -> bool {
        self.work.contains_key(&site)
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let work = self
            .work
            .remove(&site)
            .expect("only wanted sites are visited");
        let activation = self.make_edits(site, &work.edits, activation);
        for (world, units) in work.keeps {
            let value = self.read(site, world, units, &activation);
            self.run.kept.insert((world, site, units), value);
        }
        for (index, world, units) in work.reads {
            self.run.values[index] = Some(self.read(site, world, units, &activation));
        }
        activation
    }
}

/// The first features, `[cell, width]`.
fn narrowed<B: Backend>(x: Tensor<B, 2>, width: usize) -> Tensor<B, 2> {
    match x.dims() {
        [_cell, all] if all == width => x,
        _ => x.narrow(1, 0, width),
    }
}
