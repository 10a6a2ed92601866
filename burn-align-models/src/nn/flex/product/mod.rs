//! Matrix products of weights, which are most of what a forward pass computes.
//!
//! Few rows wait for the memory that the weight comes from: [`few_rows`] and, for transposed weights,
//! [`transposed`] read it once, as it lies. Many rows wait for the arithmetic: [`many_rows`] copies
//! the weight part by part into the order in which it is needed. All three add the features in their
//! order to the bias, so a row comes out the same, to the bit, whatever it is batched with.

mod aligned;
mod elements;
mod few_rows;
mod many_rows;
mod transposed;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, TensorData, TensorMetadata, bf16, f16};
use burn_flex::{Flex, FlexTensor};
use pulp::Arch;

use super::strided::contiguous;
use elements::Elements;
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
    affine_by(Arch::new(), x, weight, bias)
}

/// [`affine`] with the vectors of this architecture.
fn affine_by(
    arch: Arch,
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    let [rows, d_input] = x.shape().dims();
    let [_d_input, d_output] = weight.shape().dims();
    let dims = [rows, d_input, d_output];
    let bias = bias.map(|bias| contiguous(widened(bias)));
    let bias: Option<&[f32]> = bias.as_ref().map(FlexTensor::storage);
    let dtype = x.dtype();
    let (x, weight) = (by_rows_or_columns(&widened(x)), by_rows_or_columns(weight));
    let start = weight.layout().start_offset();
    let elements = Elements::of(&weight, start);
    let product = match (elements, strides(&weight)) {
        _ if rows == 0 || d_output == 0 => Vec::new(),
        (Elements::F32(weight), [stride, 1]) if rows <= few_rows::most_rows(d_output) => {
            few_rows::affine(arch, contiguous(x).storage(), weight, stride, bias, dims)
        }
        (Elements::F32(weight), [1, stride]) if rows <= transposed::MOST_ROWS => {
            transposed::affine(arch, contiguous(x).storage(), weight, stride, bias, dims)
        }
        (elements, strides_of_weight) => {
            let x = Matrix {
                elements: &x.storage()[x.layout().start_offset()..],
                strides: strides(&x),
            };
            let weight = Matrix {
                elements,
                strides: strides_of_weight,
            };
            many_rows::affine(arch, x, weight, bias, dims)
        }
    };
    let shape = [rows, d_output];
    FlexTensor::from_data(match dtype {
        DType::F16 => TensorData::new(product.into_iter().map(f16::from_f32).collect(), shape),
        DType::BF16 => TensorData::new(product.into_iter().map(bf16::from_f32).collect(), shape),
        _ => TensorData::new(product, shape),
    })
}

/// Whether there are products of matrices of this dtype.
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

/// The tensor itself where its rows or its columns are contiguous, otherwise a copy.
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

/// Those of a tensor whose rows or columns are contiguous.
fn strides(x: &FlexTensor) -> [usize; 2] {
    [0, 1].map(|axis| x.layout().strides()[axis] as usize)
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
        let gradient = in_order(gradients.consume::<Flex>(&ops.node));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// All that this CPU has: with the widest vectors alone, others would go untested.
    fn architectures() -> Vec<Arch> {
        let mut all = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        all.extend(pulp::x86::V3::try_new().map(Arch::V3));
        all
    }

    fn tensor([rows, columns]: [usize; 2]) -> FlexTensor {
        let numbers = (0..rows * columns).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0);
        let numbers: Vec<f32> = numbers.collect();
        FlexTensor::from_data(TensorData::new(numbers, [rows, columns]))
    }

    /// Element by element, in f64.
    fn by_definition(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> Vec<f64> {
        let [rows, d_input] = x.shape().dims();
        let [_d_input, d_output] = weight.shape().dims();
        let (x, weight) = (contiguous(x.clone()), weight.to_contiguous());
        let [x, weight, bias]: [&[f32]; 3] = [&x, &weight, bias].map(|it| it.storage());
        let mut product = Vec::with_capacity(rows * d_output);
        for row in x.chunks(d_input).take(rows) {
            for (column, bias) in bias.iter().enumerate() {
                let weights = weight.iter().skip(column).step_by(d_output);
                let terms = row.iter().zip(weights);
                let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                product.push(f64::from(*bias) + sum);
            }
        }
        product
    }

    #[test]
    fn products_in_16_bits_are_those_in_32_bits_rounded() {
        for dims in [[1, 1, 1], [3, 7, 129], [17, 300, 241], [63, 12, 481]] {
            let [rows, d_input, d_output] = dims;
            for dtype in [DType::F16, DType::BF16] {
                let rounded = |x: FlexTensor| Flex::float_cast(x, dtype.into());
                let x = rounded(tensor([rows, d_input]));
                let bias = rounded(tensor([1, d_output]).reshape([d_output].into()));
                let weights = [
                    rounded(tensor([d_input, d_output])),
                    rounded(tensor([d_output, d_input])).transpose(0, 1),
                    rounded(tensor([d_input, 2 * d_output])).narrow(1, d_output, d_output),
                ];
                for weight in weights {
                    let [x_wide, weight_wide, bias_wide] = [&x, &weight, &bias].map(widened);
                    for arch in architectures() {
                        let wide = affine_by(arch, &x_wide, &weight_wide, Some(&bias_wide));
                        let round = |x: &f32| match dtype {
                            DType::F16 => f16::from_f32(*x).to_f32(),
                            _ => bf16::from_f32(*x).to_f32(),
                        };
                        let expected: Vec<f32> = wide.storage().iter().map(round).collect();
                        let found = affine_by(arch, &x, &weight, Some(&bias));
                        assert_eq!(found.dtype(), dtype);
                        let found = widened(&found);
                        let found = found.storage::<f32>();
                        let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
                        let strides = weight.layout().strides();
                        assert_eq!(differ, None, "{dtype:?} {dims:?} {strides:?} {arch:?}");
                        assert_eq!(found.len(), expected.len());
                    }
                }
            }
        }
    }

    #[test]
    fn products_agree_with_their_definition_on_all_vectors() {
        for [rows, d_input, d_output] in [
            [1, 1, 1],
            [3, 7, 129],
            [10, 33, 70],
            [11, 16, 64],
            [17, 300, 241],
            [40, 5, 95],
            [63, 12, 481],
            [165, 40, 50],
        ] {
            let x = tensor([rows, d_input]);
            let bias = tensor([1, d_output]).reshape([d_output].into());
            let weights = [
                tensor([d_input, d_output]),
                tensor([d_output, d_input]).transpose(0, 1),
            ];
            for weight in weights {
                let expected = by_definition(&x, &weight, &bias);
                for arch in architectures() {
                    let product = affine_by(arch, &x, &weight, Some(&bias));
                    let found: &[f32] = product.storage();
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let difference = (f64::from(*found) - expected).abs();
                        assert!(difference < 1e-4, "{arch:?}: {found} {expected}");
                    }
                }
            }
        }
    }
}
