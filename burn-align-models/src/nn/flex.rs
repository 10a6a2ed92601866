//! Fast paths for the CPU backend Flex, taken when a generic backend turns out to be Flex: the
//! kernels of the crate `burn-align-flex`.
//!
//! On other backends and for other dtypes, every function here returns its argument, and the caller
//! takes the portable path.

#[cfg(test)]
mod tests;

use burn::tensor::{Tensor, backend::Backend};

use super::Activation;

pub(super) use burn_align_flex::{
    AttendingRows, Attention, KeysBefore, Reuse, add, affine, affine_each, affine_quantized,
    attend, attend_after, causal_softmax, cross_entropies, give_back, head_part,
    in_row_major_order, is_flex, joined, kl_divergences, layer_norm, merge_heads,
    multiplies_quantized, part_of_rows, rms_norm, root_mean_square, rotate, rows_by_index, rows_of,
    sums_parts_in_place, tokens_of, with_rows_at,
};

/// Applies `activation` to every element, if there is a kernel for it.
pub(super) fn activate<B: Backend, const D: usize>(
    activation: Activation,
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    match activation {
        Activation::Gelu => burn_align_flex::gelu(x),
        Activation::GeluTanh => burn_align_flex::gelu_tanh(x),
        Activation::QuickGelu => burn_align_flex::quick_gelu(x),
        Activation::Sigmoid => burn_align_flex::sigmoid(x),
        Activation::Silu => burn_align_flex::silu(x),
        _ => Err(x),
    }
}

/// Applies `activation` to the gate and multiplies it by the factor, if there is a kernel for it.
pub(super) fn gated<B: Backend, const D: usize>(
    activation: Activation,
    both: [Tensor<B, D>; 2],
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    match activation {
        Activation::Gelu => burn_align_flex::gelu_gated(both),
        Activation::GeluTanh => burn_align_flex::gelu_tanh_gated(both),
        Activation::Silu => burn_align_flex::silu_gated(both),
        _ => Err(both),
    }
}
