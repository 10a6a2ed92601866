//! Some of the examples at a time.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::Site;

use crate::engine::{
    Indices, InputId, LogitPositions, Plan, PlanError, ReadId, Units, WorldId, WorldInput,
};

/// The indices of `batch` examples, at most `size` at a time.
pub(in crate::methods) fn parts(batch: usize, size: usize) -> Vec<Vec<usize>> {
    let size = size.clamp(1, batch.max(1));
    let starts = (0..batch).step_by(size);
    let parts = starts.map(|start| (start..batch.min(start + size)).collect());
    parts.collect()
}

/// A plan with these examples of some inputs.
pub(in crate::methods) fn plan_of<B: Backend, const N: usize>(
    inputs: [&WorldInput<B>; N],
    examples: &[usize],
) -> Result<(Plan<B>, [InputId; N]), PlanError> {
    let mut plan = Plan::new();
    let inputs = inputs.map(|input| plan.input(input.clone()));
    Ok((plan.examples(examples)?, inputs))
}

/// The same on the backend with gradients.
pub(in crate::methods) fn tracked_plan_of<A: AutodiffBackend, const N: usize>(
    inputs: [&WorldInput<A::InnerBackend>; N],
    examples: &[usize],
) -> Result<(Plan<A>, [InputId; N]), PlanError> {
    let (plan, inputs) = plan_of(inputs, examples)?;
    Ok((plan.from_inner::<A>(), inputs))
}

/// Reads a world at some sites.
pub(in crate::methods) fn read_all<B: Backend>(
    plan: &mut Plan<B>,
    world: WorldId,
    sites: &[(Site, Units)],
) -> Vec<ReadId> {
    let sites = sites.iter();
    let reads = sites.map(|(site, units)| plan.read(world, *site, units.clone()));
    reads.collect()
}

/// The same units in a plan with some of the examples.
pub(super) fn units_of(units: &Units, examples: &[usize]) -> Units {
    Units {
        heads: indices_of(&units.heads, examples),
        positions: indices_of(&units.positions, examples),
    }
}

/// The same sites in a plan with some of the examples.
pub(super) fn sites_of(sites: &[(Site, Units)], examples: &[usize]) -> Vec<(Site, Units)> {
    let sites = sites.iter();
    let sites = sites.map(|(site, units)| (*site, units_of(units, examples)));
    sites.collect()
}

/// The same positions in a plan with some of the examples.
pub(in crate::methods) fn positions_of(
    positions: LogitPositions,
    examples: &[usize],
) -> LogitPositions {
    match positions {
        LogitPositions::Each(each) => LogitPositions::Each(chosen(&each, examples)),
        other => other,
    }
}

fn indices_of(indices: &Indices, examples: &[usize]) -> Indices {
    match indices {
        Indices::Each(each) => Indices::Each(chosen(each, examples)),
        other => other.clone(),
    }
}

fn chosen(each: &[Vec<usize>], examples: &[usize]) -> Vec<Vec<usize>> {
    examples.iter().map(|it| each[*it].clone()).collect()
}

/// The number of positions whose logits are read.
pub(in crate::methods) fn logit_count(positions: &LogitPositions, pos: usize) -> usize {
    positions.count(pos)
}
