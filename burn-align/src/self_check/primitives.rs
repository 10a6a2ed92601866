//! The backend's own operations, in a form in which a test can put faulty ones in their place.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, activation, backend::Backend};

/// The operations that most checks are made of. Each method defaults to the backend's own, so an
/// implementation with one wrong method is a backend with one fault, which the check must find.
pub trait Primitives<B: Backend> {
    /// The matrix product of the last two axes.
    fn product<const D: usize>(&self, x: Tensor<B, D>, y: Tensor<B, D>) -> Tensor<B, D> {
        x.matmul(y)
    }

    /// The softmax along an axis.
    fn softmax<const D: usize>(&self, x: Tensor<B, D>, axis: usize) -> Tensor<B, D> {
        activation::softmax(x, axis)
    }

    /// The same values in another floating-point type.
    fn cast<const D: usize>(&self, x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
        x.cast(dtype)
    }

    /// The sum along an axis, which stays with size 1.
    fn sum<const D: usize>(&self, x: Tensor<B, D>, axis: usize) -> Tensor<B, D> {
        x.sum_dim(axis)
    }

    /// Parts along an axis, by their indices.
    fn select<const D: usize>(
        &self,
        x: Tensor<B, D>,
        axis: usize,
        indices: Tensor<B, 1, Int>,
    ) -> Tensor<B, D> {
        x.select(axis, indices)
    }

    /// Adds values to the parts along an axis with these indices, which may repeat.
    fn select_add<const D: usize>(
        &self,
        x: Tensor<B, D>,
        axis: usize,
        indices: Tensor<B, 1, Int>,
        values: Tensor<B, D>,
    ) -> Tensor<B, D> {
        x.select_assign(axis, indices, values, IndexingUpdateOp::Add)
    }
}

/// The backend as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnPrimitives;

impl<B: Backend> Primitives<B> for OwnPrimitives {}
