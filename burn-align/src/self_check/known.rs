//! Faults of Burn 0.21 and its GPU kernels that others have reported: each can give wrong numbers
//! without an error.

use super::Operation;

/// A fault that others have reported, and that would explain a failed check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFault {
    /// The public reports.
    pub reports: &'static str,
    /// Where the fault shows.
    pub condition: &'static str,
}

/// The known faults at these shapes.
pub(super) fn known(operation: Operation, sizes: &[Vec<usize>]) -> Vec<KnownFault> {
    let [first, second] =
        [0_usize, 1].map(|operand| sizes.get(operand).map_or(&[][..], Vec::as_slice));
    let (rows, inner) = match first {
        [.., rows, inner] => (*rows, *inner),
        _ => (0, 0),
    };
    let is_product = operation.is_product();
    let is_gradient = matches!(
        operation,
        Operation::ProductGradient
            | Operation::SoftmaxGradient
            | Operation::NormGradient
            | Operation::DecoderGradient
    );
    let multiplies = is_product || operation == Operation::LowRank;
    let continues = matches!(
        operation,
        Operation::CachedAttention | Operation::DecoderContinued
    );
    let candidates = [
        (
            multiplies && second.last() == Some(&1),
            "tracel-ai/burn#5122",
            "a product with one column, in a build with fusion and autotune",
        ),
        (
            is_product && !inner.is_multiple_of(64),
            "tracel-ai/cubek#434, tracel-ai/burn#5626",
            "a contracted length that is not a multiple of the kernel's stage",
        ),
        (
            rows >= 499,
            "tracel-ai/burn#4966, tracel-ai/burn#4907",
            "about 500 rows or more on wgpu, or a build without autotune",
        ),
        (
            continues,
            "tracel-ai/burn#5257",
            "kept keys and values, in a build with fusion and autotune",
        ),
        (
            operation == Operation::TransposedProduct,
            "tracel-ai/burn#5264",
            "a weight in column layout, on CUDA",
        ),
        (
            is_gradient,
            "tracel-ai/burn#5352",
            "a hit in the autotune cache, in training",
        ),
        (
            operation == Operation::MixedDifference,
            "tracel-ai/burn#4952",
            "a large broadcast difference of f16 and f32, on CUDA",
        ),
    ];
    let applicable = candidates.into_iter().filter(|(applies, ..)| *applies);
    let faults = applicable.map(|(_, reports, condition)| KnownFault { reports, condition });
    faults.collect()
}
