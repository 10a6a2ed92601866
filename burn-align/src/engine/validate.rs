//! Checking a plan before anything is computed.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_align_models::{
    AlignableTransformer, InputKinds, Mixing, ModelDims, ModelLayout, Site, SiteDims, SiteWidth,
    TokenBatch, TokensError,
};

use super::cache::Continued;
use super::groups::Sizes;
use super::marks::Mark;
use super::plan::{Edit, LogitPositions, Operand, Plan, Read, WorldId};
use super::reuse::Schedules;
use super::schedule::Schedule;
use super::stages::{Stage, Stages};
use super::{Indices, PlanError, Units, WorldInput};
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
    validate_reusing(plan, model, interventions, None)
}

/// As [`validate`], with schedules of earlier plans.
pub(super) fn validate_reusing<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    plan: &Plan<B>,
    model: &M,
    interventions: &[I],
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
    validate_with(plan, model, features, schedules)
}

/// As [`validate`], except for what depends on the interventions.
pub(super) fn validate_without_interventions<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
) -> Result<Arc<Schedule>, PlanError> {
    validate_with(plan, model, |_edit, _shape| Ok(None), None)
}

/// - features: gives the number of features that an edit's subspace is made of, if it is known, for
///   a change of `[batch, unit, d_site]`
/// - schedules: where to look for that of a plan of the same structure
fn validate_with<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
    features: impl Fn(&Edit, [usize; 3]) -> Result<Option<usize>, PlanError>,
    schedules: Option<&Schedules>,
) -> Result<Arc<Schedule>, PlanError> {
    let layout = model.layout();
    check_inputs(plan, layout)?;
    let sizes = Sizes::new(plan);
    let known = schedules.filter(|_| has_own_ids(plan));
    if let Some(known) = known.and_then(|known| known.find(plan, layout, &sizes)) {
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
        plan,
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

/// Checks that the keys and values of worlds can be kept.
pub(super) fn check_continuable<B: Backend>(
    plan: &Plan<B>,
    layout: &ModelLayout,
    worlds: &[WorldId],
) -> Result<(), PlanError> {
    let attends_twice = layout.layers().iter().any(|layer| {
        let sublayers = layer.sublayers().iter();
        let attentions = sublayers.filter(|it| matches!(it.mixing(), Mixing::Causal { .. }));
        attentions.count() > 1
    });
    let needs_rows = !Stages::new(layout).run_suffixes();
    let logits = plan.open_reads().filter_map(|(_, read)| match read {
        Read::Logits { world, .. } => Some(*world),
        Read::Activation { .. } => None,
    });
    let logits: HashSet<WorldId> = logits.collect();
    for world in worlds {
        check_world(plan, *world)?;
        let reason = match plan.input_of(*world) {
            _ if needs_rows => "a layer of the model needs whole rows",
            _ if attends_twice => "a layer of the model attends twice",
            WorldInput::Features(_) => "its input is vectors, not tokens",
            WorldInput::Resumed(_) => "the plan was frozen",
            _ if !logits.contains(world) => "none of its logits are read",
            WorldInput::Tokens(_) | WorldInput::Continued(_) => continue,
        };
        return Err(PlanError::NotContinuable {
            world: world.0,
            reason,
        });
    }
    Ok(())
}

fn check_inputs<B: Backend>(plan: &Plan<B>, layout: &ModelLayout) -> Result<(), PlanError> {
    let (dims, kinds) = (layout.dims(), layout.inputs());
    let (mut tokens, mut resumed, mut continued) = (0, 0, 0);
    let is_continued = |input: &WorldInput<B>| matches!(input, WorldInput::Continued(_));
    let needs_rows = plan.inputs.iter().any(is_continued) && !Stages::new(layout).run_suffixes();
    // Rows share caches.
    let mut fitting: HashSet<usize> = HashSet::new();
    for (index, input) in plan.inputs.iter().enumerate() {
        let found = match input {
            WorldInput::Tokens(_) => InputKinds {
                tokens: true,
                features: None,
            },
            WorldInput::Features(x) => InputKinds::features(x.dims()[2]),
            WorldInput::Resumed(_) => kinds,
            WorldInput::Continued(_) => InputKinds {
                tokens: true,
                features: None,
            },
        };
        if (found.tokens && !kinds.tokens)
            || (found.features.is_some() && found.features != kinds.features)
        {
            return Err(PlanError::InputKind {
                input: index,
                expected: kinds,
                found,
            });
        }
        let checked = match input {
            WorldInput::Tokens(batch) => {
                tokens += 1;
                batch.check(dims)
            }
            WorldInput::Features(features) => check_features_input(features.dims(), dims),
            WorldInput::Resumed(_) => {
                resumed += 1;
                Ok(())
            }
            WorldInput::Continued(row) => {
                continued += 1;
                let is_new = fitting.insert(Arc::as_ptr(&row.past.cache) as usize);
                if needs_rows || (is_new && !row.past.fits(layout)) {
                    return Err(PlanError::CacheMisfit { input: index });
                }
                check_continued(row, dims)
            }
        };
        checked.map_err(|cause| PlanError::Input {
            input: index,
            cause,
        })?;
    }
    if [tokens, resumed, continued]
        .iter()
        .any(|count| *count != 0 && *count != plan.inputs.len())
    {
        return Err(PlanError::MixedInputs);
    }
    Ok(())
}

/// Checks the sizes of vectors, as for token ids.
fn check_features_input(
    [batch, pos, _feature]: [usize; 3],
    dims: &ModelDims,
) -> Result<(), TokensError> {
    match dims.max_positions {
        _ if batch == 0 => Err(TokensError::EmptyBatch),
        _ if pos == 0 => Err(TokensError::EmptyExample { example: 0 }),
        Some(max_positions) if pos > max_positions => Err(TokensError::TooLong {
            example: 0,
            found: pos,
            max_positions,
        }),
        _ => Ok(()),
    }
}

/// Checks the new tokens of a row, and its length.
fn check_continued<B: Backend>(row: &Continued<B>, dims: &ModelDims) -> Result<(), TokensError> {
    let new = TokenBatch::new(vec![row.tokens.clone()])?;
    new.check(dims)?;
    match dims.max_positions {
        Some(max_positions) if row.pos() > max_positions => Err(TokensError::TooLong {
            example: 0,
            found: row.pos(),
            max_positions,
        }),
        _ => Ok(()),
    }
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

struct Checker<'a, B: Backend> {
    plan: &'a Plan<B>,
    layout: &'a ModelLayout,
    stages: &'a Stages,
    sizes: &'a Sizes,
    /// The first stage that worlds run.
    start: Stage,
}

impl<B: Backend> Checker<'_, B> {
    /// What an intervention gets of these units: `[batch, unit, d_site]`.
    fn shape(&self, world: WorldId, site: Site, units: &Units) -> Result<[usize; 3], PlanError> {
        let layout = self.layout;
        let Some(SiteDims { heads, width }) = layout.site(site) else {
            return Err(PlanError::NoSuchSite {
                site,
                layers: layout.layers().len(),
                lacks: layout.lacks(site),
            });
        };
        if self.start != Stage::Embed && self.stages.of(site) < self.start {
            return Err(PlanError::NotReached { site });
        }
        let input = self.sizes.of(world.0);
        if site.is_attention_pattern()
            && let Some(starts) = &input.starts
        {
            let example = starts.iter().position(|start| *start > 0).unwrap_or(0);
            let start = starts[example];
            let at = site.to_string();
            return Err(PlanError::NotKept { at, example, start });
        }
        let head_count = self.heads(world, &units.heads, heads, site)?;
        let unit_count = self.positions(world, &units.positions, &site)?;
        let width = match width {
            SiteWidth::Features(width) => width,
            SiteWidth::KeyPositions => input.pos,
        };
        Ok([input.batch, unit_count, head_count * width])
    }

    fn heads(
        &self,
        world: WorldId,
        heads: &Indices,
        size: usize,
        site: Site,
    ) -> Result<usize, PlanError> {
        let at = format_args!("heads at {site}");
        let batch = self.sizes.of(world.0).batch;
        check_lists(heads, batch, &at, |_example, head| {
            if head < size {
                return Ok(());
            }
            Err(PlanError::HeadOutOfRange {
                site,
                found: head,
                heads: size,
            })
        })?;
        Ok(heads.count(size))
    }

    fn positions(
        &self,
        world: WorldId,
        positions: &Indices,
        at: &dyn fmt::Display,
    ) -> Result<usize, PlanError> {
        let input = self.sizes.of(world.0);
        let lengths = &input.lengths;
        check_lists(positions, input.batch, at, |example, position| {
            if position < lengths[example] {
                return Ok(());
            }
            Err(PlanError::PositionOutOfRange {
                at: at.to_string(),
                example,
                found: position,
                length: lengths[example],
            })
        })?;
        for (example, start) in input.starts.iter().flatten().enumerate() {
            let is_before = match positions.listed(example) {
                Some(positions) => positions.iter().any(|position| position < start),
                None => *start > 0 && input.pos > 0,
            };
            if is_before {
                return Err(PlanError::NotKept {
                    at: at.to_string(),
                    example,
                    start: *start,
                });
            }
        }
        Ok(positions.count(input.pos))
    }

    /// Checks the positions at which logits are read.
    fn logits(&self, world: WorldId, positions: &LogitPositions) -> Result<(), PlanError> {
        // Every example has a last token, which is computed unless keys and values are cached.
        if *positions == LogitPositions::Last && self.sizes.of(world.0).starts.is_none() {
            return Ok(());
        }
        let units = positions.units(self.plan.input_of(world));
        self.positions(world, &units.positions, &"logits")?;
        Ok(())
    }

    /// Checks that no padding replaces a token, if all positions are taken.
    fn lengths(
        &self,
        world: WorldId,
        edit: &Edit,
        source: WorldId,
        units: &Units,
    ) -> Result<(), PlanError> {
        if units.positions != Indices::All {
            return Ok(());
        }
        let input = self.sizes.of(world.0);
        let sources = self.sizes.of(source.0);
        for (example, (length, found)) in input.lengths.iter().zip(&sources.lengths).enumerate() {
            let positions = &edit.units.positions;
            let padded = positions.of(example, input.pos).split_off(*found);
            if padded.into_iter().any(|position| position < *length) {
                return Err(PlanError::PaddingTaken {
                    site: edit.site,
                    example,
                    found: *found,
                    pos: sources.pos,
                });
            }
        }
        Ok(())
    }
}

/// Checks the indices of every example: as many as in the first, none twice, all in range.
fn check_lists(
    indices: &Indices,
    batch: usize,
    at: &dyn fmt::Display,
    allowed: impl Fn(usize, usize) -> Result<(), PlanError>,
) -> Result<(), PlanError> {
    if *indices == Indices::All {
        return Ok(());
    }
    if let Indices::Each(examples) = indices
        && examples.len() != batch
    {
        return Err(PlanError::WrongBatch {
            at: at.to_string(),
            batch,
            found: examples.len(),
        });
    }
    let expected = indices.count(0);
    if expected == 0 {
        return Err(PlanError::NoUnits { at: at.to_string() });
    }
    for example in 0..batch {
        let list = indices.listed(example).unwrap_or_default();
        if list.len() != expected {
            return Err(PlanError::RaggedUnits {
                at: at.to_string(),
                example,
                expected,
                found: list.len(),
            });
        }
        let ascends = list.is_sorted_by(|a, b| a < b);
        for (i, index) in list.iter().enumerate() {
            allowed(example, *index)?;
            if !ascends && list[..i].contains(index) {
                return Err(PlanError::RepeatedUnit {
                    at: at.to_string(),
                    example,
                    found: *index,
                });
            }
        }
    }
    Ok(())
}
