//! What all kernels promise. That their results and gradients are those of Burn's operations is
//! tested beside the code that falls back on these, in `burn-align-models`.

use burn::tensor::{DType, Distribution, TensorData};
use burn_align_quants::BlockFormat;

use super::*;

type Tracked = Autodiff<Flex>;
/// Differentiated twice, Flex is not recognised.
type Other = Autodiff<Autodiff<Flex>>;

/// A matrix of different blocks. The bits that are never set keep the scales small.
pub(crate) fn any_matrix(format: BlockFormat, [rows, cols]: [usize; 2]) -> QuantizedMatrix {
    let length = rows * format.row_bytes(cols).expect("whole blocks");
    let bytes: Vec<u8> = (0..length as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 17) as u8 & 0xb7)
        .collect();
    QuantizedMatrix::new(format, [rows, cols], bytes).expect("as many bytes")
}

fn tensor<B: Backend, const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<B, D> {
    let count = shape.iter().product::<usize>();
    let values = (0..count).map(|i| (((i * 7919) % 2003) as f32 / 1001.0 - 1.0) * 0.2);
    let data = TensorData::new(values.collect::<Vec<_>>(), shape);
    Tensor::from_data(data.convert_dtype(dtype), (&B::Device::default(), dtype))
}

/// To the bit: a row run in lockstep equals the row run alone.
#[test]
fn a_row_of_a_product_does_not_depend_on_its_batch() {
    let (inputs, outputs) = (520, 803);
    let x: Tensor<Flex, 2> = tensor([180, inputs], DType::F32);
    let w: Tensor<Flex, 2> = tensor([inputs, outputs], DType::F32);
    let b: Tensor<Flex, 1> = tensor([outputs], DType::F32);
    let columns = w.clone().transpose().into_data();
    let transposed = Tensor::<Flex, 2>::from_data(columns, &w.device()).transpose();
    let product =
        |x: Tensor<Flex, 2>, w: &Tensor<Flex, 2>| affine(x, w, Some(&b)).expect("it is on Flex");
    let expected = product(x.clone(), &w);
    for w in [w, transposed] {
        for rows in [1, 2, 10, 11, 14, 15, 17, 43, 160, 161, 175] {
            let some = product(x.clone().narrow(0, 5, rows), &w);
            let expected = expected.clone().narrow(0, 5, rows).into_data();
            assert_eq!(some.into_data(), expected, "{rows} rows");
        }
    }
}

/// To the bit, for blocks too.
#[test]
fn a_row_of_a_quantized_product_does_not_depend_on_its_batch() {
    let (inputs, outputs) = (512, 803);
    let x: Tensor<Flex, 2> = tensor([180, inputs], DType::F32);
    let b: Tensor<Flex, 1> = tensor([outputs], DType::F32);
    for format in [BlockFormat::Q4_1, BlockFormat::Q6_K, BlockFormat::F16] {
        let matrix = any_matrix(format, [outputs, inputs]);
        let product = |x| affine_quantized(x, &matrix, Some(&b)).expect("it is on Flex");
        let expected = product(x.clone());
        for rows in [1, 2, 7, 8, 9, 33, 64, 160, 161, 175] {
            let some = product(x.clone().narrow(0, 5, rows));
            let expected = expected.clone().narrow(0, 5, rows).into_data();
            assert_eq!(some.into_data(), expected, "{format} {rows} rows");
        }
    }
}

#[test]
fn nothing_is_kept_where_nothing_is_tracked() {
    let device = Default::default();
    let x = Tensor::<Tracked, 3>::random([2, 3, 4], Distribution::Default, &device);
    let y = Tensor::<Tracked, 3>::random([2, 3, 4], Distribution::Default, &device).require_grad();
    let activated = silu(x.clone()).expect("it is on Flex");
    let gradients = (activated * y.clone()).sum().backward();
    assert!(x.grad(&gradients).is_none());
    assert_eq!(
        y.grad(&gradients).expect("it is a leaf").to_data(),
        silu(x.inner()).expect("it is on Flex").to_data()
    );
}

