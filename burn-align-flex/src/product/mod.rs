//! Matrix products with weights, which take most of the time of a forward pass.
//!
//! With few rows, products are limited by memory: [`few_rows`] and, for transposed weights,
//! [`transposed`] read the weight once, in its own layout; [`panels`] does so for a weight of a
//! GGUF file whose rows lie side by side. With many rows, they are limited by arithmetic:
//! [`many_rows`] copies the weight part by part into the order in which it is needed. All of them
//! add the features in order to the bias, so a row's result is the same to the bit whatever it is
//! batched with.

mod elements;
mod few_rows;
mod many_rows;
mod panels;
mod quantized;
#[cfg(test)]
mod tests;
mod transposed;

pub(super) use quantized::{affine_quantized, affine_quantized_tracked};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, TensorData, TensorMetadata, bf16, f16};
use burn_flex::{Flex, FlexTensor};
use pulp::Arch;

use super::memory;
use super::strided::contiguous;
use elements::Elements;
use many_rows::{Factor, Matrix};

type Tracked = FloatTensor<Autodiff<Flex>>;

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`
/// - weight: `[d_input, d_output]`
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    affine_by(Arch::new(), x, weight, bias)
}

/// [`affine`] with the vectors of this architecture.
fn affine_by(
    arch: Arch,
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    let [_d_input, d_output] = weight.shape().dims();
    let weight = by_rows_or_columns(weight);
    let matrix = Matrix {
        elements: Elements::of(&weight, weight.layout().start_offset()),
        strides: strides(&weight),
    };
    affine_of(arch, x, matrix, d_output, bias)
}

/// [`affine`] with a weight that is not a tensor.
fn affine_of(
    arch: Arch,
    x: &FlexTensor,
    weight: Matrix<Elements>,
    d_output: usize,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    let [rows, d_input] = x.shape().dims();
    let dims = [rows, d_input, d_output];
    let bias = bias.map(|bias| contiguous(widened(bias)));
    let bias: Option<&[f32]> = bias.as_ref().map(FlexTensor::storage);
    let dtype = x.dtype();
    let x = by_rows_or_columns(&widened(x));
    let in_panels = match weight.elements {
        Elements::Blocks(blocks) if weight.strides[0] == 1 && rows <= panels::MOST_ROWS => {
            panels::of_whole_blocks(blocks, d_input)
        }
        _ => None,
    };
    let product = match (in_panels, weight.elements, weight.strides) {
        _ if rows == 0 || d_output == 0 => Vec::new(),
        _ if d_input == 0 => bias.map_or_else(|| vec![0.0; rows * d_output], |it| it.repeat(rows)),
        (Some(panels), _, _) => panels::affine(arch, contiguous(x).storage(), panels, bias, dims),
        (None, Elements::F32(weight), [stride, 1]) if rows <= few_rows::most_rows(d_output) => {
            few_rows::affine(arch, contiguous(x).storage(), weight, stride, bias, dims)
        }
        (None, elements @ (Elements::F32(_) | Elements::Blocks(_)), [1, stride])
            if rows <= transposed::MOST_ROWS && !lies_in_squares(elements) =>
        {
            transposed::affine(arch, contiguous(x).storage(), elements, stride, bias, dims)
        }
        _ => {
            let x = Matrix {
                elements: &x.storage()[x.layout().start_offset()..],
                strides: strides(&x),
            };
            let factor = Factor {
                weight,
                bias,
                d_output,
            };
            let mut products = many_rows::affine_each(arch, x, &[factor], [rows, d_input]);
            products.swap_remove(0)
        }
    };
    let shape = [rows, d_output];
    FlexTensor::from_data(match dtype {
        DType::F16 => TensorData::new(product.into_iter().map(f16::from_f32).collect(), shape),
        DType::BF16 => TensorData::new(product.into_iter().map(bf16::from_f32).collect(), shape),
        _ => TensorData::new(product, shape),
    })
}

/// `x W + b` for each weight and bias, all in f32, with the rows read once; `None` where reading the
/// weights is what takes the time.
pub(super) fn affine_each(
    x: &FlexTensor,
    weights: &[FlexTensor],
    biases: &[Option<FlexTensor>],
) -> Option<Vec<FlexTensor>> {
    let [rows, d_input] = x.shape().dims();
    let outputs = weights.iter().map(|weight| {
        let [_d_input, d_output] = weight.shape().dims();
        d_output
    });
    let outputs: Vec<usize> = outputs.collect();
    let mut most_rows = outputs.iter().map(|width| few_rows::most_rows(*width));
    let is_worth_it = most_rows.all(|most| rows > most.max(transposed::MOST_ROWS));
    if !is_worth_it || d_input == 0 || outputs.contains(&0) {
        return None;
    }
    let x = by_rows_or_columns(x);
    let x = Matrix {
        elements: &x.storage()[x.layout().start_offset()..],
        strides: strides(&x),
    };
    let weights: Vec<FlexTensor> = weights.iter().map(by_rows_or_columns).collect();
    let biases = biases.iter().cloned().map(|bias| bias.map(contiguous));
    let biases: Vec<Option<FlexTensor>> = biases.collect();
    let factors = weights.iter().zip(&biases).zip(&outputs);
    let factors = factors.map(|((weight, bias), d_output)| Factor {
        weight: Matrix {
            elements: Elements::of(weight, weight.layout().start_offset()),
            strides: strides(weight),
        },
        bias: bias.as_ref().map(FlexTensor::storage),
        d_output: *d_output,
    });
    let factors: Vec<Factor> = factors.collect();
    let products = many_rows::affine_each(Arch::new(), x, &factors, [rows, d_input]);
    let products = products.into_iter().zip(outputs);
    let products = products
        .map(|(product, width)| FlexTensor::from_data(TensorData::new(product, [rows, width])));
    Some(products.collect())
}

/// Whether [`many_rows`] reads these elements fast: of panels, [`transposed`] would read one row of
/// the weight at a time, of whose blocks each has to be put together first.
fn lies_in_squares(elements: Elements) -> bool {
    matches!(elements, Elements::Blocks(weight) if many_rows::panels_in_squares(weight).is_some())
}

/// Whether matrices of this dtype can be multiplied.
pub(super) fn multiplies(dtype: DType) -> bool {
    Elements::are(dtype)
}

/// The tensor in f32: itself, or a copy.
fn widened(x: &FlexTensor) -> FlexTensor {
    match x.dtype() {
        DType::F32 => x.clone(),
        _ => Flex::float_cast(x.clone(), DType::F32.into()),
    }
}

/// The tensor itself if its rows or its columns are contiguous, otherwise a copy.
fn by_rows_or_columns(x: &FlexTensor) -> FlexTensor {
    match x.layout().strides() {
        [stride, 1] | [1, stride] if *stride > 0 => x.clone(),
        _ => in_order(x.clone()),
    }
}

/// The tensor in row-major order.
fn in_order(x: FlexTensor) -> FlexTensor {
    match x.dtype() {
        DType::F32 => contiguous(x),
        _ => x.to_contiguous(),
    }
}

/// The strides of a tensor whose rows or columns are contiguous.
fn strides(x: &FlexTensor) -> [usize; 2] {
    [0, 1].map(|axis| x.layout().strides()[axis] as usize)
}

/// What the gradients need: `x`, if the weight has a gradient, and the weight, if `x` has one.
type Factors = [Option<FlexTensor>; 2];

#[derive(Debug)]
struct OfAffine;

impl Backward<Flex, 3> for OfAffine {
    type State = Factors;

    fn backward(self, ops: Ops<Factors, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [of_x, of_weight, of_bias] = ops.parents;
        let [x, weight] = ops.state;
        let gradient = in_order(gradients.consume::<Flex>(&ops.node));
        if let (Some(node), Some(weight)) = (of_x, weight) {
            let of_x = affine(&gradient, &weight.transpose(0, 1), None);
            gradients.register::<Flex>(node.id, of_x);
        }
        if let (Some(node), Some(x)) = (of_weight, x) {
            let of_weight = affine(&x.transpose(0, 1), &gradient, None);
            gradients.register::<Flex>(node.id, of_weight);
            memory::give(x);
        }
        match of_bias {
            Some(node) => gradients.register::<Flex>(node.id, gradient_of_bias(gradient)),
            None => memory::give(gradient),
        }
    }
}

/// The gradient of a bias, from that of its product.
fn gradient_of_bias(gradient: FlexTensor) -> FlexTensor {
    let [_rows, d_output] = gradient.shape().dims();
    let sum = Flex::float_sum_dim(gradient, 0);
    Flex::float_reshape(sum, [d_output].into())
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
    // A product without a bias gets one whose gradient is never used.
    let bias = bias.unwrap_or_else(|| Tracked::new(product.clone()));
    let for_weight = weight_needed.then(|| x.primitive.clone());
    memory::give(x.primitive);
    match OfAffine
        .prepare::<NoCheckpointing>([x.node, weight.node, bias.node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let for_x = x_needed.then_some(weight.primitive);
            prepared.finish([for_weight, for_x], product)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(product),
    }
}
