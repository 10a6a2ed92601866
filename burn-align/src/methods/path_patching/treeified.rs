//! Patches along explicit paths.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch};

use super::PathEffects;
use crate::engine::{LogitPositions, Plan, ReadId, RunOptions};
use crate::methods::sweep::to_rows;
use crate::paths::{Path, PathError, Stream, Worlds};

/// Lets sets of paths carry the source's values and all other paths the base's, and measures the
/// prediction: `metric` of the logits after the last token of each example, averaged over examples.
/// This is treeified path patching. Each set is a separate run; all are one plan.
///
/// Where a path starts, the node's whole output comes from the source. Every node on the path
/// computes with that in the input by which the path enters it, and with the base in its other
/// inputs.
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// If a path does not fit the model, two paths start or continue at the same output and position
/// under different names (head and whole attention, overlapping positions), or base and source
/// differ in length.
pub fn patch_paths<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    [base, source]: [&TokenBatch; 2],
    sets: &[Vec<Path>],
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<PathEffects, PathError> {
    for path in sets.iter().flatten() {
        path.check(model.dims())?;
    }
    let sets = sets.iter().map(|paths| Stream::of_paths(paths, 0, 1));
    let streams: Vec<Stream> = [Stream::clean(0), Stream::clean(1)]
        .into_iter()
        .chain(sets)
        .collect();
    let mut values = patch_streams(model, &[base, source], &streams, metric, options)?;
    let patched = values.split_off(2);
    Ok(PathEffects {
        base: values[0],
        source: values[1],
        patched,
    })
}

/// Lets the logits read these streams, each in its own world of one plan, and measures the
/// prediction as [`patch_paths`] does.
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// # Errors
/// As [`Stream::check`], or if inputs differ in length.
pub fn patch_streams<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    inputs: &[&TokenBatch],
    streams: &[Stream],
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<Vec<f64>, PathError> {
    let mut plan = Plan::new();
    let mut worlds = Worlds::new(&mut plan, model.dims(), inputs)?;
    let mut reads: Vec<ReadId> = Vec::new();
    for stream in streams {
        let world = worlds.logits(&mut plan, stream)?;
        reads.push(plan.read_logits(world, LogitPositions::Last));
    }
    let results = plan.run_with(model, &Worlds::interventions(), options)?;
    let values = reads
        .into_iter()
        .map(|read| metric(results.get(read).squeeze_dim(1)).mean());
    let values: Vec<_> = values.collect();
    let count = values.len().max(1);
    let values = to_rows(values, count)?.pop().unwrap_or_default();
    plan.check_finite(&values, model, &Worlds::interventions(), options)?;
    Ok(values)
}
