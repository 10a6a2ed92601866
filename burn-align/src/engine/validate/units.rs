//! Checking the parts of activations that edits and reads name.

use std::fmt;

use burn_align_models::{ModelLayout, Site, SiteDims, SiteWidth};

use crate::engine::groups::Sizes;
use crate::engine::plan::{Edit, LogitPositions, WorldId};
use crate::engine::stages::{Stage, Stages};
use crate::engine::{Indices, PlanError, Units};

/// Checks parts of activations against the sizes of a plan and a model.
pub(super) struct Checker<'a> {
    pub(super) layout: &'a ModelLayout,
    pub(super) stages: &'a Stages,
    pub(super) sizes: &'a Sizes,
    /// The first stage that worlds run.
    pub(super) start: Stage,
}

impl Checker<'_> {
    /// What an intervention gets of these units: `[batch, unit, d_site]`.
    pub(super) fn shape(
        &self,
        world: WorldId,
        site: Site,
        units: &Units,
    ) -> Result<[usize; 3], PlanError> {
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
    pub(super) fn logits(
        &self,
        world: WorldId,
        positions: &LogitPositions,
    ) -> Result<(), PlanError> {
        let input = self.sizes.of(world.0);
        // Every example has a last token, which is computed unless keys and values are cached.
        if *positions == LogitPositions::Last && input.starts.is_none() {
            return Ok(());
        }
        let units = positions.units(&input.lengths);
        self.positions(world, &units.positions, &"logits")?;
        Ok(())
    }

    /// Checks that no padding replaces a token, if all positions are taken.
    pub(super) fn lengths(
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
