//! Splitting and merging heads: views where possible, otherwise copies vector by vector.

use burn::tensor::{TensorData, TensorMetadata};
use burn_flex::{FlexTensor, Layout};

use super::kernels::in_tasks;
use super::memory;

/// The tensor in row-major order, with no more storage than elements. If it is not so already, it
/// is copied, on all cores.
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    let shape = x.shape();
    if x.is_contiguous() && x.storage::<f32>().len() == shape.num_elements() {
        return x;
    }
    let mut copy = memory::numbers(shape.num_elements());
    match copy_into(&x, &mut copy) {
        true => {
            memory::give(x);
            FlexTensor::from_data(TensorData::new(copy, shape))
        }
        false => x.to_contiguous(),
    }
}

/// Copies the elements in row-major order, on all cores, which also touch the memory first. Does
/// nothing, and says so, for a number without axes and for a reversed last axis.
pub(super) fn copy_into(x: &FlexTensor, to: &mut [f32]) -> bool {
    let sizes: Vec<usize> = x.shape().iter().copied().collect();
    let strides = x.layout().strides();
    let (Some((width, outer)), Some(Ok(stride))) = (
        sizes.split_last(),
        strides.last().map(|it| usize::try_from(*it)),
    ) else {
        return false;
    };
    let elements = x.storage::<f32>();
    in_tasks(to, *width, |index, to| {
        let from = &elements[first_of(x, outer, index)..];
        match stride {
            1 => to.copy_from_slice(&from[..*width]),
            0 => to.fill(from[0]),
            _ => {
                for (to, from) in to.iter_mut().zip(from.iter().step_by(stride)) {
                    *to = *from;
                }
            }
        }
    });
    true
}

/// The tensor, or a copy, so that the features of a vector lie side by side.
pub(super) fn in_vectors(x: FlexTensor) -> FlexTensor {
    let strides = x.layout().strides();
    match strides.last() == Some(&1) && strides.iter().all(|stride| *stride >= 0) {
        true => x,
        false => contiguous(x),
    }
}

/// Heads and positions exchanged, a view that is not shared if the tensor was not.
pub(super) fn transposed(x: FlexTensor) -> FlexTensor {
    let layout = x.layout().transpose(1, 2);
    x.with_layout(layout)
}

/// Of an axis, every `every`-th entry from the first one on, a view.
pub(super) fn every(x: FlexTensor, axis: usize, every: usize) -> FlexTensor {
    if every == 1 {
        return x;
    }
    let mut sizes: Vec<usize> = x.shape().iter().copied().collect();
    let mut strides = x.layout().strides().to_vec();
    sizes[axis] = sizes[axis].div_ceil(every);
    strides[axis] *= every as isize;
    let view = Layout::new(sizes.into(), strides, x.layout().start_offset());
    x.with_layout(view)
}

/// Vectors in the order `[batch, pos, head, d_head]`, as `[batch, head, pos, d_head]`.
pub(super) fn by_head(vectors: Vec<f32>, sizes: [usize; 4]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(vectors, sizes)).transpose(1, 2)
}

/// The offset of the vector with this index, in row-major order of the axes before the last one.
fn first_of(x: &FlexTensor, outer: &[usize], mut index: usize) -> usize {
    let layout = x.layout();
    let mut first = layout.start_offset() as isize;
    for (size, stride) in outer.iter().zip(layout.strides()).rev() {
        first += (index % size) as isize * stride;
        index /= size;
    }
    first as usize
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

/// The inverse of [`rows_of`], copied so that heads are adjacent.
pub(super) fn tokens_of(x: FlexTensor) -> FlexTensor {
    let [rows, head, len, d_head] = x.shape().dims();
    contiguous(x.transpose(1, 2))
        .reshape([1, rows * len, head, d_head].into())
        .transpose(1, 2)
}

/// `[batch, head, pos, d_head]` into its places among `all` heads, every `every`-th one from the
/// first on, the others zero: `[batch, pos, all * d_head]`.
pub(super) fn among_heads(x: &FlexTensor, [all, first, every]: [usize; 3]) -> FlexTensor {
    let [batch, head, pos, d_head] = x.shape().dims();
    let x = match x.layout().strides().last() {
        Some(1) => x.transpose(1, 2),
        _ => contiguous(x.transpose(1, 2)),
    };
    let mut placed = memory::zeros(batch * pos * all * d_head);
    in_tasks(&mut placed, all * d_head, |index, to| {
        for h in 0..head {
            let from = first_of(&x, &[batch, pos, head], index * head + h);
            let from = &x.storage::<f32>()[from..][..d_head];
            to[(first + every * h) * d_head..][..d_head].copy_from_slice(from);
        }
    });
    FlexTensor::from_data(TensorData::new(placed, [batch, pos, all * d_head]))
}
