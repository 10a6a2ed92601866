//! Mixed values: which task has which queries.

use pulp::Arch;
use rayon::prelude::*;

use super::Attention;
use super::rows::Rows;
use super::tile::Task;
use crate::memory;

/// Multiplications that are worth a task.
pub(super) const TASK: usize = 1 << 18;
/// Tasks per thread, if they are worth it: the last one to end is waited for.
const TASKS_PER_THREAD: usize = 4;

/// `softmax(scale · q kᵀ) v`, where each query sees its own key and those before it.
///
/// - sizes: heads, key-value heads, `d_head`
///
/// # Shapes
/// - output: `[query, head, d_head]`, the queries of all rows
pub(super) fn attend(rows: &[Rows], sizes: [usize; 3], how: &Attention) -> Vec<f32> {
    attend_by(Arch::new(), rows, sizes, how, rayon::current_num_threads())
}

/// [`attend`] with the vectors of this architecture, for this many threads.
pub(super) fn attend_by(
    arch: Arch,
    rows: &[Rows],
    sizes: [usize; 3],
    how: &Attention,
    threads: usize,
) -> Vec<f32> {
    let [heads, _kv_heads, d_head] = sizes;
    let queries = rows.iter().map(|rows| rows.rows * rows.queries);
    let mut mixed = memory::numbers(queries.sum::<usize>() * heads * d_head);
    if mixed.is_empty() {
        return mixed;
    }
    let cost: usize = rows.iter().map(|rows| rows.rows * rows.cost(sizes)).sum();
    let worth = (cost / (threads * TASKS_PER_THREAD)).max(TASK);
    let mut tasks = Vec::new();
    let mut rest = &mut mixed[..];
    for own in rows {
        if own.rows * own.queries == 0 {
            continue;
        }
        let of_row = own.cost(sizes);
        let at_once = (worth / of_row).clamp(1, own.rows);
        let pieces = of_row.div_ceil(worth).min(own.queries);
        for first in (0..own.rows).step_by(at_once) {
            let some = first..own.rows.min(first + at_once);
            // Only one row at a time is divided.
            for piece in 0..pieces {
                let queries = piece * own.queries / pieces..(piece + 1) * own.queries / pieces;
                let length = some.len() * queries.len() * heads * d_head;
                let (part, others) = rest.split_at_mut(length);
                rest = others;
                tasks.push(Task {
                    rows: own,
                    some: some.clone(),
                    queries,
                    sizes,
                    how,
                    mixed: part,
                });
            }
        }
    }
    match threads == 1 || cost <= TASK {
        true => tasks.into_iter().for_each(|task| arch.dispatch(task)),
        false => tasks.into_par_iter().for_each(|task| arch.dispatch(task)),
    }
    mixed
}
