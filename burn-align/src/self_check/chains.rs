//! Casts, norms, rotary embeddings, and chains of operations that a backend may fuse.

use burn::module::Param;
use burn::tensor::{DType, Tensor, activation, backend::Backend};
use burn_align_models::nn::{Activation, Norm, NormKind, ParamInit, RotaryConfig, RotaryScaling};

use super::Operation;
use super::array::Array;
use super::checks::{Checks, Context};
use super::primitives::Primitives;
use super::reference;

/// Added to the variance or the mean square in norms.
pub(super) const EPSILON: f64 = 1e-5;

/// The base of rotary frequencies.
const THETA: f64 = 10_000.0;

/// `[batch, pos, width]` of normalised vectors.
const NORMS: [[usize; 3]; 4] = [[1, 1, 96], [3, 7, 577], [2, 300, 768], [1, 600, 64]];

/// `[pos, d_head]` of rotated queries.
const ROTATED: [[usize; 2]; 3] = [[5, 64], [104, 32], [33, 80]];

/// `[rows, d_model, rank]` of interchanges along a few directions.
const LOW_RANK: [[usize; 3]; 7] = [
    [1, 96, 1],
    [5, 768, 1],
    [700, 96, 1],
    [5, 96, 4],
    [520, 64, 3],
    [33, 768, 64],
    [17, 64, 32],
];

pub(super) fn check<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    casts(checks);
    for sizes in NORMS {
        layer_norm(checks, sizes);
        rms_norm(checks, sizes);
    }
    for sizes in ROTATED {
        rotary(checks, sizes);
    }
    for sizes in [[7, 160], [513, 384]] {
        gelu(checks, sizes);
    }
    for sizes in [[1, 96, 160], [7, 64, 104], [513, 96, 160]] {
        gated_mlp(checks, sizes);
    }
    for sizes in LOW_RANK {
        low_rank(checks, sizes);
    }
    for sizes in [[6, 41], [9, 4_099]] {
        cross_entropy(checks, sizes);
    }
}

/// To f32 and back, and a difference of such values with a row in f32.
fn casts<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    let dtype = checks.cx.dtype;
    for scale in [1.0, 300.0] {
        let x = checks.draw_in(DType::F32, &[33, 257], scale);
        let rounded = Array::new(&x.shape, &x.values, dtype);
        checks.check(Operation::Cast, &[&x], &rounded.values, |cx| {
            let there = cx.primitives.cast(cx.tensor::<2>(&x), dtype);
            cx.primitives.cast(there, DType::F32)
        });
    }
    for [rows, width] in [[7, 33], [1030, 768]] {
        let x = checks.draw(&[rows, width]);
        let row = checks.draw_in(DType::F32, &[1, width], 1.0);
        let pairs = x.values.iter().zip(row.values.iter().cycle());
        let expected: Vec<f64> = pairs.map(|(x, row)| x - row).collect();
        checks.check(Operation::MixedDifference, &[&x, &row], &expected, |cx| {
            cx.primitives.cast(cx.tensor::<2>(&x), DType::F32) - cx.tensor::<2>(&row)
        });
    }
}

/// A norm with these weights.
pub(super) fn norm<B: Backend, P: Primitives<B>>(
    cx: &Context<'_, B, P>,
    kind: NormKind,
    weight: &Array,
    bias: Option<&Array>,
) -> Norm<B> {
    let mut init = ParamInit::<B>::new(cx.device, cx.dtype, 0, 1.0);
    let mut norm = init.norm(kind, weight.values.len(), EPSILON);
    norm.weight = Param::from_tensor(cx.tensor(weight));
    norm.bias = bias.map(|bias| Param::from_tensor(cx.tensor(bias)));
    norm
}

fn layer_norm<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, shape: [usize; 3]) {
    let [_batch, _pos, width] = shape;
    let x = checks.draw_scaled(&shape, 3.0);
    let [weight, bias] = [(); 2].map(|()| checks.draw(&[width]));
    let expected = reference::layer_norm(&x.values, &weight.values, &bias.values, EPSILON);
    checks.check(Operation::LayerNorm, &[&x], &expected, |cx| {
        norm(cx, NormKind::Layer, &weight, Some(&bias)).forward(cx.tensor(&x))
    });
}

fn rms_norm<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, shape: [usize; 3]) {
    let [_batch, _pos, width] = shape;
    let x = checks.draw_scaled(&shape, 3.0);
    let weight = checks.draw(&[width]);
    let expected = reference::rms_norm(&x.values, &weight.values, EPSILON);
    checks.check(Operation::RmsNorm, &[&x], &expected, |cx| {
        norm(cx, NormKind::Rms, &weight, None).forward(cx.tensor(&x))
    });
}

