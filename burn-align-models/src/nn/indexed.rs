//! Rows by their indices.

use burn::tensor::{Tensor, backend::Backend};

use crate::Tables;

/// The entries of the first axis with these indices.
///
/// # Panics
/// If there is no such entry.
pub fn rows_by_index<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    indices: Vec<usize>,
    tables: &Tables,
) -> Tensor<B, D> {
    let count = x.dims()[0];
    let highest = indices.iter().max();
    assert!(
        highest.is_none_or(|highest| *highest < count),
        "entries {highest:?} of {count}"
    );
    #[cfg(feature = "flex")]
    let x = match super::flex::rows_by_index(x, &indices) {
        Ok(rows) => return rows,
        Err(x) => x,
    };
    let device = x.device();
    x.select(0, tables.indices::<B>(indices, &device))
}

/// `x` with other rows at these indices. Of several rows for one index, the last one counts. The
/// values are copied exactly.
///
/// # Shapes
/// - x, output: `[row, width]`
/// - rows: `[indices.len(), width]`
///
/// # Panics
/// If the shapes do not match, or there is no such row.
pub fn with_rows_at<B: Backend>(
    x: Tensor<B, 2>,
    indices: &[usize],
    rows: Tensor<B, 2>,
    tables: &Tables,
) -> Tensor<B, 2> {
    let [count, width] = x.dims();
    assert_eq!(rows.dims(), [indices.len(), width], "a row for each index");
    #[cfg(feature = "flex")]
    let [x, rows] = match super::flex::with_rows_at(x, indices, rows) {
        Ok(replaced) => return replaced,
        Err(both) => both,
    };
    // Each row is taken from its old index, or from the new rows, which follow the old ones.
    let mut sources: Vec<usize> = (0..count).collect();
    for (place, source) in indices.iter().zip(count..) {
        sources[*place] = source;
    }
    let sources = tables.indices::<B>(sources, &rows.device());
    Tensor::cat(vec![x, rows], 0).select(0, sources)
}
