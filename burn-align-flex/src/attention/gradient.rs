//! Gradients of queries, keys and values: which task has which rows.
//!
//! A task has a key-value head of some rows, or of some queries of one row. What the keys and values
//! of a row get from its own tasks alone goes where it belongs at once. Of those that several tasks
//! attend to, each has sums of its own, which are then added up one after the other: neither they nor
//! the tasks depend on the number of threads.

use pulp::Arch;
use rayon::prelude::*;

use super::Attention;
use super::forward::TASK;
use super::gradient_tile::{Given, Sums, Task};
use super::rows::{Rows, Vectors};
use crate::memory;

/// Rows of a task, at most: those that share keys and values, which are laid out once.
const ROWS: usize = 8;
/// Queries of a task, at most, in each head: a longer row has several tasks.
const QUERIES: usize = 256;

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
    let mut of_queries = memory::numbers(queries * heads * d_head);
    let [mut of_keys, mut of_values] = [0, 1].map(|_| memory::zeros(tokens * kv_heads * d_head));

    if of_queries.is_empty() {
        return [of_queries, of_keys, of_values];
    }

    let mut tasks = Vec::new();
    let mut rest = [&mut of_queries[..], &mut of_keys, &mut of_values];
    let mut token = 0;
    for (own, of_mixed) in rows.iter().zip(of_mixed) {
        let pieces = own.queries.div_ceil(QUERIES);
        let mut first = 0;
        while first < own.rows {
            let some = first..first + at_once(own, first, pieces);
            first = some.end;
            let of_piece = |piece: usize| {
                let queries = piece * own.queries / pieces..(piece + 1) * own.queries / pieces;
                let given = Given {
                    rows: own,
                    some: some.clone(),
                    queries,
                    of_mixed: *of_mixed,
                    apart: (pieces > 1).then_some(token),
                };
                Task::of_heads(&given, sizes, how)
            };
            let mut these: Vec<Vec<Task>> = (0..pieces).map(of_piece).collect();
            token += some.len() * own.own();
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
                    let token = index / of_token % tokens;
                    match (which, &mut these[..]) {
                        (_, [only]) => only[head].gradients[which].push(vector),
                        (0, several) => {
                            let piece = several
                                .iter()
                                .position(|piece| piece[head].given.queries.contains(&token));
                            let piece = piece.expect("pieces have all queries");
                            several[piece][head].gradients[which].push(vector);
                        }
                        _ => {}
                    }
                }
            }
            tasks.extend(these.into_iter().flatten());
        }
    }
    let cost: usize = rows.iter().map(|rows| rows.rows * rows.cost(sizes)).sum();
    match threads == 1 || cost <= TASK {
        true => tasks.iter_mut().for_each(|task| arch.dispatch(task)),
        false => tasks.par_iter_mut().for_each(|task| arch.dispatch(task)),
    }
    let sums: Vec<Sums> = tasks.into_iter().map(Task::sums).collect();
    for Sums {
        tokens,
        kv_head,
        sums,
    } in sums
    {
        for (sums, to) in sums.iter().zip([&mut of_keys, &mut of_values]) {
            for (token, sums) in tokens.iter().zip(sums.chunks_exact(d_head)) {
                let to = &mut to[(token * kv_heads + kv_head) * d_head..][..d_head];
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to += sum;
                }
            }
        }
    }
    [of_queries, of_keys, of_values]
}

/// How many rows from this one on are a task's: one that has several tasks, and otherwise adjacent
/// ones. None of them goes beyond those that share the same tokens.
fn at_once(rows: &Rows, first: usize, pieces: usize) -> usize {
    if pieces > 1 {
        return 1;
    }
    let before = &rows.parts[..rows.parts.len() - 1];
    let sharing = before.iter().map(|part| rows.rows / part.rows).min();
    let sharing = sharing.unwrap_or(1);
    (sharing - first % sharing).min(ROWS)
}
