//! How much is computed at a time.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::{CircuitError, EdgeGraph};
use crate::engine::RunOptions;
use crate::methods::attribution::{row_bytes, rows_at_once};

/// Bytes of one number.
const BYTES: u64 = 4;
/// Positions of all examples together that are run at a time without a budget.
const POSITIONS: usize = 256;
/// Bytes of widened outputs, and of gradients at readers, without a budget: 512 and 128 MiB.
const DEFAULT: [u64; 2] = [1 << 29, 1 << 27];
/// Vectors as wide as the stream that are kept for one head while it is differentiated, and while
/// its three gradients are used: inputs, their gradients, and copies.
const OF_HEAD: u64 = 16;

/// How much is computed at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Examples that are run together.
    pub(super) rows: usize,
    /// Positions of these examples at which writers' outputs are widened.
    pub(super) positions: usize,
    /// Heads whose gradients are kept.
    pub(super) heads: usize,
}

impl Shares {
    /// - logits: number of positions that are unembedded
    /// - read: numbers that are read of one example, with gradients or without
    pub(super) fn of<B: Backend, M: AlignableTransformer<B>>(
        model: &M,
        graph: &EdgeGraph,
        [batch, pos]: [usize; 2],
        logits: usize,
        read: usize,
        options: &RunOptions,
    ) -> Result<Self, CircuitError> {
        let vector = BYTES * graph.d_model() as u64;
        let row = row_bytes(model, pos, logits, read);
        let head = OF_HEAD * vector * pos as u64;
        // Once by itself and once among all.
        let position = 2 * vector * graph.writers().len() as u64;
        let fitting = rows_at_once(row + head + position, options)?;
        let all = graph.heads();
        let Some(budget) = options.memory_budget else {
            let rows = match options.max_rows {
                Some(_) => fitting,
                None => fitting.min(POSITIONS / pos.max(1)),
            };
            let rows = rows.clamp(1, batch.max(1));
            let [widened, gradients] = DEFAULT.map(|bytes| bytes / rows as u64);
            return Ok(Self {
                rows,
                positions: count(widened, position, pos),
                heads: count(gradients, head, all),
            });
        };
        // Two thirds for the runs, so that what follows need not be widened again and again.
        let for_runs = budget / 3 * 2 / row.max(1);
        let rows = fitting.min(count(for_runs, 1, batch));
        let rest = budget.saturating_sub(rows as u64 * row) / rows as u64;
        let widened = (rest / 2).min(rest.saturating_sub(head));
        let positions = count(widened, position, pos);
        let rest = rest.saturating_sub(positions as u64 * position);
        Ok(Self {
            rows,
            positions,
            heads: count(rest, head, all),
        })
    }
}

/// How many of some size fit, at least 1 and at most all.
fn count(bytes: u64, each: u64, all: usize) -> usize {
    let count = usize::try_from(bytes / each.max(1)).unwrap_or(usize::MAX);
    count.clamp(1, all.max(1))
}