fn rotary<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, [pos, d_head]: [usize; 2]) {
    let x = checks.draw(&[2, 3, pos, d_head]);
    let expected = reference::rotated(&x.values, [pos, d_head], THETA);
    let config = RotaryConfig {
        d_head,
        theta: THETA,
        max_positions: pos,
        scaling: RotaryScaling::Default,
    };
    checks.check(Operation::Rotary, &[&x], &expected, |cx| {
        let tables = config.tables::<B>(pos, cx.device).cast(cx.dtype);
        tables.rotate(cx.tensor(&x))
    });
}

fn gelu<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, [rows, width]: [usize; 2]) {
    let x = checks.draw_scaled(&[rows, width], 4.0);
    type Reference = fn(f64) -> f64;
    for (operation, activation, reference) in [
        (
            Operation::Gelu,
            Activation::Gelu,
            reference::gelu as Reference,
        ),
        (
            Operation::GeluTanh,
            Activation::GeluTanh,
            reference::gelu_tanh,
        ),
    ] {
        let expected: Vec<f64> = x.values.iter().map(|x| reference(*x)).collect();
        checks.check(operation, &[&x], &expected, |cx| {
            activation.forward(cx.tensor::<2>(&x))
        });
    }
}

/// `(silu(x G) · x U) D`.
fn gated_mlp<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, d_model, d_mlp]: [usize; 3],
) {
    let x = checks.draw(&[rows, d_model]);
    let scale = (3.0 / d_model as f64).sqrt();
    let [gate, up] = [(); 2].map(|()| checks.draw_scaled(&[d_model, d_mlp], scale));
    let down = checks.draw_scaled(&[d_mlp, d_model], scale);
    let [gated, raised] = [&gate, &up]
        .map(|weight| reference::product(&x.values, &weight.values, [rows, d_model, d_mlp]));
    let pairs = gated.iter().zip(&raised);
    let hidden: Vec<f64> = pairs
        .map(|(gate, up)| reference::silu(*gate) * up)
        .collect();
    let expected = reference::product(&hidden, &down.values, [rows, d_mlp, d_model]);
    checks.check(Operation::GatedMlp, &[&x, &gate, &down], &expected, |cx| {
        let multiply =
            |x: Tensor<B, 2>, weight: &Array| cx.primitives.product(x, cx.tensor(weight));
        let input = cx.tensor::<2>(&x);
        let gated = Activation::Silu.forward(multiply(input.clone(), &gate));
        multiply(gated * multiply(input, &up), &down)
    });
}

/// `x + (s - x) R Rᵀ`, in f32 whatever the dtype of x, as rotations are.
fn low_rank<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, d_model, rank]: [usize; 3],
) {
    let [x, source] = [(); 2].map(|()| checks.draw(&[rows, d_model]));
    let scale = (3.0 / d_model as f64).sqrt();
    let rotation = checks.draw_in(DType::F32, &[d_model, rank], scale);
    let pairs = source.values.iter().zip(&x.values);
    let difference: Vec<f64> = pairs.map(|(source, x)| source - x).collect();
    let features = reference::product(&difference, &rotation.values, [rows, d_model, rank]);
    let turned = reference::transposed(&rotation.values, [d_model, rank]);
    let change = reference::product(&features, &turned, [rows, rank, d_model]);
    let expected: Vec<f64> = x
        .values
        .iter()
        .zip(&change)
        .map(|(x, change)| x + change)
        .collect();
    checks.check(Operation::LowRank, &[&x, &rotation], &expected, |cx| {
        let [x, source] = [&x, &source].map(|x| cx.primitives.cast(cx.tensor::<2>(x), DType::F32));
        let rotation = cx.tensor::<2>(&rotation);
        let features = cx.primitives.product(source - x.clone(), rotation.clone());
        let change = cx.primitives.product(features, rotation.transpose());
        cx.primitives.cast(x + change, cx.dtype)
    });
}

/// The log-probability of a class in each row, in f32.
fn cross_entropy<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, vocab]: [usize; 2],
) {
    let logits = checks.draw_in(DType::F32, &[rows, vocab], 6.0);
    let classes: Vec<usize> = (0..rows).map(|row| (row * 3001 + 7) % vocab).collect();
    let probabilities = reference::softmax(&logits.values, vocab);
    let each = classes.iter().enumerate();
    let expected: Vec<f64> = each
        .map(|(row, class)| probabilities[row * vocab + class].ln())
        .collect();
    checks.check(Operation::CrossEntropy, &[&logits], &expected, |cx| {
        let classes = cx.indices(&classes).reshape([rows, 1]);
        activation::log_softmax(cx.tensor::<2>(&logits), 1).gather(1, classes)
    });
}
