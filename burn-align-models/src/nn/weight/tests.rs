//! A quantised weight is the same parameter to Burn, and the same matrix to the model.

use burn::backend::{Autodiff, Flex};
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};

use super::*;
use crate::nn::{Projection, TokenEmbedding};
use crate::quants::BlockFormat;

type Tracked = Autodiff<Flex>;
/// Differentiated twice, Flex is not recognised.
type Other = Autodiff<Autodiff<Flex>>;

const INPUTS: usize = 64;
const OUTPUTS: usize = 40;

/// A matrix of different blocks. The bits that are never set keep the scales small.
fn any_matrix(format: BlockFormat, [rows, cols]: [usize; 2]) -> QuantizedMatrix {
    let length = rows * format.row_bytes(cols).expect("whole blocks");
    let bytes: Vec<u8> = (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 17) as u8 & 0xb7)
        .collect();
    QuantizedMatrix::new(format, [rows, cols], bytes).expect("as many bytes")
}

fn matrix() -> QuantizedMatrix {
    any_matrix(BlockFormat::Q4_1, [OUTPUTS, INPUTS])
}

/// The same projection with a quantised weight, and with the tensor that it represents.
fn both<B: Backend>() -> [Projection<B>; 2] {
    let device = B::Device::default();
    let empty = || Param::from_tensor(Tensor::<B, 2>::zeros([INPUTS, OUTPUTS], &device));
    let bias = (0..OUTPUTS).map(|i| i as f32 / 10.0).collect::<Vec<_>>();
    let bias = Param::from_tensor(Tensor::from_floats(bias.as_slice(), &device));
    let mut quantized = Projection::new(empty(), Some(bias.clone()));
    let shape = quantized.weight.set_quantized(matrix(), DType::F32);
    shape.expect("of the same shape");
    let dense = matrix().to_tensor(&device, DType::F32).transpose();
    let dense = Projection::new(Param::from_tensor(dense), Some(bias));
    [quantized, dense].map(Module::no_grad)
}

fn activations<B: Backend>(width: usize) -> Tensor<B, 3> {
    let values = (0..6 * width).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0);
    let values = TensorData::new(values.collect::<Vec<_>>(), [2, 3, width]);
    Tensor::from_data(values, &B::Device::default())
}

/// Everything that a projection computes.
fn products<B: Backend>(projection: &Projection<B>, x: &Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
    [
        projection.forward(x.clone()),
        projection.forward_part(5..17, x.clone()),
        projection.contribution(7..43, x.clone().narrow(2, 7, 36)),
    ]
}

#[test]
fn products_are_those_of_the_dense_weight_to_the_bit() {
    assert!(keeps_quantized::<Flex>() && keeps_quantized::<Tracked>());
    let [quantized, dense] = both::<Flex>();
    assert!(quantized.weight.quantized().is_some());
    assert_eq!(quantized.dims(), dense.dims());
    let x = activations(INPUTS);
    for (found, expected) in products(&quantized, &x)
        .into_iter()
        .zip(products(&dense, &x))
    {
        assert_eq!(found.into_data(), expected.into_data());
    }
}

#[test]
fn gradients_of_activations_are_those_of_the_dense_weight_to_the_bit() {
    let [found, expected] = both::<Tracked>().map(|projection| {
        let x = activations::<Tracked>(INPUTS).require_grad();
        let sums = products(&projection, &x).map(|product| (product.clone() * product).sum());
        let [a, b, c] = sums;
        let gradients = (a + b + c).backward();
        x.grad(&gradients).expect("it is tracked").into_data()
    });
    assert_eq!(found, expected);
}

#[test]
fn a_bias_beside_a_quantised_weight_can_be_trained() {
    let [found, expected] = both::<Tracked>().map(|projection| {
        let bias = projection.bias.as_ref().expect("it has one");
        let bias = Param::from_tensor(bias.val().detach());
        let projection = Projection {
            bias: Some(bias.clone()),
            ..projection
        };
        let product = projection.forward(activations(INPUTS));
        let gradients = (product.clone() * product).sum().backward();
        bias.val().grad(&gradients).expect("tracked").into_data()
    });
    assert_eq!(found, expected);
}

