//! What every attribution checks before it computes anything.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::{AlignableTransformer, Site};

use super::{AttributionError, Metric, Patching};
use crate::engine::{Plan, Units, WorldInput};

/// Checks that an input, the units to attribute to, and the metric fit the model.
pub(super) fn check_input<A, M, T>(
    model: &M,
    input: &WorldInput<A::InnerBackend>,
    nodes: &[(Site, Units)],
    metric: &T,
) -> Result<(), AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    let plan = reading(input, nodes, metric)?;
    plan.from_inner::<A>().explain(model)?;
    metric.check(input.batch(), model.dims().vocab)
}

/// The same for both prompts, without gradients.
pub(in crate::methods) fn check_patching<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    nodes: &[(Site, Units)],
    metric: &T,
) -> Result<(), AttributionError> {
    patching.check()?;
    for input in [patching.base(), patching.source()] {
        reading(input, nodes, metric)?.explain(model)?;
    }
    metric.check(patching.batch(), model.dims().vocab)
}

/// The same for both prompts.
pub(in crate::methods) fn check_tracked<A, M, T>(
    model: &M,
    patching: &Patching<A::InnerBackend>,
    nodes: &[(Site, Units)],
    metric: &T,
) -> Result<(), AttributionError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A>,
    T: Metric,
{
    patching.check()?;
    for input in [patching.base(), patching.source()] {
        check_input::<A, M, T>(model, input, nodes, metric)?;
    }
    Ok(())
}

/// A plan that reads what will be read.
fn reading<B: Backend, T: Metric>(
    input: &WorldInput<B>,
    nodes: &[(Site, Units)],
    metric: &T,
) -> Result<Plan<B>, AttributionError> {
    if nodes.is_empty() {
        return Err(AttributionError::Nothing { what: "node" });
    }
    let mut plan = Plan::new();
    let input = plan.input(input.clone());
    let world = plan.world(input, []);
    for (site, units) in nodes {
        plan.read(world, *site, units.clone());
    }
    plan.read_logits(world, metric.positions());
    Ok(plan)
}
