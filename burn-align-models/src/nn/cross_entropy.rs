//! Cross-entropies, where a backend has a kernel for them.

use burn::tensor::{Tensor, backend::Backend};

/// `-ln p[label]` of each row, where `p` is the softmax of its logits.
///
/// # Shapes
/// - logits: `[row, class]`
/// - labels: one for each row; only asked for if there is a kernel
/// - output: `[row]`
///
/// # Errors
/// The logits, if the backend has no kernel.
///
/// # Panics
/// If there is not one label for each row, or a label is not a class.
pub fn cross_entropies<B: Backend>(
    logits: Tensor<B, 2>,
    labels: impl FnOnce() -> Vec<u32>,
) -> Result<Tensor<B, 1>, Tensor<B, 2>> {
    #[cfg(feature = "flex")]
    return super::flex::cross_entropies(logits, labels);
    #[cfg(not(feature = "flex"))]
    {
        let _ = labels;
        Err(logits)
    }
}
