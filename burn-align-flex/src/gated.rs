//! Gated products: an activated gate, times what it lets through.

use burn_flex::FlexTensor;

use crate::autodiff::Gradient;
use crate::{kernels, strided};

/// How a gate is activated, and its derivative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gated {
    /// Activates a gate and multiplies it by the other factor.
    times: fn(&mut [f32], &[f32]),
    /// Activates a gate.
    pub(crate) activate: fn(&mut [f32]),
    /// Multiplies by the derivative of the activation.
    pub(crate) gradient: Gradient,
}

/// Gates that pass through `x σ(x)`.
pub(crate) const SILU: Gated = Gated {
    times: kernels::silu_times,
    activate: kernels::silu,
    gradient: kernels::silu_gradient,
};

/// Gates that pass through the tanh approximation of GELU.
pub(crate) const GELU_TANH: Gated = Gated {
    times: kernels::gelu_tanh_times,
    activate: kernels::gelu_tanh,
    gradient: kernels::gelu_tanh_gradient,
};

impl Gated {
    /// The product, in the memory of the gate if nothing else needs it.
    pub(crate) fn run(self, gate: FlexTensor, factor: FlexTensor) -> FlexTensor {
        let mut product = strided::contiguous(gate);
        let factor = strided::contiguous(factor);
        (self.times)(product.storage_mut(), factor.storage());
        product
    }
}
