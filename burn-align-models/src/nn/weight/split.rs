//! A weight in parts, for devices that cannot hold it as one tensor.

#[cfg(all(test, feature = "flex"))]
mod tests;

use std::ops::Range;

use burn::module::{Param, ParamId};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorData, backend::Backend};

/// Parts of a matrix, in order: of its rows (axis 0) or its columns (axis 1).
#[derive(Clone, Debug)]
pub(super) struct Split<B: Backend> {
    pub(super) id: ParamId,
    axis: usize,
    /// At least one.
    parts: Vec<Tensor<B, 2>>,
}

impl<B: Backend> Split<B> {
    /// Parts are a multiple of this long, if they can be.
    const MULTIPLE: usize = 64;

    /// Copies a matrix to the device in parts of at most `most_bytes`, or of one row or column.
    pub(super) fn new(
        id: ParamId,
        axis: usize,
        values: &TensorData,
        most_bytes: u64,
        device: &B::Device,
    ) -> Self {
        let (all, other) = (values.shape[axis], values.shape[1 - axis]);
        let each = (other * values.dtype.size()).max(1) as u64;
        let most = usize::try_from(most_bytes / each).unwrap_or(usize::MAX);
        let length = match most / Self::MULTIPLE {
            0 => most.max(1),
            multiples => multiples * Self::MULTIPLE,
        };
        let starts = (0..all).step_by(length);
        let ranges = starts.map(|start| start..(start + length).min(all));
        let parts = ranges.map(|range| {
            let part = part(values, axis, range);
            Tensor::from_data(part, (device, values.dtype))
        });
        Self {
            id,
            axis,
            parts: parts.collect(),
        }
    }

    /// Rows and columns of the whole.
    pub(super) fn dims(&self) -> [usize; 2] {
        let mut dims = self.parts[0].dims();
        dims[self.axis] = self.parts.iter().map(|part| part.dims()[self.axis]).sum();
        dims
    }

    pub(super) fn device(&self) -> B::Device {
        self.parts[0].device()
    }

    pub(super) fn dtype(&self) -> DType {
        self.parts[0].dtype()
    }

    pub(super) fn parts(&self) -> &[Tensor<B, 2>] {
        &self.parts
    }

    /// Rows or columns, whichever the parts are made of, in as many tensors as they are spread
    /// over: none, if the range is empty.
    pub(super) fn within(&self, range: Range<usize>) -> Vec<Tensor<B, 2>> {
        let mut first = 0;
        let parts = self.parts.iter().filter_map(|part| {
            let count = part.dims()[self.axis];
            let start = range.start.max(first) - first;
            let end = range.end.min(first + count).saturating_sub(first);
            first += count;
            match end.checked_sub(start) {
                None | Some(0) => None,
                Some(own) if own == count => Some(part.clone()),
                Some(own) => Some(part.clone().narrow(self.axis, start, own)),
            }
        });
        parts.collect()
    }

    /// The same with other parts.
    pub(super) fn map<A: Backend>(&self, f: impl Fn(Tensor<B, 2>) -> Tensor<A, 2>) -> Split<A> {
        Split {
            id: self.id,
            axis: self.axis,
            parts: self.parts.iter().cloned().map(f).collect(),
        }
    }

    /// A parameter whose tensor is joined when it is first read.
    pub(super) fn whole(&self) -> Param<Tensor<B, 2>> {
        let (axis, parts) = (self.axis, self.parts.clone());
        Param::uninitialized(
            self.id,
            move |device, _| Tensor::cat(parts.clone(), axis).to_device(device),
            self.device(),
            false,
            Shape::new(self.dims()),
        )
    }
}

/// Some rows or columns of a matrix on the host.
fn part(values: &TensorData, axis: usize, range: Range<usize>) -> TensorData {
    let [rows, cols] = [values.shape[0], values.shape[1]];
    let size = values.dtype.size();
    let (bytes, shape) = match axis {
        0 => {
            let bytes = &values.bytes[range.start * cols * size..range.end * cols * size];
            (bytes.to_vec(), vec![range.len(), cols])
        }
        _ => {
            let mut bytes = Vec::with_capacity(rows * range.len() * size);
            for row in values.bytes.chunks(cols * size) {
                bytes.extend_from_slice(&row[range.start * size..range.end * size]);
            }
            (bytes, vec![rows, range.len()])
        }
    };
    TensorData {
        bytes: Bytes::from_bytes_vec(bytes),
        shape: Shape::from(shape),
        dtype: values.dtype,
    }
}
