//! Heads taken apart and put together: views where they are enough, and copies vector by vector.

use burn::tensor::{TensorData, TensorMetadata};
use burn_flex::{FlexTensor, Layout};

use super::kernels::in_tasks;

/// The tensor in row-major order, its storage as long as it has elements. Where it is not so
/// already, whole vectors along the last axis are copied, on all cores.
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    let shape = x.shape();
    let sizes: Vec<usize> = shape.iter().copied().collect();
    let (Some((width, outer)), Some(1)) = (sizes.split_last(), x.layout().strides().last()) else {
        return x.to_contiguous();
    };
    let covers = x.storage::<f32>().len() == shape.num_elements();
    if x.is_contiguous() && covers {
        return x;
    }
    let mut copy = vec![0.0; shape.num_elements()];
    in_tasks(&mut copy, *width, |index, to| {
        to.copy_from_slice(vector(&x, outer, index));
    });
    FlexTensor::from_data(TensorData::new(copy, sizes))
}

/// The vector with this number, in row-major order of the axes before the last one, whose stride
/// must be 1.
fn vector<'a>(x: &'a FlexTensor, outer: &[usize], mut index: usize) -> &'a [f32] {
    let layout = x.layout();
    let mut start = layout.start_offset() as isize;
    for (size, stride) in outer.iter().zip(layout.strides()).rev() {
        start += (index % size) as isize * stride;
        index /= size;
    }
    let width = layout.shape().last().copied().unwrap_or(1);
    &x.storage::<f32>()[start as usize..][..width]
}

/// `[1, head, row * len, d_head]` → `[row, head, len, d_head]`, a view.
pub(super) fn rows_of(x: FlexTensor, rows: usize) -> FlexTensor {
    let [_one, head, tokens, d_head] = x.shape().dims();
    let layout = x.layout();
    let [_, of_head, of_token, of_feature] = layout.strides() else {
        unreachable!("there are four axes");
    };
    let len = tokens / rows;
    let strides = vec![of_token * len as isize, *of_head, *of_token, *of_feature];
    let view = Layout::new(
        [rows, head, len, d_head].into(),
        strides,
        layout.start_offset(),
    );
    x.with_layout(view)
}

/// The way back from [`rows_of`], copied so that heads are beside one another.
pub(super) fn tokens_of(x: FlexTensor) -> FlexTensor {
    let [rows, head, len, d_head] = x.shape().dims();
    contiguous(x.transpose(1, 2))
        .reshape([1, rows * len, head, d_head].into())
        .transpose(1, 2)
}

/// `[batch, head, pos, d_head]` into its place among `all` heads, the others zero:
/// `[batch, pos, all * d_head]`.
pub(super) fn among_heads(x: &FlexTensor, all: usize, first: usize) -> FlexTensor {
    let [batch, head, pos, d_head] = x.shape().dims();
    let x = match x.layout().strides().last() {
        Some(1) => x.transpose(1, 2),
        _ => contiguous(x.transpose(1, 2)),
    };
    let mut placed = vec![0.0; batch * pos * all * d_head];
    in_tasks(&mut placed, all * d_head, |index, to| {
        for h in 0..head {
            let from = vector(&x, &[batch, pos, head], index * head + h);
            to[(first + h) * d_head..][..d_head].copy_from_slice(from);
        }
    });
    FlexTensor::from_data(TensorData::new(placed, [batch, pos, all * d_head]))
}
