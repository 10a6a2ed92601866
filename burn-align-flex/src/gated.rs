//! Gated products: an activated gate, times what it lets through.

use burn::tensor::{Tensor, backend::Backend};
use burn_flex::FlexTensor;

use crate::autodiff::{self, Gradient};
use crate::recognise::{generic, recognise_both};
use crate::{kernels, strided};

/// `gate σ(gate) · factor`, element by element.
///
/// # Errors
/// The arguments, if there is [no kernel](crate) for them.
///
/// # Panics
/// If the shapes do not match.
pub fn silu_gated<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    multiplied([gate, factor], SILU)
}

/// [`gelu_tanh`](crate::gelu_tanh) of the gate, times the factor, element by element.
///
/// # Errors
/// The arguments, if there is [no kernel](crate) for them.
///
/// # Panics
/// If the shapes do not match.
pub fn gelu_tanh_gated<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    multiplied([gate, factor], GELU_TANH)
}

/// Multiplies activated gates by the other factors.
fn multiplied<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
    how: Gated,
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    assert_eq!(gate.dims(), factor.dims(), "gates and what they multiply");
    match recognise_both([gate, factor]) {
        Ok([gate, factor]) => Ok(generic(how.run(gate, factor))),
        Err(both) => autodiff::gated(both, how),
    }
}

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
const SILU: Gated = Gated {
    times: kernels::silu_times,
    activate: kernels::silu,
    gradient: kernels::silu_gradient,
};

/// Gates that pass through the tanh approximation of GELU.
const GELU_TANH: Gated = Gated {
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
