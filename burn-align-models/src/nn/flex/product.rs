//! Matrix products of weights, which are most of what a forward pass computes.
//!
//! Weights as they lie in a model have kernels of their own: [`few_rows`] waits for the memory alone,
//! [`many_rows`] takes .7 to .95 times as long as `faer`. Transposed weights, which gradients
//! need, go through `faer`, which on the shapes of language models is 1.3 to 2.5 times as fast as the
//! products that Flex makes.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::kernels::in_tasks;
use super::many_rows::Matrix;
use super::strided::contiguous;
use super::{few_rows, many_rows};

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
    let few = (1..=few_rows::MOST_ROWS).contains(&rows);
    // The weight from its first element on, if its rows are contiguous.
    let by_rows = match *weight.layout().strides() {
        [stride, 1] if stride >= d_output as isize && d_output > 0 => {
            let elements = &weight.storage()[weight.layout().start_offset()..];
            Some((elements, stride as usize))
        }
        _ => None,
    };
    let bias = bias.cloned().map(contiguous);
    let bias: Option<&[f32]> = bias.as_ref().map(FlexTensor::storage);
    if let Some((weight, stride)) = by_rows
        && !few
    {
        let x = by_rows_or_columns(x);
        let x = Matrix {
            elements: &x.storage()[x.layout().start_offset()..],
            strides: [0, 1].map(|axis| x.layout().strides()[axis] as usize),
        };
        let product = many_rows::affine(x, weight, stride, bias, [rows, d_input, d_output]);
        return FlexTensor::from_data(TensorData::new(product, [rows, d_output]));
    }
    let mut product = vec![0.0; rows * d_output];
    if let Some(bias) = bias {
        in_tasks(&mut product, d_output, |_, row| row.copy_from_slice(bias));
    }
    if let Some((weight, stride)) = by_rows {
        let x = contiguous(x.clone());
        let dims = [d_input, d_output];
        few_rows::add_product(x.storage(), weight, stride, &mut product, dims);
        return FlexTensor::from_data(TensorData::new(product, [rows, d_output]));
    }
    let start = match bias {
        Some(_) => Accum::Add,
        None => Accum::Replace,
    };
    let (x, weight) = (by_rows_or_columns(x), by_rows_or_columns(weight));
    matmul(
        MatMut::from_row_major_slice_mut(&mut product, rows, d_output),
        start,
        matrix(&x),
        matrix(&weight),
        1.0,
        Par::rayon(0),
    );
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
fn matrix(x: &FlexTensor) -> MatRef<'_, f32> {
    let [rows, columns] = x.shape().dims();
    let layout = x.layout();
    let elements = &x.storage::<f32>()[layout.start_offset()..];
    match layout.strides() {
        [stride, 1] => {
            MatRef::from_row_major_slice_with_stride(elements, rows, columns, *stride as usize)
        }
        [1, stride] => {
            MatRef::from_column_major_slice_with_stride(elements, rows, columns, *stride as usize)
        }
        _ => unreachable!("a copy is contiguous"),
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
