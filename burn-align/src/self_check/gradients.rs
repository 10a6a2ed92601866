//! Backward passes of single operations, against their derivatives on paper.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor};
use burn_align_models::nn::NormKind;

use super::Operation;
use super::array::Array;
use super::chains::{EPSILON, norm};
use super::checks::Checks;
use super::indexing::scattered;
use super::primitives::Primitives;
use super::reference;

/// `[rows, inner, columns]` of products.
const PRODUCTS: [[usize; 3]; 5] = [
    [4, 3, 1],
    [5, 96, 40],
    [17, 768, 1],
    [600, 64, 33],
    [33, 160, 64],
];

pub(super) fn check<B: AutodiffBackend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for sizes in PRODUCTS {
        products(checks, sizes);
    }
    for sizes in [[40, 33], [520, 104]] {
        softmax(checks, sizes);
    }
    for shape in [[1, 5, 96], [2, 300, 64]] {
        layer_norm(checks, shape);
        rms_norm(checks, shape);
    }
    for sizes in [[41, 33], [520, 96]] {
        select(checks, sizes);
    }
}

/// The gradient of `Σ upstream · output` with respect to `x`.
fn gradient<B: AutodiffBackend, const D: usize, const E: usize>(
    x: &Tensor<B, D>,
    output: Tensor<B, E>,
    upstream: Tensor<B, E>,
) -> Tensor<B::InnerBackend, D> {
    let gradients = (output * upstream).sum().backward();
    x.grad(&gradients).expect("x is tracked")
}

/// `upstream yᵀ` and `xᵀ upstream`.
fn products<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, inner, columns]: [usize; 3],
) {
    let x = checks.draw(&[rows, inner]);
    let y = checks.draw(&[inner, columns]);
    let upstream = checks.draw(&[rows, columns]);
    let y_turned = reference::transposed(&y.values, [inner, columns]);
    let of_x = reference::product(&upstream.values, &y_turned, [rows, columns, inner]);
    let x_turned = reference::transposed(&x.values, [rows, inner]);
    let of_y = reference::product(&x_turned, &upstream.values, [inner, rows, columns]);
    let operation = Operation::ProductGradient;
    checks.check(operation, &[&x, &y], &of_x, |cx| {
        let x = cx.tensor::<2>(&x).require_grad();
        let output = cx.primitives.product(x.clone(), cx.tensor(&y));
        gradient(&x, output, cx.tensor(&upstream))
    });
    checks.check(operation, &[&x, &y], &of_y, |cx| {
        let y = cx.tensor::<2>(&y).require_grad();
        let output = cx.primitives.product(cx.tensor(&x), y.clone());
        gradient(&y, output, cx.tensor(&upstream))
    });
}

/// `s (upstream - Σ s upstream)` of each row, in f32.
fn softmax<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, width]: [usize; 2],
) {
    let x = checks.draw_in(DType::F32, &[rows, width], 4.0);
    let upstream = checks.draw_in(DType::F32, &[rows, width], 1.0);
    let outputs = reference::softmax(&x.values, width);
    let mut expected = Vec::with_capacity(outputs.len());
    for (row, upstream) in outputs.chunks(width).zip(upstream.values.chunks(width)) {
        let mean: f64 = row.iter().zip(upstream).map(|(s, u)| s * u).sum();
        expected.extend(row.iter().zip(upstream).map(|(s, u)| s * (u - mean)));
    }
    checks.check(Operation::SoftmaxGradient, &[&x], &expected, |cx| {
        let x = cx.tensor::<2>(&x).require_grad();
        let output = cx.primitives.softmax(x.clone(), 1);
        gradient(&x, output, cx.tensor(&upstream))
    });
}

/// `(g - mean(g) - x̂ mean(g x̂)) / σ` of each row, where `g = upstream · weight` and `x̂` is what
/// is scaled.
fn layer_norm<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    shape: [usize; 3],
) {
    let [_batch, _pos, width] = shape;
    let [x, upstream] = [(); 2].map(|()| checks.draw(&shape));
    let [weight, bias] = [(); 2].map(|()| checks.draw(&[width]));
    let expected = norm_gradient(&x, &upstream, &weight, |row| {
        let (mean, deviation) = reference::moments(row, EPSILON);
        (mean, deviation, true)
    });
    checks.check(Operation::NormGradient, &[&x], &expected, |cx| {
        let x = cx.tensor::<3>(&x).require_grad();
        let output = norm(cx, NormKind::Layer, &weight, Some(&bias)).forward(x.clone());
        gradient(&x, output, cx.tensor(&upstream))
    });
}

/// `(g - x̂ mean(g x̂)) / rms` of each row.
fn rms_norm<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    shape: [usize; 3],
) {
    let [_batch, _pos, width] = shape;
    let [x, upstream] = [(); 2].map(|()| checks.draw(&shape));
    let weight = checks.draw(&[width]);
    let expected = norm_gradient(&x, &upstream, &weight, |row| {
        let squares: f64 = row.iter().map(|value| value * value).sum();
        (0.0, (squares / width as f64 + EPSILON).sqrt(), false)
    });
    checks.check(Operation::NormGradient, &[&x], &expected, |cx| {
        let x = cx.tensor::<3>(&x).require_grad();
        let output = norm(cx, NormKind::Rms, &weight, None).forward(x.clone());
        gradient(&x, output, cx.tensor(&upstream))
    });
}

/// The gradient of a norm.
///
/// - moments: what is subtracted from a row, what it is divided by, and whether the former depends
///   on the row, as a mean does
fn norm_gradient(
    x: &Array,
    upstream: &Array,
    weight: &Array,
    moments: impl Fn(&[f64]) -> (f64, f64, bool),
) -> Vec<f64> {
    let width = weight.values.len();
    let mut expected = Vec::with_capacity(x.values.len());
    for (row, upstream) in x.values.chunks(width).zip(upstream.values.chunks(width)) {
        let (mean, divisor, centred) = moments(row);
        let scaled: Vec<f64> = row.iter().map(|value| (value - mean) / divisor).collect();
        let g: Vec<f64> = upstream
            .iter()
            .zip(&weight.values)
            .map(|(u, w)| u * w)
            .collect();
        let mean_g = match centred {
            true => g.iter().sum::<f64>() / width as f64,
            false => 0.0,
        };
        let along: f64 = g.iter().zip(&scaled).map(|(g, x)| g * x).sum::<f64>() / width as f64;
        let pairs = g.iter().zip(&scaled);
        expected.extend(pairs.map(|(g, x)| (g - mean_g - x * along) / divisor));
    }
    expected
}

/// The upstream rows, added where their rows were taken.
fn select<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, width]: [usize; 2],
) {
    let table = checks.draw(&[rows, width]);
    let indices = scattered(rows);
    let upstream = checks.draw(&[indices.len(), width]);
    let mut expected = vec![0.0; rows * width];
    for (index, row) in indices.iter().zip(upstream.values.chunks(width)) {
        let sums = &mut expected[index * width..][..width];
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    checks.check(Operation::SelectGradient, &[&table], &expected, |cx| {
        let table = cx.tensor::<2>(&table).require_grad();
        let output = cx.primitives.select(table.clone(), 0, cx.indices(&indices));
        gradient(&table, output, cx.tensor(&upstream))
    });
}
