//! Running checks one by one.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::Operation;
use super::array::Array;
use super::primitives::Primitives;
use super::report::{Check, Finding, Report};
use crate::engine::read_numbers;

/// What the checks compute with.
pub(super) struct Context<'a, B: Backend, P> {
    pub(super) primitives: &'a P,
    pub(super) device: &'a B::Device,
    pub(super) dtype: DType,
}

impl<B: Backend, P: Primitives<B>> Context<'_, B, P> {
    /// An array on the device, in its dtype.
    pub(super) fn tensor<const D: usize>(&self, array: &Array) -> Tensor<B, D> {
        Tensor::from_data(array.data(), (self.device, array.dtype))
    }

    /// Indices on the device.
    pub(super) fn indices(&self, indices: &[usize]) -> Tensor<B, 1, Int> {
        let indices: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
        let count = indices.len();
        Tensor::from_data(TensorData::new(indices, [count]), self.device)
    }
}

/// Checks that run one after the other, and what they have found.
pub(super) struct Checks<'a, B: Backend, P> {
    pub(super) cx: Context<'a, B, P>,
    report: Report,
    seed: u64,
}

impl<'a, B: Backend, P: Primitives<B>> Checks<'a, B, P> {
    pub(super) fn new(primitives: &'a P, device: &'a B::Device, dtype: DType) -> Self {
        Self {
            cx: Context {
                primitives,
                device,
                dtype,
            },
            report: Report::default(),
            seed: 0,
        }
    }

    /// Values from -1 to 1 in the dtype of the check, different ones each time.
    pub(super) fn draw(&mut self, shape: &[usize]) -> Array {
        self.draw_in(self.cx.dtype, shape, 1.0)
    }

    /// The same from `-scale` to `scale`.
    pub(super) fn draw_scaled(&mut self, shape: &[usize], scale: f64) -> Array {
        self.draw_in(self.cx.dtype, shape, scale)
    }

    /// The same in another dtype.
    pub(super) fn draw_in(&mut self, dtype: DType, shape: &[usize], scale: f64) -> Array {
        self.seed += 1;
        Array::drawn(shape, self.seed, scale, dtype)
    }

    /// Computes something on the device and compares it with what is right. A panic of the backend
    /// is a finding too.
    pub(super) fn check<C: Backend, const D: usize>(
        &mut self,
        operation: Operation,
        operands: &[&Array],
        expected: &[f64],
        compute: impl FnOnce(&Context<'a, B, P>) -> Tensor<C, D>,
    ) {
        let attempt = || read_numbers(compute(&self.cx)).map_err(|error| error.to_string());
        let found = panic::catch_unwind(AssertUnwindSafe(attempt));
        let found = found.unwrap_or_else(|payload| Err(message(&*payload)));
        let allowed = operation.allowed(self.cx.dtype);
        self.report.checks.push(Check {
            operation,
            sizes: operands.iter().map(|array| array.shape.clone()).collect(),
            dtype: self.cx.dtype,
            finding: Finding::of(found, expected, allowed),
        });
    }

    pub(super) fn finish(self) -> Report {
        self.report
    }
}

/// The message of a panic, in one line.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    let words = text.unwrap_or("it panicked").split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
