//! Schedules that are used again.
//!
//! Training runs plans that differ only in their examples and in what its interventions have
//! learned. Such plans are laid out alike, so all but the first take the schedule of an earlier
//! one. What a schedule and its checks depend on is compared in full; token ids, and what
//! interventions accept, are checked every time.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::Backend;
use burn_align_models::ModelLayout;

use super::groups::Sizes;
use super::plan::{Edit, Operand, Plan, Read, World, WorldInput};
use super::schedule::Schedule;
use super::stages::Stage;

/// Schedules of plans, kept by whoever runs plans so that plans of the same structure need not be
/// laid out again. Clones share them.
///
/// Plans have the same structure if they agree in everything but the values of inputs and
/// constants, which must have the same sizes. Small plans are kept, and few of them: laying out a
/// large one takes little time beside its run, and its layouts take memory in each layer.
#[derive(Clone, Default)]
pub struct Schedules {
    /// The one used last comes last.
    known: Arc<Mutex<Vec<Arc<Known>>>>,
}

impl Schedules {
    /// Most plans that are kept.
    const MOST_PLANS: usize = 8;
    /// Most rows (examples of worlds) and reads of a plan that is kept.
    const MOST_ROWS: usize = 2048;

    /// No schedules yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a plan of this structure, whose ids are all its own.
    pub(super) fn find<B: Backend>(
        &self,
        plan: &Plan<B>,
        layout: &ModelLayout,
        sizes: &Sizes,
    ) -> Option<Arc<Known>> {
        if !is_worth_keeping(plan, sizes) {
            return None;
        }
        let mut all = self.known();
        let place = all.iter().position(|it| it.fits(plan, layout, sizes))?;
        let found = all.remove(place);
        all.push(found.clone());
        Some(found)
    }

    /// Keeps the schedule of a plan that has been checked.
    ///
    /// - shapes: of what each edit changes, `[batch, unit, d_site]`
    pub(super) fn keep<B: Backend>(
        &self,
        plan: &Plan<B>,
        layout: &ModelLayout,
        schedule: &Arc<Schedule>,
        shapes: Vec<[usize; 3]>,
    ) {
        if !is_worth_keeping(plan, &schedule.sizes) {
            return;
        }
        let known = Known {
            layout: layout.clone(),
            start: plan.start(),
            worlds: plan.worlds.clone(),
            reads: plan.reads.clone(),
            is_open: plan.known.iter().map(Option::is_none).collect(),
            constants: plan.constants.iter().map(|it| it.dims()).collect(),
            schedule: schedule.clone(),
            shapes,
        };
        let mut all = self.known();
        if all.len() == Self::MOST_PLANS {
            all.remove(0);
        }
        all.push(Arc::new(known));
    }
}

impl fmt::Debug for Schedules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schedules")
    }
}

/// A continued row is longer every time.
fn is_worth_keeping<B: Backend>(plan: &Plan<B>, sizes: &Sizes) -> bool {
    let mut inputs = plan.inputs.iter();
    let rows = (0..plan.worlds.len()).map(|world| sizes.of(world).batch);
    rows.sum::<usize>() + plan.reads.len() <= Schedules::MOST_ROWS
        && !inputs.any(|input| matches!(input, WorldInput::Continued(_)))
}

/// The schedule of a plan, and everything that it and the plan's checks follow from, apart from
/// token ids and interventions. The marks in ids play no part.
pub(super) struct Known {
    layout: ModelLayout,
    start: Stage,
    worlds: Vec<World>,
    reads: Vec<Read>,
    /// Whether each read has no value yet.
    is_open: Vec<bool>,
    constants: Vec<[usize; 3]>,
    /// It has the sizes of the inputs.
    schedule: Arc<Schedule>,
    shapes: Vec<[usize; 3]>,
}

impl Known {
    pub(super) fn schedule(&self) -> &Arc<Schedule> {
        &self.schedule
    }

    /// What each edit changes, in the order of the plan, `[batch, unit, d_site]`.
    pub(super) fn shapes(&self) -> &[[usize; 3]] {
        &self.shapes
    }

    /// Whether a plan has this structure.
    fn fits<B: Backend>(&self, plan: &Plan<B>, layout: &ModelLayout, sizes: &Sizes) -> bool {
        let is_open = plan.known.iter().map(Option::is_none);
        let constants = plan.constants.iter().map(|it| it.dims());
        // The quick ones first.
        self.start == plan.start()
            && self.is_open.iter().copied().eq(is_open)
            && self.constants.iter().copied().eq(constants)
            && *self.schedule.sizes == *sizes
            && are_same(&self.reads, &plan.reads, same_read)
            && are_same(&self.worlds, &plan.worlds, same_world)
            && self.layout == *layout
    }
}

fn are_same<T>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

fn same_read(a: &Read, b: &Read) -> bool {
    match (a, b) {
        (
            Read::Activation { world, site, units },
            Read::Activation {
                world: other,
                site: other_site,
                units: other_units,
            },
        ) => world.0 == other.0 && site == other_site && units == other_units,
        (
            Read::Logits { world, positions },
            Read::Logits {
                world: other,
                positions: other_positions,
            },
        ) => world.0 == other.0 && positions == other_positions,
        (Read::Activation { .. } | Read::Logits { .. }, _) => false,
    }
}

fn same_world(a: &World, b: &World) -> bool {
    let World {
        input,
        edits,
        frozen,
    } = a;
    input.0 == b.input.0 && *frozen == b.frozen && are_same(edits, &b.edits, same_edit)
}

fn same_edit(a: &Edit, b: &Edit) -> bool {
    let Edit {
        site,
        units,
        features,
        intervention,
        operand,
    } = a;
    *site == b.site
        && *units == b.units
        && *features == b.features
        && *intervention == b.intervention
        && same_operand(operand, &b.operand)
}

fn same_operand(a: &Operand, b: &Operand) -> bool {
    match (a, b) {
        (Operand::None, Operand::None) => true,
        (Operand::Constant(id), Operand::Constant(other)) => id.0 == other.0,
        (
            Operand::Activation { world, site, units },
            Operand::Activation {
                world: other,
                site: other_site,
                units: other_units,
            },
        ) => world.0 == other.0 && site == other_site && units == other_units,
        (Operand::None | Operand::Constant(_) | Operand::Activation { .. }, _) => false,
    }
}
