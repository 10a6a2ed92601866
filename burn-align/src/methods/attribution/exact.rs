//! The exact effects of nodes.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align_models::nn::ReusedMemory;
use burn_align_models::{AlignableTransformer, Site};

use super::check::check_patching;
use super::gradients::{REPLACE, interventions};
use super::parts::logit_count;
use super::{AttributionError, Metric, NodeEffects, Patching};
use crate::engine::{Edit, Plan, ReadId, RunOptions, Units, WorldId, read_numbers};

/// Numbers of logits that are read at a time: 256 MiB.
const LOGITS_AT_ONCE: usize = 1 << 26;

/// Patches each node by itself and measures the change of the metric: what
/// [`attribution_patching`](super::attribution_patching) estimates.
///
/// The nodes are worlds of one plan, so base and source run once, and each world only from its node
/// on. If all logits together would exceed 256 MiB, there are several plans.
///
/// # When it misleads
/// Patching one node says nothing about nodes that replace each other: the effect of two of them
/// need not be the sum of theirs.
///
/// # Errors
/// If a node, the prompts or the metric do not fit the model, if a prompt and its counterpart have
/// different lengths, if a budget is too small for one world, or if values stop being finite.
pub fn patch_nodes<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    nodes: &[(Site, Units)],
    metric: &T,
    options: &RunOptions,
) -> Result<NodeEffects, AttributionError> {
    let _memory = ReusedMemory::in_pass();
    check_patching(model, patching, nodes, metric)?;
    let worlds = nodes
        .iter()
        .map(|node| move |_plan: &mut Plan<B>, source: WorldId| vec![patched(node, source)]);
    measure(model, patching, worlds.collect(), metric, options)
}

/// The edit by which a node takes the source's activation.
pub(super) fn patched((site, units): &(Site, Units), source: WorldId) -> Edit {
    Edit::from_world(source, *site, units.clone(), REPLACE)
}

/// Measures the metric of the base, of the source, and of the base under the edits that each of
/// these functions makes, given the plan and the source's world.
pub(super) fn measure<B, M, T, F>(
    model: &M,
    patching: &Patching<B>,
    worlds: Vec<F>,
    metric: &T,
    options: &RunOptions,
) -> Result<NodeEffects, AttributionError>
where
    B: Backend,
    M: AlignableTransformer<B>,
    T: Metric,
    F: Fn(&mut Plan<B>, WorldId) -> Vec<Edit>,
{
    let batch = patching.batch();
    let examples: Vec<usize> = (0..batch).collect();
    let units = logit_count(&metric.positions(), patching.base().pos());
    let of_world = batch * units * model.dims().vocab;
    let at_once = (LOGITS_AT_ONCE / of_world.max(1)).max(1);
    let mut found = NodeEffects::unmeasured(patching.direction(), 0);
    for chunk in worlds.chunks(at_once) {
        let mut plan = Plan::<B>::new();
        let base_input = plan.input(patching.base().clone());
        let source_input = plan.input(patching.source().clone());
        let source = plan.world(source_input, []);
        let mut reads: Vec<ReadId> = Vec::new();
        if found.base.is_empty() {
            let base = plan.world(base_input, []);
            reads.push(plan.read_logits(base, metric.positions()));
            reads.push(plan.read_logits(source, metric.positions()));
        }
        for edits in chunk {
            let edits = edits(&mut plan, source);
            let world = plan.world(base_input, edits);
            reads.push(plan.read_logits(world, metric.positions()));
        }
        let results = plan.run_with(model, &interventions::<B>(), options)?;
        let values = reads.iter();
        let values = values.map(|read| metric.values(results.get(*read), &examples).detach());
        let numbers = read_numbers(Tensor::cat(values.collect(), 0))?;
        plan.check_finite(&numbers, model, &interventions::<B>(), options)?;
        let mut rows = numbers.chunks(batch);
        if found.base.is_empty() {
            found.base = rows.next().unwrap_or_default().to_vec();
            found.source = rows.next().unwrap_or_default().to_vec();
        }
        for row in rows {
            let effects = row.iter().zip(&found.base);
            let effects = effects.map(|(patched, base)| patched - base);
            found.effects.push(effects.collect());
        }
    }
    found.check_finite()?;
    Ok(found)
}
