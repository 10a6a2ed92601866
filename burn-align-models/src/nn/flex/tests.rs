//! The fast paths agree with the portable way, which they take under autodiff.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;

use super::super::attention::merge_heads;
use super::super::norm::root_mean_square;
use super::super::projection::times_transposed;
use crate::nn::Activation;

type Portable = Autodiff<Flex>;

fn data<const D: usize>(shape: [usize; D], spread: f32) -> TensorData {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n)
        .map(|i| (((i * 7919) % 2003) as f32 / 1001.0 - 1.0) * spread)
        .collect();
    TensorData::new(values, shape)
}

/// Asserts that both tensors agree within 1e-6 of their own size.
fn assert_close<const D: usize>(fast: Tensor<Flex, D>, portable: Tensor<Portable, D>) {
    assert_eq!(fast.dims(), portable.dims());
    let largest = (fast.clone() - portable.clone().inner())
        .abs()
        .div(portable.inner().abs().clamp_min(1.0))
        .max()
        .into_scalar();
    assert!(largest <= 1e-6, "difference {largest}");
}

fn both<const D: usize>(shape: [usize; D], spread: f32) -> (Tensor<Flex, D>, Tensor<Portable, D>) {
    let device = Default::default();
    (
        Tensor::from_data(data(shape, spread), &device),
        Tensor::from_data(data(shape, spread), &device),
    )
}

/// One element, odd numbers, more than one task.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [3, 5, 7], [1, 17, 1031], [5, 3, 4099]];

#[test]
fn activations() {
    for activation in [
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Sigmoid,
        Activation::Silu,
    ] {
        for shape in SHAPES {
            for spread in [0.1, 5.0, 200.0] {
                let (x, portable) = both(shape, spread);
                let kept = x.clone();
                assert_close(activation.forward(x), activation.forward(portable.clone()));
                // The argument was shared, so it has not been changed.
                assert_close(kept, portable);
            }
        }
    }
}

#[test]
fn views() {
    let (x, portable) = both([6, 10, 9], 3.0);
    assert_close(
        Activation::Silu.forward(x.clone().narrow(0, 0, 2)),
        Activation::Silu.forward(portable.clone().narrow(0, 0, 2)),
    );
    assert_close(
        Activation::Silu.forward(x.swap_dims(0, 2)),
        Activation::Silu.forward(portable.swap_dims(0, 2)),
    );
}

#[test]
fn norms() {
    for shape in SHAPES {
        let (x, portable) = both(shape, 3.0);
        assert_close(root_mean_square(x, 1e-5), root_mean_square(portable, 1e-5));
    }
}

#[test]
fn heads() {
    for shape in [[1, 1, 1, 1], [2, 3, 5, 7], [9, 12, 5, 64]] {
        let (x, portable) = both(shape, 3.0);
        assert_close(merge_heads(x), merge_heads(portable));
    }
}

#[test]
fn unembedding() {
    for (rows, vocab, width) in [(1, 300, 48), (3, 1001, 33), (17, 65, 16), (40, 7, 5)] {
        let (x, portable) = both([rows, width], 0.2);
        let (e, e_portable) = both([vocab, width], 0.2);
        assert_close(
            times_transposed(x, e),
            times_transposed(portable, e_portable),
        );
    }
}
