//! Checking a plan before anything is computed.

mod inputs;
mod units;

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

pub(super) use self::inputs::check_continuable;
use self::inputs::check_inputs;
use self::units::Checker;
use super::groups::Sizes;
use super::marks::Mark;
use super::plan::{Edit, Operand, Plan, Read, WorldId};
use super::reuse::Schedules;
use super::schedule::Schedule;
use super::stages::Stages;
use super::{Indices, PlanError};
use crate::interventions::Intervention;

impl<B: Backend> Plan<B> {
    /// Checks the plan against a model and interventions, without computing anything.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn check<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
    ) -> Result<(), PlanError> {
        validate(self, model, interventions).map(drop)
    }

    /// Number of positions of each example of a world.
    pub(crate) fn lengths_of(&self, world: WorldId) -> Result<Vec<usize>, PlanError> {
        check_world(self, world)?;
        Ok(self.input_of(world).lengths())
    }
}

/// Checks the plan and lays out its passes.
pub(super) fn validate<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    plan: &Plan<B>,
    model: &M,
    interventions: &[I],
) -> Result<Arc<Schedule>, PlanError> {
    validate_keeping(plan, model, interventions, &[], None)
}

/// As [`validate`], of a run that keeps keys and values.
///
/// - keeping: the worlds of which it does, as [`check_continuable`] has found them
/// - schedules: those of earlier plans
pub(super) fn validate_keeping<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    plan: &Plan<B>,
    model: &M,
    interventions: &[I],
    keeping: &[WorldId],
    schedules: Option<&Schedules>,
) -> Result<Arc<Schedule>, PlanError> {
    let needs_source: Vec<bool> = interventions.iter().map(I::needs_source).collect();
    for edit in plan.worlds.iter().flat_map(|world| &world.edits) {
        check_intervention(edit, &needs_source)?;
    }
    let features = |edit: &Edit, [_batch, units, d_site]: [usize; 3]| {
        interventions[edit.intervention]
            .features(units, d_site)
            .map(Some)
            .map_err(|cause| PlanError::Misfit {
                site: edit.site,
                intervention: edit.intervention,
                cause,
            })
    };
    validate_with(plan, model, features, keeping, schedules)
}

/// As [`validate`], except for what depends on the interventions.
pub(super) fn validate_without_interventions<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
    keeping: &[WorldId],
) -> Result<Arc<Schedule>, PlanError> {
    validate_with(plan, model, |_edit, _shape| Ok(None), keeping, None)
}

/// - features: gives the number of features that an edit's subspace is made of, if it is known, for
///   a change of `[batch, unit, d_site]`
/// - keeping: worlds whose keys and values are kept
/// - schedules: where to look for that of a plan of the same structure
fn validate_with<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
    features: impl Fn(&Edit, [usize; 3]) -> Result<Option<usize>, PlanError>,
    keeping: &[WorldId],
    schedules: Option<&Schedules>,
) -> Result<Arc<Schedule>, PlanError> {
    let layout = model.layout();
    check_inputs(plan, model)?;
    let sizes = Sizes::new(plan, keeping);
    let schedules = schedules.filter(|_| has_own_ids(plan));
    if let Some(known) = schedules.and_then(|known| known.find(plan, layout, &sizes)) {
        let edits = plan.worlds.iter().flat_map(|world| &world.edits);
        for (edit, shape) in edits.zip(known.shapes()) {
            check_features(edit, shape[0], features(edit, *shape)?)?;
        }
        return Ok(known.schedule().clone());
    }
    // Done first, because an edit may use a world that comes later.
    for world in &plan.worlds {
        check_id("input", world.input.0, world.input.1, &plan.marks.inputs)?;
    }
    let stages = Stages::new(layout);
    let checker = Checker {
        layout,
        stages: &stages,
        sizes: &sizes,
        start: plan.start(),
    };
    let mut shapes: Vec<[usize; 3]> = Vec::new();
    for (world, edits) in plan
        .world_ids()
        .zip(plan.worlds.iter().map(|world| &world.edits))
    {
        for edit in edits {
            let expected = checker.shape(world, edit.site, &edit.units)?;
            let count = features(edit, expected)?;
            check_features(edit, expected[0], count)?;
            shapes.push(expected);
            let found = match &edit.operand {
                Operand::None => continue,
                Operand::Activation {
                    world: source,
                    site,
                    units,
                } => {
                    check_world(plan, *source)?;
                    checker.shape(*source, *site, units)?
                }
                Operand::Constant(id) => {
                    check_id("constant", id.0, id.1, &plan.marks.constants)?;
                    broadcast(plan.constants[id.0].dims(), expected)
                }
            };
            if found != expected {
                return Err(PlanError::OperandShape {
                    site: edit.site,
                    expected,
                    found,
                });
            }
            if let Operand::Activation {
                world: source,
                units,
                ..
            } = &edit.operand
            {
                checker.lengths(world, edit, *source, units)?;
            }
        }
    }
    for (_, read) in plan.open_reads() {
        check_world(plan, read.world())?;
        match read {
            Read::Activation { world, site, units } => {
                checker.shape(*world, *site, units)?;
            }
            Read::Logits { world, positions } => checker.logits(*world, positions)?,
        }
    }
    let schedule = Schedule::new(plan, stages, sizes);
    let schedule = Arc::new(schedule.map_err(|site| PlanError::Circular { site })?);
    if let Some(schedules) = schedules {
        schedules.keep(plan, layout, &schedule, shapes);
    }
    Ok(schedule)
}

