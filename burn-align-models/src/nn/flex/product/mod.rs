//! Matrix products of weights, which are most of what a forward pass computes.
//!
//! Few rows wait for the memory that the weight comes from: [`few_rows`] and, for transposed weights,
//! [`transposed`] read it once, as it lies. Many rows wait for the arithmetic: [`many_rows`] copies
//! the weight part by part into the order in which it is needed. All three add the features in their
//! order to the bias, so a row comes out the same, to the bit, whatever it is batched with.

mod aligned;
mod few_rows;
mod many_rows;
mod transposed;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::strided::contiguous;
use many_rows::Matrix;

type Tracked = FloatTensor<Autodiff<Flex>>;

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    let [rows, d_input] = x.shape().dims();
    let [_d_input, d_output] = weight.shape().dims();
    let dims = [rows, d_input, d_output];
    let bias = bias.cloned().map(contiguous);
    let bias: Option<&[f32]> = bias.as_ref().map(FlexTensor::storage);
    let (x, weight) = (by_rows_or_columns(x), by_rows_or_columns(weight));
    let product = match matrix(&weight).strides {
        _ if rows == 0 || d_output == 0 => Vec::new(),
        [stride, 1] if rows <= few_rows::MOST_ROWS => {
            let (x, weight) = (contiguous(x), matrix(&weight));
            few_rows::affine(x.storage(), weight.elements, stride, bias, dims)
        }
        [1, stride] if rows <= transposed::MOST_ROWS => {
            let (x, weight) = (contiguous(x), matrix(&weight));
            transposed::affine(x.storage(), weight.elements, stride, bias, dims)
        }
        _ => many_rows::affine(matrix(&x), matrix(&weight), bias, dims),
    };
    FlexTensor::from_data(TensorData::new(product, [rows, d_output]))
}

/// The tensor itself where its rows or its columns are contiguous, otherwise a copy.
fn by_rows_or_columns(x: &FlexTensor) -> FlexTensor {
    match x.layout().strides() {
        [stride, 1] | [1, stride] if *stride > 0 => x.clone(),
        _ => contiguous(x.clone()),
    }
}

/// The elements of a tensor whose rows or columns are contiguous.
fn matrix(x: &FlexTensor) -> Matrix<'_> {
    let layout = x.layout();
    Matrix {
        elements: &x.storage()[layout.start_offset()..],
        strides: [0, 1].map(|axis| layout.strides()[axis] as usize),
    }
}

/// What the gradients need: `x`, if the weight has one, and the weight, if `x` has one.
type Factors = [Option<FlexTensor>; 2];

#[derive(Debug)]
struct OfAffine;

impl Backward<Flex, 3> for OfAffine {
    type State = Factors;

    fn backward(self, ops: Ops<Factors, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [of_x, of_weight, of_bias] = ops.parents;
        let [x, weight] = ops.state;
        let gradient = contiguous(gradients.consume::<Flex>(&ops.node));
        if let (Some(node), Some(weight)) = (of_x, weight) {
            let of_x = affine(&gradient, &weight.transpose(0, 1), None);
            gradients.register::<Flex>(node.id, of_x);
        }
        if let (Some(node), Some(x)) = (of_weight, x) {
            let of_weight = affine(&x.transpose(0, 1), &gradient, None);
            gradients.register::<Flex>(node.id, of_weight);
        }
        if let Some(node) = of_bias {
            let [_rows, d_output] = gradient.shape().dims();
            let sum = Flex::float_sum_dim(gradient, 0);
            let sum = Flex::float_reshape(sum, [d_output].into());
            gradients.register::<Flex>(node.id, sum);
        }
    }
}

/// [`affine`] under autodiff.
pub(super) fn affine_tracked(x: Tracked, weight: Tracked, bias: Option<Tracked>) -> Tracked {
    let needed = |node: &Tracked| !node.node.requirement.is_none();
    let (x_needed, weight_needed) = (needed(&x), needed(&weight));
    let product = affine(
        &x.primitive,
        &weight.primitive,
        bias.as_ref().map(|bias| &bias.primitive),
    );
    // A product without a bias has one that nobody asks about.
    let bias = bias.unwrap_or_else(|| Tracked::new(product.clone()));
    match OfAffine
        .prepare::<NoCheckpointing>([x.node, weight.node, bias.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish(
            [
                weight_needed.then_some(x.primitive),
                x_needed.then_some(weight.primitive),
            ],
            product,
        ),
        OpsKind::UnTracked(prepared) => prepared.finish(product),
    }
}
