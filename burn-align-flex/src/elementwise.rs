//! Functions of every element, and sums.

use burn::tensor::{Tensor, backend::Backend};

use crate::autodiff::Saved;
use crate::functions::{self, Function};
use crate::recognise::{generic, in_place, recognise_both};
use crate::{kernels, memory, strided};

/// `x Φ(x)` of every element, with the distribution function of the normal distribution: GELU.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, functions::Gelu)
}

/// The tanh approximation of GELU, `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn gelu_tanh<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, functions::GeluTanh)
}

/// `x σ(1.702 x)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn quick_gelu<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, functions::QuickGelu)
}

/// `σ(x) = 1 / (1 + e⁻ˣ)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, functions::Sigmoid)
}

/// `x σ(x)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, functions::Silu)
}

/// `x + y`, without autodiff: in the memory of one of them, if nothing else needs it.
///
/// # Errors
/// The arguments, if there is [no kernel](crate) for them, or under autodiff.
///
/// # Panics
/// If the shapes do not match.
pub fn add<B: Backend, const D: usize>(
    [x, y]: [Tensor<B, D>; 2],
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    assert_eq!(x.dims(), y.dims(), "summands");
    let [x, y] = recognise_both([x, y])?;
    let [x, y] = [x, y].map(strided::contiguous);
    let (mut sum, other) = match !x.is_unique() && y.is_unique() {
        true => (y, x),
        false => (x, y),
    };
    kernels::add(sum.storage_mut(), other.storage());
    memory::give(other);
    Ok(generic(sum))
}

/// Applies a function to every element.
fn of_each<B: Backend, F: Function, const D: usize>(
    x: Tensor<B, D>,
    _function: F,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    let kernel = |x: &mut [f32]| kernels::map(x, |x| F::at(x)[0]);
    let gradient = |gradient: &mut [f32], x: &[f32]| {
        kernels::map_with(gradient, x, |gradient, x| gradient * F::at(x)[1]);
    };
    in_place(x, kernel, |x, _| Saved::Argument(x, gradient))
}
