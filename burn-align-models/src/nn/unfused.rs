//! A way round wrong numbers from fused products.

use burn::tensor::{Tensor, backend::Backend};

/// A product that a backend with fusion does not join with what follows.
///
/// Burn 0.21 has fused kernels that compute wrong numbers without an error: for the product of one
/// row with a matrix that lies transposed in memory (tracel-ai/cubek#262), and of a matrix with one
/// column (tracel-ai/burn#5122). The same products by themselves are right. Fusion ends at a view,
/// which costs nothing on the device.
pub fn unfused<B: Backend, const D: usize>(product: Tensor<B, D>) -> Tensor<B, D> {
    if !B::name(&product.device()).contains("fusion") {
        return product;
    }
    let rows = product.dims()[0];
    product.narrow(0, 0, rows)
}