/// The functions that have a kernel for these tensors.
fn kernels_of<B: Backend>(dtype: DType) -> Vec<&'static str> {
    let heads = || tensor::<B, 4>([1, 2, 6, 4], dtype);
    let tokens = || tensor::<B, 3>([2, 3, 8], dtype);
    let rows = || tensor::<B, 2>([3, 32], dtype);
    let weight = tensor::<B, 2>([32, 5], dtype);
    let matrix = any_matrix(BlockFormat::Q8_0, [5, 32]);
    let vector = tensor::<B, 1>([8], dtype);
    let table = tensor::<B, 4>([1, 1, 6, 2], dtype);
    let how = Attention {
        scale: 0.5,
        cap: None,
        window: None,
    };
    let class = AttendingRows {
        rows: 2,
        len: 3,
        queries: 3,
        before: KeysBefore::None,
    };
    let unchanged = tokens().into_data();
    let returned = |x: Tensor<B, 3>| assert_eq!(x.into_data(), unchanged);
    let two = || [tokens(), -tokens()];
    let both_returned = |[x, y]: [Tensor<B, 3>; 2]| [x, -y].map(returned);
    let found = [
        ("affine", affine(rows(), &weight, None).is_ok()),
        (
            "affine_quantized",
            affine_quantized(rows(), &matrix, None).is_ok(),
        ),
        (
            "causal_softmax",
            causal_softmax(heads().narrow(3, 0, 4).narrow(2, 0, 3), 0.5, None).is_ok(),
        ),
        ("attend", attend([(); 3].map(|()| heads()), &how).is_ok()),
        (
            "attend_after",
            attend_after([&heads(); 3], &[class], &how).is_some(),
        ),
        ("rotate", rotate(heads(), [&table; 2]).is_ok()),
        (
            "root_mean_square",
            root_mean_square(tokens(), 1e-5).map_err(returned).is_ok(),
        ),
        (
            "rms_norm",
            rms_norm(tokens(), &vector, 1e-5).map_err(returned).is_ok(),
        ),
        (
            "layer_norm",
            layer_norm(tokens(), &vector, &vector, 1e-5)
                .map_err(returned)
                .is_ok(),
        ),
        ("gelu", gelu(tokens()).map_err(returned).is_ok()),
        ("gelu_tanh", gelu_tanh(tokens()).map_err(returned).is_ok()),
        ("quick_gelu", quick_gelu(tokens()).map_err(returned).is_ok()),
        ("sigmoid", sigmoid(tokens()).map_err(returned).is_ok()),
        ("silu", silu(tokens()).map_err(returned).is_ok()),
        (
            "silu_gated",
            silu_gated(two()).map_err(both_returned).is_ok(),
        ),
        (
            "gelu_gated",
            gelu_gated(two()).map_err(both_returned).is_ok(),
        ),
        (
            "gelu_tanh_gated",
            gelu_tanh_gated(two()).map_err(both_returned).is_ok(),
        ),
        ("add", add(two()).map_err(both_returned).is_ok()),
        (
            "head_part",
            head_part(tokens(), 4, 1..3, 1).map_err(returned).is_ok(),
        ),
        ("merge_heads", merge_heads(heads()).is_ok()),
        ("rows_of", rows_of(heads(), 3).is_ok()),
        ("tokens_of", tokens_of(heads()).is_ok()),
    ];
    let found = found.into_iter().filter(|(_, found)| *found);
    found.map(|(name, _)| name).collect()
}

#[test]
fn a_tensor_without_a_kernel_comes_back() {
    let tracked = kernels_of::<Tracked>(DType::F32);
    assert_eq!(tracked.len(), 21);
    let without = |names: Vec<&'static str>, missing: &[&str]| -> Vec<_> {
        let names = names.into_iter();
        names.filter(|name| !missing.contains(name)).collect()
    };
    let plain = kernels_of::<Flex>(DType::F32);
    assert_eq!(plain.len(), 22);
    // A sum is Burn's under autodiff.
    assert_eq!(without(plain, &["add"]), tracked);
    for dtype in [DType::F16, DType::BF16] {
        let products = ["affine", "affine_quantized"];
        assert_eq!(kernels_of::<Flex>(dtype), products);
        assert_eq!(kernels_of::<Tracked>(dtype), products);
    }
    assert!(kernels_of::<Flex>(DType::F64).is_empty());
    assert!(kernels_of::<Other>(DType::F32).is_empty());
    assert!(multiplies_quantized::<Flex>() && multiplies_quantized::<Tracked>());
    assert!(!multiplies_quantized::<Other>());
}

#[test]
#[should_panic(expected = "features of x, and rows of the weight")]
fn factors_that_do_not_match_are_a_panic() {
    let weight: Tensor<Flex, 2> = tensor([8, 5], DType::F32);
    let _ = affine(tensor([3, 7], DType::F32), &weight, None);
}
