//! Gradients of queries, keys and values: which task has which rows.
//!
//! A task has a key-value head of some rows, and the gradients of all that they alone attend to. Of
//! tokens that rows share with others, each task has sums of its own, which are added up one after
//! the other, so that they do not depend on the number of threads.

use pulp::Arch;
use rayon::prelude::*;

use super::Attention;
use super::forward::TASK;
use super::gradient_tile::Task;
use super::rows::{Rows, Vectors};

/// Rows of a task that share keys and values without a gradient, which are laid out once.
const ROWS: usize = 8;

/// The gradients of queries, keys and values, from those of the mixed values.
///
/// - sizes: heads, key-value heads, `d_head`
///
/// # Shapes
/// - queries: `[query, head, d_head]`; keys, values: `[token, kv_head, d_head]`; those of all rows
pub(super) fn gradients(
    rows: &[Rows],
    of_mixed: &[Vectors],
    sizes: [usize; 3],
    how: &Attention,
) -> [Vec<f32>; 3] {
    let threads = rayon::current_num_threads();
    gradients_by(Arch::new(), rows, of_mixed, sizes, how, threads)
}

/// [`gradients`] with the vectors of this architecture, for this many threads.
pub(super) fn gradients_by(
    arch: Arch,
    rows: &[Rows],
    of_mixed: &[Vectors],
    sizes: [usize; 3],
    how: &Attention,
    threads: usize,
) -> [Vec<f32>; 3] {
    let [heads, kv_heads, d_head] = sizes;
    let total = |of_row: fn(&Rows) -> usize| {
        let counts = rows.iter().map(|rows| rows.rows * of_row(rows));
        counts.sum::<usize>()
    };
    let (queries, tokens) = (total(|rows| rows.queries), total(|rows| rows.own()));
    let mut of_queries = vec![0.0; queries * heads * d_head];
    let [mut of_keys, mut of_values] = [0, 1].map(|_| vec![0.0; tokens * kv_heads * d_head]);

    let mut tasks = Vec::new();
    let mut rest = [&mut of_queries[..], &mut of_keys, &mut of_values];
    for (own, of_mixed) in rows.iter().zip(of_mixed) {
        let mut first = 0;
        while first < own.rows {
            let some = first..first + at_once(own, first);
            first = some.end;
            let mut these = Task::of_heads(own, &some, of_mixed, sizes, how);
            for (which, rest) in rest.iter_mut().enumerate() {
                // How many tokens, and how many vectors of each.
                let (tokens, of_token) = match which {
                    0 => (own.queries, heads),
                    _ => (own.own(), kv_heads),
                };
                let length = some.len() * tokens * of_token * d_head;
                let (part, others) = std::mem::take(rest).split_at_mut(length);
                *rest = others;
                for (index, vector) in part.chunks_exact_mut(d_head).enumerate() {
                    let head = index % of_token / (of_token / kv_heads);
                    these[head].gradients[which].push(vector);
                }
            }
            if own.queries > 0 {
                tasks.extend(these);
            }
        }
    }
    let cost: usize = rows.iter().map(|rows| rows.rows * rows.cost(sizes)).sum();
    match threads == 1 || cost <= TASK {
        true => tasks.iter_mut().for_each(|task| arch.dispatch(task)),
        false => tasks.par_iter_mut().for_each(|task| arch.dispatch(task)),
    }
    let shared: Vec<_> = tasks.into_iter().filter_map(Task::shared).collect();
    for shared in shared {
        for (sums, to) in shared.sums.iter().zip([&mut of_keys, &mut of_values]) {
            for (token, sums) in shared.tokens.iter().zip(sums.chunks_exact(d_head)) {
                let to = &mut to[(token * kv_heads + shared.kv_head) * d_head..][..d_head];
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to += sum;
                }
            }
        }
    }
    [of_queries, of_keys, of_values]
}

/// How many rows from this one on are a task's: adjacent ones that share what comes before them.
fn at_once(rows: &Rows, first: usize) -> usize {
    let before = &rows.parts[..rows.parts.len() - 1];
    let sharing = before.iter().map(|part| rows.rows / part.rows).min();
    let sharing = sharing.unwrap_or(1);
    match before.iter().any(|part| part.tokens.is_some()) {
        true => sharing,
        false => (sharing - first % sharing).min(ROWS),
    }
}
