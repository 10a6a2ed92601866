//! How many examples a backward pass can take at a time.

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, ModelDims};

use super::AttributionError;
use crate::engine::{PlanError, RunOptions};

/// Bytes of one number: activations of a model in bf16 are counted as f32, in which norms and
/// softmax are computed.
const BYTES: u64 = 4;

/// Bytes that one row takes in a forward and a backward pass, estimated from the sizes of the
/// model: what each layer computes, which is all kept, and as much again for gradients and
/// temporary values.
///
/// - logits: number of positions that are unembedded
/// - read: numbers that are read of the row, each with its zero and its gradient
pub(in crate::methods) fn row_bytes<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    pos: usize,
    logits: usize,
    read: usize,
) -> u64 {
    let dims = model.dims();
    let layers = model.layout().layers().len();
    let kept = layers * of_layer(dims, pos) + 2 * logits * dims.vocab;
    BYTES * (2 * kept + 4 * read) as u64
}

/// Numbers that a layer computes for one row: the stream, norms and their inputs; queries, keys and
/// values, rotated and laid out by head; scores before and after scale and mask, weights; mixed
/// values; hidden layers before and after the activation function, and the gate.
fn of_layer(dims: &ModelDims, pos: usize) -> usize {
    let (q, kv) = (dims.heads * dims.d_head, dims.kv_heads * dims.d_head);
    let stream = 8 * dims.d_model;
    let attention = 5 * q + 6 * kv + 4 * dims.heads * pos;
    let mlp = if dims.gated_mlp { 4 } else { 3 } * dims.d_mlp;
    pos * (stream + attention + mlp)
}

/// How many rows fit the budgets.
pub(in crate::methods) fn rows_at_once(
    row_bytes: u64,
    options: &RunOptions,
) -> Result<usize, AttributionError> {
    let by_memory = match options.memory_budget {
        None => usize::MAX,
        Some(budget) if budget < row_bytes => {
            return Err(AttributionError::MemoryBudget {
                needed: row_bytes,
                budget,
            });
        }
        Some(budget) => usize::try_from(budget / row_bytes.max(1)).unwrap_or(usize::MAX),
    };
    match options.max_rows {
        Some(0) => Err(PlanError::RowBudget {
            needed: 1,
            max_rows: 0,
        }
        .into()),
        Some(rows) => Ok(rows.min(by_memory)),
        None => Ok(by_memory),
    }
}

/// The same masks and rotary tables, without budgets: the caller divides the work.
pub(in crate::methods) fn unlimited(options: &RunOptions) -> RunOptions {
    RunOptions {
        tables: options.tables.clone(),
        schedules: options.schedules.clone(),
        ..RunOptions::default()
    }
}
