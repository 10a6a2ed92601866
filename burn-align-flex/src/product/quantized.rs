//! Products with weights that stay in the blocks of a GGUF file, and their gradients.
//!
//! Blocks are widened to f32 as they are needed, and the same values are added in the same order as
//! with the widened weight: the products are equal to the bit.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn_align_quants::QuantizedMatrix;
use burn_flex::{Flex, FlexTensor};
use pulp::Arch;

use super::elements::Elements;
use super::many_rows::Matrix;
use super::{Tracked, affine_of, gradient_of_bias, in_order};
use crate::memory;

/// `x Qᵀ + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - matrix: `[d_output, d_input]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(crate) fn affine_quantized(
    x: &FlexTensor,
    matrix: &QuantizedMatrix,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    affine_quantized_by(Arch::new(), x, matrix, bias)
}

/// [`affine_quantized`] with the vectors of this architecture.
pub(super) fn affine_quantized_by(
    arch: Arch,
    x: &FlexTensor,
    matrix: &QuantizedMatrix,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    let [d_output, _d_input] = matrix.dims();
    let (elements, stride) = elements(matrix);
    let weight = Matrix {
        elements,
        strides: [1, stride],
    };
    affine_of(arch, x, weight, d_output, bias)
}

/// `y Q`: the gradient of `x`, from that of its product.
///
/// # Shapes
/// - y: `[row, d_output]`
/// - output: `[row, d_input]`
pub(super) fn gradient_of_x(arch: Arch, y: &FlexTensor, matrix: &QuantizedMatrix) -> FlexTensor {
    let [_d_output, d_input] = matrix.dims();
    let (elements, stride) = elements(matrix);
    let weight = Matrix {
        elements,
        strides: [stride, 1],
    };
    affine_of(arch, y, weight, d_input, None)
}

/// The elements, row by row, and the stride between rows.
pub(super) fn elements(matrix: &QuantizedMatrix) -> (Elements<'_>, usize) {
    (Elements::Blocks(matrix.elements()), matrix.stride())
}

#[derive(Debug)]
struct OfQuantized;

impl Backward<Flex, 2> for OfQuantized {
    type State = QuantizedMatrix;

    fn backward(
        self,
        ops: Ops<QuantizedMatrix, 2>,
        gradients: &mut Gradients,
        _: &mut Checkpointer,
    ) {
        let [of_x, of_bias] = ops.parents;
        let gradient = in_order(gradients.consume::<Flex>(&ops.node));
        if let Some(node) = of_x {
            let of_x = gradient_of_x(Arch::new(), &gradient, &ops.state);
            gradients.register::<Flex>(node.id, of_x);
        }
        match of_bias {
            Some(node) => gradients.register::<Flex>(node.id, gradient_of_bias(gradient)),
            None => memory::give(gradient),
        }
    }
}

/// [`affine_quantized`] under autodiff. The weight has no gradient.
pub(crate) fn affine_quantized_tracked(
    x: Tracked,
    matrix: &QuantizedMatrix,
    bias: Option<Tracked>,
) -> Tracked {
    let of_bias = bias.as_ref().map(|bias| &bias.primitive);
    let product = affine_quantized(&x.primitive, matrix, of_bias);
    // A product without a bias gets one whose gradient is never used.
    let bias = bias.unwrap_or_else(|| Tracked::new(product.clone()));
    memory::give(x.primitive);
    match OfQuantized
        .prepare::<NoCheckpointing>([x.node, bias.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish(matrix.clone(), product),
        OpsKind::UnTracked(prepared) => prepared.finish(product),
    }
}
