//! From a tensor of a generic backend to one of Flex, and back, in safe code.

use std::any::{Any, TypeId};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};
use burn_flex::FlexTensor;

use super::autodiff::{self, Saved};
use super::strided;

/// Runs `kernel` on the elements of `x` in row-major order; in place if the tensor is not shared,
/// otherwise on a copy.
///
/// - `save`: from argument and result, what the gradient needs
pub(super) fn in_place<B: Backend, const D: usize>(
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
pub(super) fn recognise<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<FlexTensor, Tensor<B, D>> {
    recognise_view(x).map(strided::contiguous)
}

/// The tensor in row-major order, whether or not the backend differentiates; `None` unless it is an
/// f32 tensor on Flex.
pub(super) fn constant<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<FlexTensor> {
    let x = match recognise(x.clone()) {
        Ok(x) => return Some(x),
        Err(x) => x,
    };
    let x = autodiff::recognise(x).ok()?;
    Some(strided::contiguous(x.primitive))
}

/// The tensor with any strides, whether or not the backend differentiates; `None` unless it is an
/// f32 tensor on Flex without a gradient.
pub(super) fn untracked<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<FlexTensor> {
    let x = match recognise_view(x.clone()) {
        Ok(x) => return Some(x),
        Err(x) => x,
    };
    let x = autodiff::recognise(x).ok()?;
    x.node.requirement.is_none().then_some(x.primitive)
}

/// The tensor [in vectors](strided::in_vectors), if it is [`untracked`].
pub(super) fn in_vectors<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<FlexTensor> {
    untracked(x).map(strided::in_vectors)
}

/// From a tensor of Flex to one without a gradient, of Flex or of the autodiff backend on it.
pub(super) fn wrapped<B: Backend, const D: usize>(x: FlexTensor) -> Tensor<B, D> {
    match TypeId::of::<FloatTensor<B>>() == TypeId::of::<FlexTensor>() {
        true => generic(x),
        false => autodiff::constant(x),
    }
}

/// Like [`recognise`], with any strides.
pub(super) fn recognise_view<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<FlexTensor, Tensor<B, D>> {
    match x.dtype() {
        DType::F32 => recognise_any(x),
        _ => Err(x),
    }
}

/// [`recognise_view`] of two tensors.
pub(super) fn recognise_both<B: Backend, const D: usize>(
    [x, y]: [Tensor<B, D>; 2],
) -> Result<[FlexTensor; 2], [Tensor<B, D>; 2]> {
    let x = match recognise_view(x) {
        Ok(x) => x,
        Err(x) => return Err([x, y]),
    };
    match recognise_view(y) {
        Ok(y) => Ok([x, y]),
        Err(y) => Err([generic(x), y]),
    }
}

/// Like [`recognise_view`], for any dtype.
pub(super) fn recognise_any<B: Backend, const D: usize>(
    x: Tensor<B, D>,
) -> Result<FlexTensor, Tensor<B, D>> {
    cast::<_, FlexTensor>(x.into_primitive().tensor())
        .map_err(|x| Tensor::from_primitive(TensorPrimitive::Float(x)))
}

/// The inverse of [`recognise`].
pub(super) fn generic<B: Backend, const D: usize>(x: FlexTensor) -> Tensor<B, D> {
    let x = cast(x).unwrap_or_else(|_| unreachable!("the backend has been recognised"));
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// `x` as a `T`, if it is one.
pub(super) fn cast<S: 'static, T: 'static>(x: S) -> Result<T, S> {
    let mut x = Some(x);
    match (&mut x as &mut dyn Any).downcast_mut::<Option<T>>() {
        Some(found) => Ok(found.take().expect("set above")),
        None => Err(x.expect("set above")),
    }
}
