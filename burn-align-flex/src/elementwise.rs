//! Functions of every element, and sums.

use burn::tensor::{Tensor, backend::Backend};

use crate::autodiff::{Gradient, Saved};
use crate::functions::{Function, Gelu, GeluTanh, QuickGelu, Sigmoid, Silu};
use crate::recognise::{generic, in_place, recognise_both};
use crate::{kernels, memory, strided};

/// `x Φ(x)` of every element, with the distribution function of the normal distribution: GELU.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, &GELU)
}

/// The tanh approximation of GELU, `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn gelu_tanh<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, &GELU_TANH)
}

/// `x σ(1.702 x)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn quick_gelu<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, &QUICK_GELU)
}

/// `σ(x) = 1 / (1 + e⁻ˣ)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, &SIGMOID)
}

/// `x σ(x)` of every element.
///
/// # Errors
/// `x`, if there is [no kernel](crate) for it.
pub fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Tensor<B, D>, Tensor<B, D>> {
    of_each(x, &SILU)
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

/// The loops of a function. Those of the statics below are compiled with this crate: others would
/// be compiled wherever they are used, often without optimisation.
struct Loops {
    apply: fn(&mut [f32]),
    gradient: Gradient,
}

impl Loops {
    const fn of<F: Function>() -> Self {
        Self {
            apply: |x| kernels::map(x, |x| F::at(x)[0]),
            gradient: |gradient, x| {
                kernels::map_with(gradient, x, |gradient, x| gradient * F::at(x)[1]);
            },
        }
    }
}

static GELU: Loops = Loops::of::<Gelu>();
static GELU_TANH: Loops = Loops::of::<GeluTanh>();
static QUICK_GELU: Loops = Loops::of::<QuickGelu>();
static SIGMOID: Loops = Loops::of::<Sigmoid>();
static SILU: Loops = Loops::of::<Silu>();

/// Applies a function to every element.
fn of_each<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    loops: &Loops,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    in_place(x, loops.apply, |x, _| Saved::Argument(x, loops.gradient))
}
