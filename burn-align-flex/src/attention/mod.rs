//! Attention of many rows at once, each of which may continue a prefix that it shares with others.
//!
//! Keys and values are read where they lie. A task has some rows of queries, or some queries of one
//! row, and computes scores, softmax and mixed values tile by tile, so none of the scores leave its
//! caches (as in Dao et al. 2022, arXiv 2205.14135, but with all scores of a query at hand). Tasks
//! differ in nothing but which queries they have, so a query's result does not depend on them. The
//! gradient computes the scores once more, in the same way.

mod classes;
mod forward;
mod gradient;
mod gradient_tile;
mod panels;
mod rows;
#[cfg(test)]
mod tests;
mod tile;
mod tracked;

use burn::tensor::{Tensor, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use super::memory::give_back;
use super::recognise::{in_vectors, wrapped};
use super::strided::by_head;
pub use classes::{AttendingRows, KeysBefore};
use classes::{Class, rows_of};
use rows::{Part, Rows, Vectors};

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

/// `softmax(scale · q kᵀ) v`, where each query sees its own key and those before it. Each key-value
/// head is shared by `head / kv_head` adjacent query heads.
///
/// # Shapes
/// - queries, output: `[batch, head, q_pos, d_head]`; the last query sees up to the last key
/// - keys, values: `[batch, kv_head, k_pos, d_head]`
///
/// # Errors
/// The arguments, if there is [no kernel](crate) for them.
///
/// # Panics
/// If the shapes do not match, or the window is empty.
pub fn attend<B: Backend>(
    [q, k, v]: [Tensor<B, 4>; 3],
    how: &Attention,
) -> Result<Tensor<B, 4>, [Tensor<B, 4>; 3]> {
    let [_batch, _head, queries, _d_head] = q.dims();
    let [_batch, _kv_head, len, _d_head] = k.dims();
    assert_attends([&q, &k, &v], how);
    assert!(queries <= len, "{queries} queries of {len} keys");
    let none = None::<fn() -> Option<Vec<Class>>>;
    match run([&q, &k, &v], none, how) {
        Some(mixed) => {
            [q, k, v].into_iter().for_each(give_back);
            Ok(mixed)
        }
        None => Err([q, k, v]),
    }
}

/// [`attend`] of rows that continue others: to the bit, what the whole rows have at these
/// positions. `None` where [`attend`] would return its arguments, or keys or values that have been
/// [kept](KeysBefore::Parts) have a gradient.
///
/// # Shapes
/// - queries, output: `[1, head, query, d_head]`, those of all rows
/// - keys, values: `[1, kv_head, token, d_head]`, the own ones of all rows
///
/// # Panics
/// If the shapes do not match, or the window is empty.
pub fn attend_after<B: Backend>(
    [q, k, v]: [&Tensor<B, 4>; 3],
    classes: &[AttendingRows<'_, B>],
    how: &Attention,
) -> Option<Tensor<B, 4>> {
    assert_attends([q, k, v], how);
    // Their indices are read back, so only where there is a kernel.
    let classes = || classes.iter().map(Class::of).collect::<Option<_>>();
    run([q, k, v], Some(classes), how)
}

/// Asserts that queries can meet these keys and values.
fn assert_attends<B: Backend>([q, k, v]: [&Tensor<B, 4>; 3], how: &Attention) {
    assert_ne!(
        how.window,
        Some(0),
        "a window without the query's own position"
    );
    let [batch, heads, _queries, d_head] = q.dims();
    let [_batch, kv_heads, len, _d_head] = k.dims();
    assert_eq!([k.dims(), v.dims()], [[batch, kv_heads, len, d_head]; 2]);
    assert!(
        heads.is_multiple_of(kv_heads),
        "{heads} heads of {kv_heads}"
    );
}

/// Attends, with gradients if the backend differentiates and an argument has one; `None` if there
/// is no kernel for the heads, or for what comes before them.
///
/// - classes: `None` if each row has its own keys and values, and no others; only asked for if
///   there is a kernel for the heads
fn run<B: Backend>(
    heads: [&Tensor<B, 4>; 3],
    classes: Option<impl FnOnce() -> Option<Vec<Class>>>,
    how: &Attention,
) -> Option<Tensor<B, 4>> {
    let attending = |heads| {
        let classes = match classes {
            Some(classes) => Some(classes()?),
            None => None,
        };
        Some(Attending {
            heads,
            classes,
            how: *how,
        })
    };
    match heads.map(in_vectors) {
        [Some(q), Some(k), Some(v)] => Some(wrapped(attending([q, k, v])?.mixed())),
        _ => tracked::attend(heads, attending),
    }
}

/// Queries that attend to keys and values.
#[derive(Clone, Debug)]
struct Attending {
    /// Queries, keys and values.
    heads: [FlexTensor; 3],
    /// `None` if each row has its own keys and values, and no others.
    classes: Option<Vec<Class>>,
    how: Attention,
}

impl Attending {
    fn rows(&self) -> Vec<Rows<'_>> {
        let [q, k, v] = &self.heads;
        if let Some(classes) = &self.classes {
            return rows_of(classes, [q, k, v]);
        }
        let [batch, _head, queries, _d_head] = q.shape().dims();
        vec![Rows {
            rows: batch,
            queries,
            q: Vectors::of(q),
            parts: vec![Part::of([k, v])],
        }]
    }

    /// Heads, key-value heads, `d_head`.
    fn sizes(&self) -> [usize; 3] {
        let [q, k, _v] = &self.heads;
        let [_batch, heads, _queries, d_head] = q.shape().dims();
        let [_batch, kv_heads, _len, _d_head] = k.shape().dims();
        [heads, kv_heads, d_head]
    }

    /// `[batch, head, q_pos, d_head]`.
    fn mixed(&self) -> FlexTensor {
        let mixed = forward::attend(&self.rows(), self.sizes(), &self.how);
        self.placed(mixed, 0)
    }

    /// The gradients of queries, keys and values, from that of the mixed values, [in
    /// vectors](crate::strided::in_vectors).
    fn gradients(&self, of_mixed: &FlexTensor) -> [FlexTensor; 3] {
        let rows = self.rows();
        let all = Vectors::of(of_mixed);
        let of_mixed: Vec<Vectors<'_>> = match self.classes {
            None => vec![all],
            Some(_) => {
                let firsts = rows.iter().scan(0, |next, rows| {
                    let first = *next;
                    *next += rows.rows * rows.queries;
                    Some((first, rows.queries))
                });
                firsts
                    .map(|(first, queries)| all.in_rows(first, queries))
                    .collect()
            }
        };
        let [q, k, v] = gradient::gradients(&rows, &of_mixed, self.sizes(), &self.how);
        [self.placed(q, 0), self.placed(k, 1), self.placed(v, 2)]
    }

    /// Vectors of all tokens as a tensor of the shape of queries, keys or values.
    fn placed(&self, vectors: Vec<f32>, which: usize) -> FlexTensor {
        let [batch, heads, pos, d_head] = self.heads[which].shape().dims();
        by_head(vectors, [batch, pos, heads, d_head])
    }
}
