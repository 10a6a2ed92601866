//! The fast paths agree with the portable path, forwards and backwards.

use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};

use super::super::attention::{
    Attend, attend, head_part, heads_of_groups, merge_heads, rows_of, split_heads, tokens_of,
};
use super::super::norm::{layer_norm, rms_norm, root_mean_square};
use super::super::projection::affine;
use crate::nn::{Activation, ParamInit, Projection, RotaryConfig, RotaryScaling, add_to_stream};
use crate::{Cx, NoTap, Pass, Tables};

/// Differentiated twice, Flex is not recognised.
type Portable = Autodiff<Autodiff<Flex>>;
type Fast = Autodiff<Flex>;

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
    let portable = portable.inner().inner();
    let largest = (fast - portable.clone())
        .abs()
        .div(portable.abs().clamp_min(1.0))
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
        Activation::Gelu,
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
        let (weight, portable_weight) = both([shape[2]], 2.0);
        assert_close(
            rms_norm(x.clone(), weight, 1e-5),
            rms_norm(portable.clone(), portable_weight, 1e-5),
        );
        assert_close(root_mean_square(x, 1e-5), root_mean_square(portable, 1e-5));
    }
}

#[test]
fn gates() {
    for activation in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ] {
        for shape in SHAPES {
            let (gate, portable_gate) = both(shape, 5.0);
            let (up, portable_up) = both(shape, 3.0);
            let kept = gate.clone();
            assert_close(
                activation.gated(gate, up),
                activation.gated(portable_gate.clone(), portable_up),
            );
            // The gate was shared, so it has not been changed.
            assert_close(kept, portable_gate);
        }
    }
}

#[test]
fn sums() {
    for shape in SHAPES {
        let (x, portable) = both(shape, 5.0);
        let (y, portable_y) = both(shape, 3.0);
        let expected = portable.clone() + portable_y.clone();
        for (x, y) in [(x.clone() * 1.0, y.clone()), (x.clone(), y.clone() * 1.0)] {
            assert_close(add_to_stream(x, y), expected.clone());
        }
        // None of them has been changed.
        assert_close(x, portable);
        assert_close(y, portable_y);
    }
}

#[test]
fn heads() {
    for shape in [[1, 1, 1, 1], [2, 3, 5, 7], [9, 12, 5, 64]] {
        let (x, portable) = both(shape, 3.0);
        assert_close(merge_heads(x), merge_heads(portable));
    }
}

/// Both paths of a function of some tensors of these shapes.
macro_rules! assert_differentiates {
    ($shapes:expr, $x:ident => $function:expr) => {{
        let device = Default::default();
        let fast = $shapes.map(|shape| Tensor::from_data(data(shape, 2.0), &device));
        let portable = $shapes.map(|shape| Tensor::from_data(data(shape, 2.0), &device));
        assert_same_gradients(
            gradients::<Fast, _, _>(fast, |$x| $function),
            gradients::<Portable, _, _>(portable, |$x| $function),
        );
    }};
}

/// Rows, inputs and outputs: odd numbers, one task or several, few rows or many, more than a
/// kernel's block.
const PRODUCTS: [[usize; 3]; 12] = [
    [1, 3, 2],
    [4, 1, 1],
    [5, 33, 131],
    [1, 70, 600],
    [3, 64, 1030],
    [10, 37, 1100],
    [11, 37, 1100],
    [17, 96, 64],
    [131, 65, 101],
    [170, 261, 45],
    [29, 300, 470],
    [300, 40, 500],
];

#[test]
fn products() {
    for [rows, inputs, outputs] in PRODUCTS {
        let (x, x_portable) = both([rows, inputs], 0.2);
        let (w, w_portable) = both([inputs, outputs + 3], 0.2);
        let (b, b_portable) = both([outputs], 0.2);
        // Whole matrices, some columns, and a transposed one.
        let columns = |w: &Tensor<Flex, 2>| w.clone().narrow(1, 2, outputs);
        let columns_portable = |w: &Tensor<Portable, 2>| w.clone().narrow(1, 2, outputs);
        assert_close(
            affine(x.clone(), w.clone(), None),
            affine(x_portable.clone(), w_portable.clone(), None),
        );
        assert_close(
            affine(x.clone(), columns(&w), Some(b)),
            affine(
                x_portable.clone(),
                columns_portable(&w_portable),
                Some(b_portable),
            ),
        );
        let (w, w_portable) = both([outputs, inputs], 0.2);
        assert_close(
            affine(x, w.transpose(), None),
            affine(x_portable, w_portable.transpose(), None),
        );
    }
}