#[test]
fn tokens_are_looked_up_and_unembedded() {
    let device = Default::default();
    let empty = Param::from_tensor(Tensor::<Flex, 2>::zeros([OUTPUTS, INPUTS], &device));
    let mut quantized = TokenEmbedding::new(empty);
    let shape = quantized.weight.set_quantized(matrix(), DType::F32);
    shape.expect("of the same shape");
    let dense = matrix().to_tensor(&device, DType::F32);
    let dense = TokenEmbedding::new(Param::from_tensor(dense));
    let tokens = Tensor::<Flex, 2, Int>::from_ints([[0, 39, 7], [7, 1, 0]], &device);
    let x = quantized.forward(tokens.clone());
    assert_eq!(x.to_data(), dense.forward(tokens).into_data());
    let logits = dense.unembed(x.clone()).into_data();
    assert_eq!(quantized.unembed(x).into_data(), logits);
    assert_eq!(
        quantized.weight.val().into_data(),
        dense.weight.val().into_data()
    );
}

/// Paths, shapes and values of all parameters.
fn parameters<M: Module<Flex>>(module: &M) -> Vec<(String, TensorData)> {
    #[derive(Default)]
    struct All(Vec<String>, Vec<(String, TensorData)>);
    impl ModuleVisitor<Flex> for All {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Flex, D>>) {
            assert_eq!(param.lazy_shape(), param.val().shape());
            self.1.push((self.0.join("."), param.val().into_data()));
        }
    }
    let mut all = All::default();
    module.visit(&mut all);
    all.1
}

#[test]
fn to_burn_it_is_the_same_parameter() {
    let [quantized, dense] = both::<Flex>();
    assert_eq!(parameters(&quantized), parameters(&dense));
    assert_eq!(Module::num_params(&quantized), Module::num_params(&dense));
    assert_eq!(quantized.devices(), dense.devices());

    // A record is dense, and makes a quantised weight dense.
    let [empty, _] = both::<Flex>();
    let loaded = empty.load_record(quantized.clone().into_record());
    assert!(loaded.weight.quantized().is_none());
    assert_eq!(parameters(&loaded), parameters(&dense));

    // The blocks survive everything else that can happen to a module.
    struct Anything;
    impl ModuleMapper<Flex> for Anything {
        fn map_float<const D: usize>(
            &mut self,
            param: Param<Tensor<Flex, D>>,
        ) -> Param<Tensor<Flex, D>> {
            param.map(|tensor| tensor * 2.0)
        }
    }
    let device = Default::default();
    let moved = quantized.fork(&device).to_device(&device);
    let tracked = moved.clone().train::<Tracked>();
    for projection in [moved.clone(), moved.map(&mut Anything), tracked.valid()] {
        let kept = projection.weight.quantized().expect("still quantised");
        assert_eq!(kept.dequantize(), matrix().dequantize());
    }
}

#[test]
fn where_there_are_no_kernels_it_becomes_a_tensor() {
    assert!(!keeps_quantized::<Other>());
    for dtype in [DType::F32, DType::F16] {
        let device = Default::default();
        let empty = Tensor::<Other, 2>::zeros([INPUTS, OUTPUTS], &device);
        let mut projection = Projection::new(Param::from_tensor(empty), None);
        let shape = projection.weight.set_quantized(matrix(), dtype);
        shape.expect("of the same shape");
        assert!(projection.weight.quantized().is_none());
        assert_eq!(projection.weight.dtype(), dtype);
        let expected = matrix().to_tensor::<Flex>(&device, dtype).transpose();
        assert_eq!(projection.weight.val().into_data(), expected.into_data());
    }
    // Products with blocks that end up there anyway are correct, though slow.
    let x = Tensor::<Other, 2>::random([3, INPUTS], Distribution::Default, &Default::default());
    let product = crate::nn::projection::affine_quantized(x.clone(), &matrix(), None);
    let weight = matrix().to_tensor(&x.device(), DType::F32).transpose();
    let expected = x.matmul(weight);
    let largest = expected.clone().abs().max().into_scalar();
    let difference = (product - expected).abs().max().into_scalar();
    assert!(difference < 1e-5 * largest, "{difference} of {largest}");
}

/// Activations have the model's dtype, and a quantised weight belongs to a model in f32.
#[test]
fn in_a_model_in_half_precision_it_becomes_a_tensor() {
    let [mut projection, _] = both::<Flex>();
    let shape = projection.weight.set_quantized(matrix(), DType::BF16);
    shape.expect("of the same shape");
    assert!(projection.weight.quantized().is_none());
    assert_eq!(projection.weight.dtype(), DType::BF16);
}

#[test]
fn matrices_of_another_shape_are_refused() {
    let [mut projection, _] = both::<Flex>();
    let transposed = any_matrix(BlockFormat::F32, [INPUTS, OUTPUTS]);
    let refused = projection.weight.set_quantized(transposed, DType::F32);
    assert_eq!(
        refused.expect_err("rows are outputs").to_string(),
        "expected a matrix of shape [40, 64], found [64, 40]"
    );
}
