//! Attention of many rows at once, each of which may continue a prefix that it shares with others.
//!
//! Keys and values are read where they lie. A task has some rows of queries, or some queries of one
//! row, and computes scores, softmax and mixed values tile by tile, so none of the scores leave its
//! caches (as in Dao et al. 2022, arXiv 2205.14135, but with all scores of a query at hand). Tasks
//! differ in nothing but which queries they have, so a query's result does not depend on them.

mod classes;
#[cfg(test)]
mod tests;
mod tile;

use burn_flex::FlexTensor;
use pulp::Arch;
use rayon::prelude::*;

pub(crate) use classes::rows_of;
pub use classes::{AttendingRows, KeysBefore};
use tile::Task;

/// Multiplications that are worth a task.
const TASK: usize = 1 << 18;
/// Tasks per thread, if they are worth it: the last one to end is waited for.
const TASKS_PER_THREAD: usize = 4;

/// How queries attend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the query-key products.
    pub scale: f64,
    /// Soft cap of the scores: `cap · tanh(score / cap)`.
    pub cap: Option<f64>,
    /// How many positions a query sees, itself included, if fewer than all.
    pub window: Option<usize>,
}

/// Vectors of heads: those of a token are features, which lie side by side.
#[derive(Clone, Copy)]
pub(crate) struct Vectors<'a> {
    elements: &'a [f32],
    /// The first element.
    start: usize,
    /// Strides of rows, heads and tokens.
    strides: [usize; 3],
}

impl<'a> Vectors<'a> {
    /// Those of `[row, head, token, d_head]`, [in vectors](crate::strided::in_vectors).
    pub(crate) fn of(x: &'a FlexTensor) -> Self {
        let layout = x.layout();
        Self {
            elements: x.storage(),
            start: layout.start_offset(),
            strides: [0, 1, 2].map(|axis| layout.strides()[axis] as usize),
        }
    }

    /// Of the tokens of a single row, rows of this many each, one after the other from `first` on.
    fn in_rows(self, first: usize, len: usize) -> Self {
        let [_of_row, of_head, of_token] = self.strides;
        Self {
            start: self.start + first * of_token,
            strides: [len * of_token, of_head, of_token],
            ..self
        }
    }

    /// A vector of this many features.
    #[inline(always)]
    fn at(&self, [row, head, token]: [usize; 3], width: usize) -> &'a [f32] {
        let [of_row, of_head, of_token] = self.strides;
        let first = self.start + row * of_row + head * of_head + token * of_token;
        &self.elements[first..][..width]
    }
}

/// Keys and values of some rows at some of their positions.
pub(crate) struct Part<'a> {
    /// Number of rows. It divides that of the rows that attend: adjacent ones share a row.
    pub(crate) rows: usize,
    /// Number of positions.
    pub(crate) count: usize,
    pub(crate) keys: Vectors<'a>,
    pub(crate) values: Vectors<'a>,
    /// The token of each position, row by row, if they are not in order.
    pub(crate) tokens: Option<Vec<usize>>,
}

impl Part<'_> {
    /// Where a position of a row is: row and token.
    #[inline(always)]
    fn place(&self, row: usize, position: usize) -> [usize; 2] {
        match &self.tokens {
            Some(tokens) => [0, tokens[row * self.count + position]],
            None => [row, position],
        }
    }
}

/// Rows with the same numbers of keys and queries.
pub(crate) struct Rows<'a> {
    pub(crate) rows: usize,
    /// Queries of a row: those of its last positions.
    pub(crate) queries: usize,
    pub(crate) q: Vectors<'a>,
    /// In the order of their positions; the last one has a key for each query.
    pub(crate) parts: Vec<Part<'a>>,
}

impl Rows<'_> {
    /// Number of keys of a row.
    fn count(&self) -> usize {
        self.parts.iter().map(|part| part.count).sum()
    }

    /// Multiplications for one row.
    fn cost(&self, [heads, _kv_heads, d_head]: [usize; 3]) -> usize {
        2 * self.queries * self.count() * heads * d_head
    }
}

/// `softmax(scale · q kᵀ) v`, where each query sees its own key and those before it.
///
/// - sizes: heads, key-value heads, `d_head`
///
/// # Shapes
/// - output: `[query, head, d_head]`, the queries of all rows
pub(crate) fn attend(rows: &[Rows], sizes: [usize; 3], how: &Attention) -> Vec<f32> {
    attend_by(Arch::new(), rows, sizes, how, rayon::current_num_threads())
}

/// [`attend`] with the vectors of this architecture, for this many threads.
fn attend_by(
    arch: Arch,
    rows: &[Rows],
    sizes: [usize; 3],
    how: &Attention,
    threads: usize,
) -> Vec<f32> {
    let [heads, _kv_heads, d_head] = sizes;
    let queries = rows.iter().map(|rows| rows.rows * rows.queries);
    let mut mixed = vec![0.0; queries.sum::<usize>() * heads * d_head];
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
