//! The rows of a stage: stacked inputs at first, then those of the stage before, copied and
//! rearranged.

use std::cmp::Ordering;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align_models::nn::{part_of_rows, rows_by_index};
use burn_align_models::{ModelInput, Tables};

use crate::engine::layout::Layout;
use crate::engine::plan::{Plan, WorldInput};
use crate::engine::schedule::StageGroups;

/// Makes the rows of the next stage's groups, as copies of their parents' rows.
pub(super) fn fork<B: Backend>(
    x: Tensor<B, 3>,
    before: &Layout,
    next: &StageGroups,
    tables: &Tables,
) -> Tensor<B, 3> {
    match &next.parents {
        Some(parents) => rearrange(x, before, &next.layout, parents, tables),
        None => rearrange(x, before, &next.layout, &in_place(next), tables),
    }
}

/// The groups of a stage, each as its own parent.
pub(super) fn in_place(stage: &StageGroups) -> Vec<usize> {
    (0..stage.groups.len()).collect()
}

/// The residual stream of the next stage.
///
/// - `parents`: which group of the stage before each group of the next one continues
pub(super) fn rearrange<B: Backend>(
    x: Tensor<B, 3>,
    before: &Layout,
    next: &Layout,
    parents: &[usize],
    tables: &Tables,
) -> Tensor<B, 3> {
    let [rows, pos, d_model] = x.dims();
    let rows_before = next.rows_before(before, parents);
    if before.is_whole() && next.is_whole() {
        return chosen(x, rows_before, tables);
    }
    let tokens = next.tokens_in(before, &rows_before);
    let x = chosen(x.reshape([rows * pos, d_model]), tokens, tables);
    let [rows, pos] = next.shape();
    x.reshape([rows, pos, d_model])
}

/// Entries of the first axis, by index.
pub(super) fn chosen<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    indices: Vec<usize>,
    tables: &Tables,
) -> Tensor<B, D> {
    let (first, count) = (indices.first().copied().unwrap_or(0), indices.len());
    let adjacent = count > 0 && indices.iter().copied().eq(first..first + count);
    match adjacent {
        true => part_of_rows(x, first..first + count),
        false => rows_by_index(x, indices, tables),
    }
}

/// The first `pos` positions of the stacked inputs of all groups, padded on the right.
pub(super) fn stack<B: Backend>(
    plan: &Plan<B>,
    stage: &StageGroups,
    pos: usize,
    device: &B::Device,
) -> ModelInput<B> {
    let inputs = stage.groups.firsts();
    let inputs = inputs.map(|world| plan.input_of_index(world));
    stack_inputs(inputs, pos, device)
}

/// The first `pos` positions of the stacked residuals that all groups start from, padded on the
/// right.
pub(super) fn stack_residuals<B: Backend>(
    plan: &Plan<B>,
    stage: &StageGroups,
    pos: usize,
) -> Tensor<B, 3> {
    let residuals = stage
        .groups
        .firsts()
        .map(|world| match plan.input_of_index(world) {
            WorldInput::Resumed(resumed) => padded(&resumed.x, pos),
            _ => unreachable!("checked when the plan was validated"),
        });
    Tensor::cat(residuals.collect(), 0)
}

/// The first `pos` positions, with zeros where there are fewer.
fn padded<B: Backend>(x: &Tensor<B, 3>, pos: usize) -> Tensor<B, 3> {
    let [batch, own_pos, width] = x.dims();
    match own_pos.cmp(&pos) {
        Ordering::Equal => x.clone(),
        Ordering::Greater => x.clone().narrow(1, 0, pos),
        Ordering::Less => {
            let padding = Tensor::zeros([batch, pos - own_pos, width], (&x.device(), x.dtype()));
            Tensor::cat(vec![x.clone(), padding], 1)
        }
    }
}

/// The first `pos` positions of stacked inputs, padded on the right where there are fewer.
pub(in crate::engine) fn stack_inputs<'a, B: Backend>(
    inputs: impl Iterator<Item = &'a WorldInput<B>>,
    pos: usize,
    device: &B::Device,
) -> ModelInput<B> {
    let mut tokens: Vec<i64> = Vec::new();
    let mut features: Vec<Tensor<B, 3>> = Vec::new();
    for input in inputs {
        match input {
            WorldInput::Tokens(batch) => {
                for ids in batch.ids() {
                    let ids = ids.iter().map(|id| i64::from(*id));
                    tokens.extend(ids.chain(std::iter::repeat(0)).take(pos));
                }
            }
            WorldInput::Features(x) => features.push(padded(x, pos)),
            WorldInput::Resumed(_) | WorldInput::Continued(_) => {
                unreachable!("a run that goes on does not begin with whole rows")
            }
        }
    }
    if features.is_empty() {
        let rows = tokens.len() / pos;
        ModelInput::Tokens(Tensor::from_data(
            TensorData::new(tokens, [rows, pos]),
            device,
        ))
    } else {
        ModelInput::Features(Tensor::cat(features, 0))
    }
}
