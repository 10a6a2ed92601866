//! In which order a matrix lies in a device's memory.

use burn::tensor::{Tensor, backend::Backend};

/// A matrix in the order in which products read it fastest: on GPUs, the weights of an output lie
/// side by side, since the product with a single vector has no good kernel for another order.
///
/// # Shapes
/// - matrix, output: `[d_input, d_output]`
pub(in crate::nn) fn in_order<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    if !reads_by_output::<B>(&matrix.device()) {
        return matrix;
    }
    let [d_input, d_output] = matrix.dims();
    let is_trained = matrix.is_require_grad();
    let matrix = matrix.set_require_grad(false);
    // A permuted tensor is copied when it loses an axis.
    let by_output = matrix.transpose().reshape([d_input * d_output]);
    let matrix = by_output.reshape([d_output, d_input]).transpose();
    matrix.set_require_grad(is_trained)
}

/// Whether the backend is one of those on CubeCL.
fn reads_by_output<B: Backend>(device: &B::Device) -> bool {
    B::name(device).contains("cubecl")
}
