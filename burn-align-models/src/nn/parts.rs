//! Parts of tensors whose gradients do not cost as much as those of the whole.

use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

/// Some entries of the first axis; the whole is returned as it is.
///
/// The gradient of a slice is as large as the tensor that it is of, and nearly all of it zeros. Here
/// those of several parts are summed in place, if [`sums_parts_in_place`] says so.
///
/// # Panics
/// If there are not as many rows.
pub fn part_of_rows<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    rows: Range<usize>,
) -> Tensor<B, D> {
    if rows == (0..x.dims()[0]) {
        return x;
    }
    #[cfg(feature = "flex")]
    let x = match super::flex::part_of_rows(x, rows.clone()) {
        Ok(part) => return part,
        Err(x) => x,
    };
    x.slice_dim(0, rows)
}

/// Whether gradients of several [parts](part_of_rows) of this tensor are summed in place.
pub fn sums_parts_in_place<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    #[cfg(feature = "flex")]
    return super::flex::sums_parts_in_place(x);
    #[cfg(not(feature = "flex"))]
    {
        let _ = x;
        false
    }
}
