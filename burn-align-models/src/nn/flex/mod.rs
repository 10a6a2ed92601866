//! Fast paths for the CPU backend [`Flex`], taken when a generic backend turns out to be Flex.
//!
//! They are also taken under autodiff on Flex, in f32; products of weights in bf16 and f16 as well.
//! On other backends and for other dtypes, every function here returns its argument, and the caller
//! takes the portable path.

mod autodiff;
mod kernels;
mod product;
mod strided;
#[cfg(test)]
mod tests;

use std::any::{Any, TypeId};
use std::ops::Range;

use burn::backend::Autodiff;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};
use burn_flex::{Flex, FlexTensor};

use super::Activation;
use crate::quants::QuantizedMatrix;
use autodiff::{Gradient, Saved};

/// Applies `activation` to every element, if there is a kernel for it.
pub(super) fn activate<B: Backend, const D: usize>(
    activation: Activation,
    x: Tensor<B, D>,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    let (kernel, gradient): (fn(&mut [f32]), Gradient) = match activation {
        Activation::GeluTanh => (kernels::gelu_tanh, kernels::gelu_tanh_gradient),
        Activation::QuickGelu => (kernels::quick_gelu, kernels::quick_gelu_gradient),
        Activation::Sigmoid => (kernels::sigmoid, kernels::sigmoid_gradient),
        Activation::Silu => (kernels::silu, kernels::silu_gradient),
        _ => return Err(x),
    };
    in_place(x, kernel, |x, _| Saved::Argument(x, gradient))
}

/// `softmax(scale · scores)` over the keys that each query sees: itself and the positions before
/// it, down to `window - 1` back.
///
/// # Shapes
/// - scores, output: `[batch, head, q_pos, k_pos]`; the last query sees up to the last key
pub(super) fn causal_softmax<B: Backend>(
    scores: Tensor<B, 4>,
    scale: f64,
    window: Option<usize>,
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [_batch, _head, q_pos, k_pos] = scores.dims();
    let scale = scale as f32;
    in_place(
        scores,
        |scores| kernels::causal_softmax(scores, q_pos, k_pos, scale, window),
        |_, weights| Saved::Softmax(weights.clone(), scale),
    )
}

/// `x / √(mean(x²) + ε)` over the last axis.
pub(super) fn root_mean_square<B: Backend>(
    x: Tensor<B, 3>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let [_batch, _pos, width] = x.dims();
    let epsilon = epsilon as f32;
    in_place(
        x,
        |x| kernels::root_mean_square(x, width, epsilon),
        |x, _| Saved::RootMeanSquare(x, epsilon),
    )
}

/// Rotates the pairs `(x[i], x[i + d_head / 2])` by the angles of their positions.
///
/// # Shapes
/// - x, output: `[batch, head, pos, d_head]`
/// - cos, sin: `[1, 1, pos, d_head / 2]`
pub(super) fn rotate<B: Backend>(
    x: Tensor<B, 4>,
    [cos, sin]: [&Tensor<B, 4>; 2],
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [_one, _one_head, _pos, half] = cos.dims();
    let (Some(cos), Some(sin)) = (constant(cos), constant(sin)) else {
        return Err(x);
    };
    in_place(
        x,
        |x| kernels::rotate(x, cos.storage(), sin.storage(), half, 1.0),
        |_, _| Saved::Rotation(cos.clone(), sin.clone()),
    )
}

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine<B: Backend>(
    x: Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    if weight.dtype() != x.dtype() || !product::multiplies(x.dtype()) {
        return Err(x);
    }
    let x = match recognise_any(x) {
        Ok(x) => {
            let known = "of the same backend";
            let weight = recognise_any(weight.clone()).expect(known);
            let bias = bias.map(|bias| recognise_any(bias.clone()).expect(known));
            return Ok(generic(product::affine(&x, &weight, bias.as_ref())));
        }
        Err(x) => x,
    };
    autodiff::affine(x, weight, bias)
}

/// Whether [`affine_quantized`] supports this backend.
pub(super) fn multiplies_quantized<B: Backend>() -> bool {
    let primitive = TypeId::of::<FloatTensor<B>>();
    primitive == TypeId::of::<FlexTensor>()
        || primitive == TypeId::of::<FloatTensor<Autodiff<Flex>>>()
}

/// `x Qᵀ + b`, with the gradients of `x` and `b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - matrix: `[d_output, d_input]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine_quantized<B: Backend>(
    x: Tensor<B, 2>,
    matrix: &QuantizedMatrix,
    bias: Option<&Tensor<B, 1>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    if !product::multiplies(x.dtype()) {
        return Err(x);
    }
    let x = match recognise_any(x) {
        Ok(x) => {
            let known = "of the same backend";
            let bias = bias.map(|bias| recognise_any(bias.clone()).expect(known));
            return Ok(generic(product::affine_quantized(
                &x,
                matrix,
                bias.as_ref(),
            )));
        }
        Err(x) => x,
    };
    autodiff::affine_quantized(x, matrix, bias)
}