#[test]
fn gradients_of_products() {
    /// A product by the fast path, or by its definition: Burn's own cannot be differentiated twice.
    fn product<B: Backend>(
        [x, w, b]: [Tensor<B, 3>; 3],
        transposed: bool,
        fast: bool,
    ) -> Tensor<B, 2> {
        let (x, w, b) = (
            x.squeeze_dim::<2>(0) * 0.1,
            w.squeeze_dim(0),
            b.squeeze_dims(&[0, 1]),
        );
        let w: Tensor<B, 2> = match transposed {
            true => w.transpose(),
            false => w,
        };
        let [_inputs, outputs] = w.dims();
        let w = w.narrow(1, 2, outputs - 3);
        match fast {
            true => affine(x, w, Some(b)),
            false => x.matmul(w) + b.unsqueeze(),
        }
    }
    let device = Default::default();
    // Longer sums differ by their rounding.
    let short = |[_rows, _inputs, outputs]: &[usize; 3]| *outputs < 200;
    for [rows, inputs, outputs] in PRODUCTS.into_iter().filter(short) {
        for transposed in [false, true] {
            let weight = match transposed {
                false => [1, inputs, outputs + 3],
                true => [1, outputs + 3, inputs],
            };
            let shapes = [[1, rows, inputs], weight, [1, 1, outputs]];
            let fast = shapes.map(|shape| Tensor::from_data(data(shape, 2.0), &device));
            let portable = shapes.map(|shape| Tensor::from_data(data(shape, 2.0), &device));
            assert_same_gradients(
                gradients::<Fast, _, _>(fast, |x| product(x, transposed, true)),
                gradients::<Portable, _, _>(portable, |x| product(x, transposed, false)),
            );
        }
    }
}

/// Causal attention of three tensors with heads.
fn attention<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    window: Option<usize>,
) -> Tensor<B, 4> {
    let [_batch, _head, pos, _d_head] = q.dims();
    let pass = Pass::new(pos, &q.device(), &Tables::new());
    let how = Attend {
        layer: 0,
        scale: 0.7,
        cap: None,
        window,
        fused: false,
    };
    attend(q, k, v, &how, &mut Cx::new(&mut NoTap, &pass))
}

/// The gradients of a weighted sum of the results of a function of some tensors.
fn gradients<A: AutodiffBackend, const N: usize, const D: usize>(
    arguments: [Tensor<A, 3>; N],
    function: impl Fn([Tensor<A, 3>; N]) -> Tensor<A, D>,
) -> [Tensor<A::InnerBackend, 3>; N] {
    let arguments = arguments.map(Tensor::require_grad);
    let result = function(arguments.clone());
    let weights = Tensor::from_data(data(result.dims(), 1.0), &result.device());
    let gradients = (result * weights).sum().backward();
    arguments.map(|argument| argument.grad(&gradients).expect("it is a leaf"))
}

/// Asserts that both paths give the same gradients, to 1e-6 of the largest one.
fn assert_same_gradients<const N: usize>(
    fast: [Tensor<Flex, 3>; N],
    portable: [Tensor<Fast, 3>; N],
) {
    for (index, (fast, portable)) in fast.into_iter().zip(portable).enumerate() {
        let portable = portable.inner();
        let largest = (fast - portable.clone()).abs().max().into_scalar();
        let scale = portable.abs().max().into_scalar();
        assert!(
            largest <= 1e-6 * scale.max(1.0),
            "{index}: {largest} of {scale}"
        );
    }
}

#[test]
fn gradients_of_activations() {
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Sigmoid,
        Activation::Silu,
    ] {
        for shape in SHAPES {
            for spread in [0.1, 5.0, 200.0] {
                let device = Default::default();
                let x = data(shape, spread);
                assert_same_gradients(
                    gradients::<Fast, 1, 3>([Tensor::from_data(x.clone(), &device)], |[x]| {
                        activation.forward(x)
                    }),
                    gradients::<Portable, 1, 3>([Tensor::from_data(x, &device)], |[x]| {
                        activation.forward(x)
                    }),
                );
            }
        }
    }
}

#[test]
fn gradients_of_norms() {
    for shape in SHAPES {
        let width = shape[2];
        assert_differentiates!([shape], x => root_mean_square(x[0].clone(), 1e-5));
        // With a gradient of the weight, and without.
        assert_differentiates!([shape, [1, 1, width]], x => {
            let [x, weight] = x;
            rms_norm(x, weight.reshape([width]), 1e-5)
        });
        assert_differentiates!([shape], x => {
            let [x] = x;
            let weight = Tensor::from_data(data([width], 2.0), &x.device());
            rms_norm(x, weight, 1e-5)
        });
        assert_differentiates!([shape, [1, 1, width], [1, 1, width]], x => {
            let [x, weight, bias] = x;
            layer_norm(x, weight.reshape([width]), bias.reshape([width]), 1e-5)
        });
    }
}

#[test]
fn gradients_of_gates() {
    for shape in SHAPES {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            assert_differentiates!([shape, shape], x => {
                let [gate, up] = x;
                activation.gated(gate * 0.7, up)
            });
        }
    }
}

