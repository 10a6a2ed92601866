//! How tensors of saved results are read.

use safetensors::tensor::{Dtype, TensorView};

/// The numbers of a tensor, if they are f32, finite and of this shape; otherwise what is wrong.
pub(super) fn finite_f32(
    name: &str,
    tensor: &TensorView<'_>,
    shape: &[usize],
) -> Result<Vec<f32>, String> {
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        return Err(format!(
            "tensor `{name}`: expected f32 of shape {shape:?}, found {} of shape {:?}",
            tensor.dtype(),
            tensor.shape()
        ));
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(format!(
            "tensor `{name}`: expected finite numbers, found {} as number {index}",
            values[index]
        )),
        None => Ok(values),
    }
}
