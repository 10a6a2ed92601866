//! Copying numbers to the host.

use burn::tensor::{BasicOps, DType, Tensor, TensorData, backend::Backend};

use super::PlanError;

/// The elements of a tensor, row by row. Waits for the device, so this is where its failures are
/// detected.
pub(crate) fn read_numbers<B: Backend, const D: usize, K: BasicOps<B>>(
    tensor: Tensor<B, D, K>,
) -> Result<Vec<f64>, PlanError> {
    Ok(read_data(tensor)?.iter::<f64>().collect())
}

/// As [`read_numbers`], in f32.
pub(crate) fn read_floats<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
) -> Result<Vec<f32>, PlanError> {
    let data = read_data(tensor.cast(DType::F32))?;
    Ok(data.into_vec().expect("cast to f32"))
}

/// As [`read_numbers`], in the tensor's own type.
pub(super) fn read_data<B: Backend, const D: usize, K: BasicOps<B>>(
    tensor: Tensor<B, D, K>,
) -> Result<TensorData, PlanError> {
    tensor.try_into_data().map_err(|error| PlanError::Device {
        reason: first_words(&error.to_string()),
    })
}

/// The text before the backtraces that some backends include in their errors.
fn first_words(error: &str) -> String {
    let end = error
        .to_lowercase()
        .find("backtrace")
        .unwrap_or(error.len());
    let words = error[..end].split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
