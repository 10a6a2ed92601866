//! Rows that continue others, class by class.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use super::rows::{Part, Rows, Vectors};
use crate::recognise::in_vectors;

/// Rows that attend with the same numbers of keys and queries, after positions that they share with
/// others. The keys of all rows lie one after the other, and so do their queries.
#[derive(Clone, Debug)]
pub struct AttendingRows<'a, B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// Keys of a row's own.
    pub len: usize,
    /// Queries of a row: those of the last of its own keys.
    pub queries: usize,
    /// Keys and values before them.
    pub before: KeysBefore<'a, B>,
}

/// Where the keys and values are that come before those of some rows. Each of them is continued by
/// the same number of rows, which are adjacent.
#[derive(Clone, Debug)]
pub enum KeysBefore<'a, B: Backend> {
    /// There are none.
    None,
    /// Some tokens of the same keys and values.
    Tokens {
        /// Number of rows that are continued.
        rows: usize,
        /// Indices of the tokens, `[rows * pos]`, row by row.
        tokens: &'a Tensor<B, 1, Int>,
    },
    /// Parts, in the order of their positions: keys and values, `[row, kv_head, pos, d_head]`,
    /// which have no gradient.
    Parts(Vec<[&'a Tensor<B, 4>; 2]>),
}

/// [`AttendingRows`] of tensors of Flex.
#[derive(Clone, Debug)]
pub(super) struct Class {
    rows: usize,
    len: usize,
    queries: usize,
    before: Before,
}

/// [`KeysBefore`] of tensors of Flex.
#[derive(Clone, Debug)]
enum Before {
    Tokens { rows: usize, tokens: Arc<[usize]> },
    Parts(Vec<[FlexTensor; 2]>),
}

impl Class {
    /// The same rows; `None` if there is no kernel for what comes before them.
    pub(super) fn of<B: Backend>(class: &AttendingRows<'_, B>) -> Option<Self> {
        let before = match &class.before {
            KeysBefore::None => Before::Parts(Vec::new()),
            KeysBefore::Tokens { rows, tokens } => Before::Tokens {
                rows: *rows,
                tokens: indices(tokens),
            },
            KeysBefore::Parts(parts) => {
                let parts = parts
                    .iter()
                    .map(|[keys, values]| Some([in_vectors(keys)?, in_vectors(values)?]));
                Before::Parts(parts.collect::<Option<_>>()?)
            }
        };
        Some(Self {
            rows: class.rows,
            len: class.len,
            queries: class.queries,
            before,
        })
    }
}

/// The rows of all classes.
///
/// - q, k, v: `[1, head, token, d_head]`, those of all rows
///
/// # Panics
/// If the shapes do not match.
pub(super) fn rows_of<'a>(classes: &'a [Class], [q, k, v]: [&'a FlexTensor; 3]) -> Vec<Rows<'a>> {
    let [one, kv_heads, tokens, d_head] = k.shape().dims();
    let [_one, _head, queries, _d_head] = q.shape().dims();
    let [q, keys, values] = [q, k, v].map(Vectors::of);
    let (mut first_key, mut first_query) = (0, 0);
    let mut all = Vec::with_capacity(classes.len());
    for class in classes {
        let Class {
            rows, len, queries, ..
        } = *class;
        assert!(queries <= len, "{queries} queries of {len} keys");
        let mut parts: Vec<Part<'a>> = match &class.before {
            Before::Parts(parts) => {
                let parts = parts.iter().map(|[keys, values]| {
                    let [rows, _kv_head, count, _d_head] = keys.shape().dims();
                    let shape = [rows, kv_heads, count, d_head];
                    assert_eq!([keys, values].map(|x| x.shape().dims::<4>()), [shape; 2]);
                    Part::of([keys, values])
                });
                parts.collect()
            }
            Before::Tokens {
                rows,
                tokens: before,
            } => {
                assert!(
                    *rows > 0 && before.len().is_multiple_of(*rows),
                    "{} tokens of {rows} rows",
                    before.len()
                );
                assert!(
                    before.iter().all(|token| *token < tokens),
                    "indices of tokens"
                );
                vec![Part {
                    rows: *rows,
                    count: before.len() / rows,
                    keys,
                    values,
                    tokens: Some(before),
                }]
            }
        };
        for part in &parts {
            assert!(
                part.rows > 0 && rows.is_multiple_of(part.rows),
                "{rows} rows that continue {}",
                part.rows
            );
        }
        parts.push(Part {
            rows,
            count: len,
            keys: keys.in_rows(first_key, len),
            values: values.in_rows(first_key, len),
            tokens: None,
        });
        all.push(Rows {
            rows,
            queries,
            q: q.in_rows(first_query, queries),
            parts,
        });
        first_key += rows * len;
        first_query += rows * queries;
    }
    let found = [one, first_key, first_query];
    assert_eq!(found, [1, tokens, queries], "rows, keys and queries");
    all
}

/// The indices of tokens.
fn indices<B: Backend>(tokens: &Tensor<B, 1, Int>) -> Arc<[usize]> {
    let tokens = tokens.to_data();
    // Negative ones become larger than any number of tokens.
    tokens.iter::<i64>().map(|token| token as usize).collect()
}
