//! Gated products: an activated gate, times what it lets through.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::{Flex, FlexTensor};
use pulp::Arch;
use rayon::prelude::*;

use crate::functions::{Function, Gelu, GeluTanh, Silu};
use crate::kernels::{self, TASK};
use crate::recognise::{generic, recognise_both};
use crate::{autodiff, memory, strided};

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
    multiplied([gate, factor], &SILU)
}

/// [`gelu`](crate::gelu) of the gate, times the factor, element by element.
///
/// # Errors
/// The arguments, if there is [no kernel](crate) for them.
///
/// # Panics
/// If the shapes do not match.
pub fn gelu_gated<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    multiplied([gate, factor], &GELU)
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
    multiplied([gate, factor], &GELU_TANH)
}

/// The loops of an activated gate, compiled with this crate.
#[derive(Debug)]
struct Loops {
    product: fn(FlexTensor, FlexTensor) -> FlexTensor,
    gradients: fn(&mut [f32], [&[f32]; 2]) -> Vec<f32>,
}

impl Loops {
    const fn of<F: Function>() -> Self {
        Self {
            product: product::<F>,
            gradients: gradients::<F>,
        }
    }
}

static GELU: Loops = Loops::of::<Gelu>();
static GELU_TANH: Loops = Loops::of::<GeluTanh>();
static SILU: Loops = Loops::of::<Silu>();

/// Multiplies activated gates by the other factors.
fn multiplied<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
    loops: &'static Loops,
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    assert_eq!(gate.dims(), factor.dims(), "gates and what they multiply");
    match recognise_both([gate, factor]) {
        Ok([gate, factor]) => Ok(generic((loops.product)(gate, factor))),
        Err(both) => tracked(both, loops),
    }
}

/// The product, in the memory of the gate if nothing else needs it.
fn product<A: Function>(gate: FlexTensor, factor: FlexTensor) -> FlexTensor {
    let (mut gate, factor) = (strided::contiguous(gate), strided::contiguous(factor));
    if gate.is_unique() {
        kernels::map_with(gate.storage_mut(), factor.storage(), |gate, factor| {
            A::at(gate)[0] * factor
        });
        memory::give(factor);
        return gate;
    }
    let shape = gate.shape();
    let mut product = memory::numbers(shape.num_elements());
    let both = [gate.storage::<f32>(), factor.storage()];
    kernels::per_row(&mut product, TASK, |task, product| {
        let [gate, factor] = both.map(|x| &x[task * TASK..][..product.len()]);
        for ((product, gate), factor) in product.iter_mut().zip(gate).zip(factor) {
            *product = A::at(*gate)[0] * factor;
        }
    });
    memory::give(factor);
    FlexTensor::from_data(TensorData::new(product, shape))
}

/// Turns the gradient of a product into that of the gate, and returns that of the factor.
fn gradients<A: Function>(gradient: &mut [f32], [gate, factor]: [&[f32]; 2]) -> Vec<f32> {
    let mut of_factor = memory::numbers(gradient.len());
    let parts = gate.par_chunks(TASK).zip(factor.par_chunks(TASK));
    let results = gradient
        .par_chunks_mut(TASK)
        .zip(of_factor.par_chunks_mut(TASK));
    results
        .zip(parts)
        .for_each(|((gradient, of_factor), (gate, factor))| {
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    let results = gradient.iter_mut().zip(of_factor);
                    for ((gradient, of_factor), (gate, factor)) in
                        results.zip(gate.iter().zip(factor))
                    {
                        let [value, derivative] = A::at(*gate);
                        *of_factor = value * *gradient;
                        *gradient = *gradient * factor * derivative;
                    }
                },
            );
        });
    of_factor
}

#[derive(Debug)]
struct OfGated(&'static Loops);

impl Backward<Flex, 2> for OfGated {
    /// The gate before its activation, and the other factor.
    type State = [FlexTensor; 2];

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [of_gate, of_factor] = ops.parents;
        let [gate, factor] = ops.state.map(strided::contiguous);
        let mut gradient = strided::contiguous(gradients.consume::<Flex>(&ops.node));
        let shape = gradient.shape();
        let both = [gate.storage(), factor.storage()];
        let for_factor = (self.0.gradients)(gradient.storage_mut(), both);
        [gate, factor].into_iter().for_each(memory::give);
        if let Some(node) = of_factor {
            let for_factor = FlexTensor::from_data(TensorData::new(for_factor, shape));
            gradients.register::<Flex>(node.id, for_factor);
        }
        if let Some(node) = of_gate {
            gradients.register::<Flex>(node.id, gradient);
        }
    }
}

/// The product; `Err` with both unless they are f32 tensors of the autodiff backend on Flex.
fn tracked<B: Backend, const D: usize>(
    [gate, factor]: [Tensor<B, D>; 2],
    loops: &'static Loops,
) -> Result<Tensor<B, D>, [Tensor<B, D>; 2]> {
    let gate = match autodiff::recognise(gate) {
        Ok(gate) => gate,
        Err(gate) => return Err([gate, factor]),
    };
    let factor = match autodiff::recognise(factor) {
        Ok(factor) => factor,
        Err(factor) => return Err([autodiff::generic(gate), factor]),
    };
    let result = match OfGated(loops)
        .prepare::<NoCheckpointing>([gate.node, factor.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let result = (loops.product)(gate.primitive.clone(), factor.primitive.clone());
            prepared.finish([gate.primitive, factor.primitive], result)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish((loops.product)(gate.primitive, factor.primitive))
        }
    };
    Ok(autodiff::generic(result))
}