/// `(x - mean) / √(var + ε) · weight + bias` over the last axis, under autodiff; without autodiff,
/// Flex has its own.
pub(super) fn layer_norm<B: Backend>(
    x: Tensor<B, 3>,
    weight: &Tensor<B, 1>,
    bias: &Tensor<B, 1>,
    epsilon: f64,
) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    autodiff::layer_norm(x, weight, bias, epsilon)
}

/// Some heads of `[batch, pos, all * d_head]`: `[batch, head, pos, d_head]`, under autodiff.
/// Without autodiff they are a view anyway.
pub(super) fn head_part<B: Backend>(
    x: Tensor<B, 3>,
    all: usize,
    part: Range<usize>,
) -> Result<Tensor<B, 4>, Tensor<B, 3>> {
    let [batch, pos, width] = x.dims();
    let d_head = width / all;
    let view = |x: FlexTensor| {
        let split = x.reshape([batch, pos, all, d_head].into());
        split.narrow(2, part.start, part.len()).transpose(1, 2)
    };
    autodiff::apply(x, view, |_, _| Saved::HeadPart(all, part.start))
}

/// `[batch, head, pos, d_head]` → `[batch, pos, head * d_head]`.
pub(super) fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Result<Tensor<B, 3>, Tensor<B, 4>> {
    let [batch, head, pos, d_head] = x.dims();
    let merge = |x: FlexTensor| {
        strided::contiguous(x.transpose(1, 2)).reshape([batch, pos, head * d_head].into())
    };
    match recognise_view(x) {
        Ok(x) => Ok(generic(merge(x))),
        Err(x) => autodiff::apply(x, merge, |_, _| Saved::Merged(head)),
    }
}

/// `[1, head, row * len, d_head]` → `[row, head, len, d_head]`, a view.
pub(super) fn rows_of<B: Backend>(
    x: Tensor<B, 4>,
    rows: usize,
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let view = |x: FlexTensor| strided::rows_of(x, rows);
    match recognise_view(x) {
        Ok(x) => Ok(generic(view(x))),
        Err(x) => autodiff::apply(x, view, |_, _| Saved::Rows),
    }
}

/// The inverse of [`rows_of`], a copy.
pub(super) fn tokens_of<B: Backend>(x: Tensor<B, 4>) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    let [rows, _head, _len, _d_head] = x.dims();
    match recognise_view(x) {
        Ok(x) => Ok(generic(strided::tokens_of(x))),
        Err(x) => autodiff::apply(x, strided::tokens_of, |_, _| Saved::Tokens(rows)),
    }
}

/// Runs `kernel` on the elements of `x` in row-major order; in place if the tensor is not shared,
/// otherwise on a copy.
///
/// - `save`: from argument and result, what the gradient needs
fn in_place<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    kernel: impl FnOnce(&mut [f32]),
    save: impl FnOnce(FlexTensor, &FlexTensor) -> Saved,
) -> Result<Tensor<B, D>, Tensor<B, D>> {
    let run = |x: FlexTensor| {
        let mut x = strided::contiguous(x);
        kernel(x.storage_mut());
        x
    };
    match recognise(x) {
        Ok(x) => Ok(generic(run(x))),
        Err(x) => autodiff::apply(x, run, save),
    }
}

/// The tensor in row-major order, its storage as long as it has elements; `Err` with the tensor
/// unless it is an f32 tensor of the backend Flex.
fn recognise<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<FlexTensor, Tensor<B, D>> {
    recognise_view(x).map(strided::contiguous)
}

/// The tensor in row-major order, whether or not the backend differentiates; `None` unless it is an
/// f32 tensor on Flex.
fn constant<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<FlexTensor> {
    let x = match recognise(x.clone()) {
        Ok(x) => return Some(x),
        Err(x) => x,
    };
    let x = autodiff::recognise(x).ok()?;
    Some(strided::contiguous(x.primitive))
}

/// Like [`recognise`], with any strides.
fn recognise_view<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<FlexTensor, Tensor<B, D>> {
    match x.dtype() {
        DType::F32 => recognise_any(x),
        _ => Err(x),
    }
}

/// Like [`recognise_view`], for any dtype.
fn recognise_any<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<FlexTensor, Tensor<B, D>> {
    cast::<_, FlexTensor>(x.into_primitive().tensor())
        .map_err(|x| Tensor::from_primitive(TensorPrimitive::Float(x)))
}

/// The inverse of [`recognise`].
fn generic<B: Backend, const D: usize>(x: FlexTensor) -> Tensor<B, D> {
    let x = cast(x).unwrap_or_else(|_| unreachable!("the backend has been recognised"));
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// `x` as a `T`, if it is one.
fn cast<S: 'static, T: 'static>(x: S) -> Result<T, S> {
    let mut x = Some(x);
    match (&mut x as &mut dyn Any).downcast_mut::<Option<T>>() {
        Some(found) => Ok(found.take().expect("set above")),
        None => Err(x.expect("set above")),
    }
}
