//! Heads: apart, side by side, and those of rows as those of tokens.

use std::ops::Range;

use burn::tensor::{Tensor, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;

use crate::autodiff::{self, Saved};
use crate::recognise::{generic, recognise_view};
use crate::{kernels, strided};

/// Every `every`-th head of `part`, as a view; `all` heads lie side by side.
///
/// # Shapes
/// - x: `[batch, pos, all * d_head]`
/// - output: `[batch, head, pos, d_head]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
///
/// # Panics
/// If `x` is not that many heads, or `part` goes beyond them.
pub fn head_part<B: Backend>(
    x: Tensor<B, 3>,
    all: usize,
    part: Range<usize>,
    every: usize,
) -> Result<Tensor<B, 4>, Tensor<B, 3>> {
    let [batch, pos, width] = x.dims();
    assert!(width.is_multiple_of(all), "{all} heads of {width} features");
    assert!(
        part.start <= part.end && part.end <= all && every > 0,
        "one of {every} heads, {part:?} of {all}"
    );
    let d_head = width / all;
    let view = |x: FlexTensor| {
        let split = strided::contiguous(x).reshape([batch, pos, all, d_head].into());
        strided::every(split.narrow(2, part.start, part.len()), 2, every).transpose(1, 2)
    };
    match recognise_view(x) {
        Ok(x) => Ok(generic(view(x))),
        Err(x) => {
            let saved = Saved::HeadPart([all, part.start, every]);
            autodiff::apply(x, view, |_, _| saved)
        }
    }
}

/// Puts heads side by side.
///
/// # Shapes
/// - x: `[batch, head, pos, d_head]`
/// - output: `[batch, pos, head * d_head]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Result<Tensor<B, 3>, Tensor<B, 4>> {
    let [batch, head, pos, d_head] = x.dims();
    let merge = |x: FlexTensor| {
        strided::contiguous(x.transpose(1, 2)).reshape([batch, pos, head * d_head].into())
    };
    match recognise_view(x) {
        Ok(x) => Ok(generic(merge(x))),
        Err(x) => autodiff::apply(x, merge, |_, _| Saved::Merged(head)),
    }
}

/// The rows of tokens in one row, a view.
///
/// # Shapes
/// - x: `[1, head, row * len, d_head]`
/// - output: `[row, head, len, d_head]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
///
/// # Panics
/// If `x` has several rows, or its tokens are not as many rows.
pub fn rows_of<B: Backend>(x: Tensor<B, 4>, rows: usize) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [one, _head, tokens, _d_head] = x.dims();
    assert_eq!(one, 1, "a single row of tokens");
    assert!(
        rows > 0 && tokens.is_multiple_of(rows),
        "{rows} rows of {tokens} tokens"
    );
    let view = |x: FlexTensor| strided::rows_of(x, rows);
    match recognise_view(x) {
        Ok(x) => Ok(generic(view(x))),
        Err(x) => autodiff::apply(x, view, |_, _| Saved::Rows),
    }
}

/// The inverse of [`rows_of`], a copy.
///
/// # Shapes
/// - x: `[row, head, len, d_head]`
/// - output: `[1, head, row * len, d_head]`
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn tokens_of<B: Backend>(x: Tensor<B, 4>) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [rows, _head, _len, _d_head] = x.dims();
    match recognise_view(x) {
        Ok(x) => Ok(generic(strided::tokens_of(x))),
        Err(x) => autodiff::apply(x, strided::tokens_of, |_, _| Saved::Tokens(rows)),
    }
}

/// `[batch, head, pos, d_head]`, the first features of each vector rotated by the angles of its
/// position, or by `sign` times them.
pub(super) fn rotated(x: FlexTensor, [cos, sin]: [&FlexTensor; 2], sign: f32) -> FlexTensor {
    let [_batch, heads, _pos, d_head] = x.shape().dims();
    let [_one, _one_head, _table_pos, half] = cos.shape().dims();
    if half == 0 {
        return x;
    }
    // Heads come from projections, in which those of a token lie side by side.
    let mut x = strided::contiguous(strided::transposed(x));
    let tables = [cos.storage(), sin.storage()];
    kernels::rotate(x.storage_mut(), tables, [heads, d_head, half], sign);
    strided::transposed(x)
}