/// Whether all ids in a plan are its own. Other plans are checked in full, to say what is wrong.
fn has_own_ids<B: Backend>(plan: &Plan<B>) -> bool {
    let marks = &plan.marks;
    let is_world = |world: WorldId| marks.worlds.get(world.0) == Some(&world.1);
    let mut reads = plan.reads.iter().map(Read::world);
    let mut worlds = plan.worlds.iter();
    let is_own = |edit: &Edit| match edit.operand {
        Operand::None => true,
        Operand::Activation { world, .. } => is_world(world),
        Operand::Constant(id) => marks.constants.get(id.0) == Some(&id.1),
    };
    reads.all(is_world)
        && worlds.all(|world| {
            let input = world.input;
            marks.inputs.get(input.0) == Some(&input.1) && world.edits.iter().all(is_own)
        })
}

fn check_intervention(edit: &Edit, needs_source: &[bool]) -> Result<(), PlanError> {
    let Some(needed) = needs_source.get(edit.intervention).copied() else {
        return Err(PlanError::NoSuchIntervention {
            site: edit.site,
            found: edit.intervention,
            count: needs_source.len(),
        });
    };
    if needed == (edit.operand != Operand::None) {
        return Ok(());
    }
    Err(PlanError::OperandPresence {
        site: edit.site,
        intervention: edit.intervention,
        needed,
    })
}

fn check_features(edit: &Edit, batch: usize, count: Option<usize>) -> Result<(), PlanError> {
    if let Indices::Each(examples) = &edit.features
        && examples.len() != batch
    {
        return Err(PlanError::WrongBatch {
            at: format!("features at {}", edit.site),
            batch,
            found: examples.len(),
        });
    }
    let Some(features) = count.filter(|_| edit.features != Indices::All) else {
        return Ok(());
    };
    for example in 0..batch {
        let mut named = edit.features.of(example, features).into_iter();
        if let Some(found) = named.find(|feature| *feature >= features) {
            return Err(PlanError::FeatureOutOfRange {
                site: edit.site,
                example,
                features,
                found,
            });
        }
    }
    Ok(())
}

/// Checks that an id belongs to this plan.
fn check_id(what: &'static str, found: usize, mark: Mark, marks: &[Mark]) -> Result<(), PlanError> {
    match marks.get(found) {
        Some(own) if *own == mark => Ok(()),
        _ => Err(PlanError::UnknownId {
            what,
            found,
            count: marks.len(),
        }),
    }
}

/// Checks that a world exists and has not been frozen.
fn check_world<B: Backend>(plan: &Plan<B>, world: WorldId) -> Result<(), PlanError> {
    check_id("world", world.0, world.1, &plan.marks.worlds)?;
    let input = plan.worlds[world.0].input;
    check_id("input", input.0, input.1, &plan.marks.inputs)?;
    match plan.worlds[world.0].frozen {
        true => Err(PlanError::Frozen { world: world.0 }),
        false => Ok(()),
    }
}

/// Axes of size 1 match any number of batch entries and units.
fn broadcast(found: [usize; 3], expected: [usize; 3]) -> [usize; 3] {
    let stretch = |axis: usize| match found[axis] {
        1 => expected[axis],
        size => size,
    };
    [stretch(0), stretch(1), found[2]]
}