#[test]
fn gradients_of_heads() {
    for [batch, head, pos, d_head] in [[1, 1, 1, 1], [2, 3, 5, 7], [9, 12, 5, 64]] {
        assert_differentiates!([[batch * head, pos, d_head]], x => {
            merge_heads(x[0].clone().reshape([batch, head, pos, d_head]))
        });
    }
}

/// To the bit, with few rows, with many, and with more than are packed at a time.
#[test]
fn projections_that_read_the_same() {
    let device = Default::default();
    let mut init = ParamInit::<Flex>::new(&device, DType::F32, 0, 0.1);
    let sizes = [(576, true), (192, false), (40, true)];
    let each = sizes.map(|(outputs, bias)| init.linear(576, outputs, bias));
    for [batch, pos] in [[1, 1], [3, 5], [4, 60], [7, 301]] {
        let (x, _) = both([batch, pos, 576], 3.0);
        let found = Projection::forward_each(each.each_ref(), x.clone());
        for (found, projection) in found.into_iter().zip(&each) {
            let expected = projection.forward(x.clone());
            assert_eq!(found.dims(), expected.dims());
            assert_eq!(found.into_data(), expected.into_data(), "{batch} x {pos}");
        }
    }
    // Of another dtype, one after another.
    let mut init = ParamInit::<Flex>::new(&device, DType::BF16, 0, 0.1);
    let narrow = [8, 5].map(|outputs| init.linear(40, outputs, true));
    let x = Tensor::from_data(data([4, 60, 40], 3.0), (&device, DType::BF16));
    let found = Projection::forward_each(narrow.each_ref(), x.clone());
    for (found, projection) in found.into_iter().zip(&narrow) {
        assert_eq!(found.into_data(), projection.forward(x.clone()).into_data());
    }
}

#[test]
fn rows_and_tokens() {
    for [rows, head, len, d_head] in [[1, 1, 1, 1], [2, 3, 5, 7], [9, 12, 3, 64]] {
        let (x, portable) = both([1, rows * len, (head + 2) * d_head], 3.0);
        let part = || (head + 2, 1..1 + head);
        let (all, range) = part();
        let (fast, slow) = (
            head_part(x, all, range.clone()),
            head_part(portable, all, range),
        );
        assert_close(fast.clone(), slow.clone());
        let (fast, slow) = (rows_of(fast, rows), rows_of(slow, rows));
        assert_close(fast.clone(), slow.clone());
        assert_close(tokens_of(fast), tokens_of(slow));
        assert_differentiates!([[1, rows * len, (head + 2) * d_head]], x => {
            let (all, range) = part();
            let heads = head_part(x[0].clone(), all, range);
            let rows = rows_of(heads.clone(), rows);
            merge_heads(heads * tokens_of(rows.clone() * rows))
        });
    }
}

#[test]
fn heads_of_groups_that_lie_side_by_side() {
    for [batch, groups, pos, d_head] in [[1, 1, 1, 1], [2, 3, 5, 7], [9, 12, 3, 64]] {
        let shape = [batch, pos, groups * 3 * d_head];
        let (x, portable) = both(shape, 3.0);
        for index in 0..3 {
            let fast = heads_of_groups(x.clone(), 3, index, d_head);
            assert_close(fast, heads_of_groups(portable.clone(), 3, index, d_head));
        }
        assert_differentiates!([shape], x => {
            let part = |index| heads_of_groups(x[0].clone(), 3, index, d_head);
            merge_heads(part(0) * part(1) + part(2))
        });
    }
}

/// Of all features of a head, or of the first ones.
#[test]
fn rotations() {
    for [batch, head, pos, half, rest] in [
        [1, 1, 1, 1, 0],
        [2, 3, 5, 7, 0],
        [2, 3, 5, 7, 3],
        [9, 12, 3, 32, 0],
        [9, 12, 3, 8, 48],
    ] {
        let of = RotaryConfig {
            d_head: 2 * half,
            theta: 30.0,
            max_positions: 8,
            scaling: RotaryScaling::Default,
        };
        let shape = [batch, pos, head * (2 * half + rest)];
        let (x, portable) = both(shape, 3.0);
        let device = Default::default();
        assert_close(
            of.tables(pos, &device).rotate(split_heads(x, head)),
            of.tables(pos, &device).rotate(split_heads(portable, head)),
        );
        assert_differentiates!([shape], x => {
            let x = split_heads(x[0].clone(), head);
            of.tables(pos, &Default::default()).rotate(x.clone()) * x
        });
    }
}

#[test]
fn gradients_of_attention() {
    for ([batch, pos, width], window) in
        [([1, 1, 6], None), ([2, 7, 12], None), ([3, 9, 12], Some(4))]
    {
        assert_differentiates!([[batch, pos, width]; 3], x => {
            let [q, k, v] = x.map(|x| split_heads(x, 3));
            attention(q, k, v, window)
        });
    }
}
