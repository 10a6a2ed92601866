//! Matrix products at the sizes where kernels change.

use burn::tensor::backend::Backend;

use super::Operation;
use super::checks::Checks;
use super::primitives::Primitives;
use super::reference;

/// `[rows, inner]` of products with one column.
const COLUMNS: [[usize; 2]; 8] = [
    [4, 3],
    [1, 96],
    [5, 64],
    [33, 32],
    [17, 160],
    [64, 768],
    [700, 768],
    [1030, 33],
];

/// Contracted lengths around the stages of kernels (16, 32, 64, 128), odd multiples of 8 and of 32
/// among them, and widths of published models.
const INNER: [usize; 23] = [
    1, 8, 24, 31, 32, 33, 40, 56, 63, 64, 65, 72, 95, 96, 97, 104, 127, 128, 129, 160, 224, 576,
    768,
];

/// Rows of tall products: worlds of a sweep, positions of a batch.
const ROWS: [usize; 9] = [499, 500, 501, 512, 513, 700, 1025, 2049, 4096];

/// `[rows, inner, columns]` of products with a transposed matrix: logits from a tied embedding.
const TRANSPOSED: [[usize; 3]; 7] = [
    [1, 96, 1031],
    [1, 256, 512],
    [1, 768, 96],
    [7, 64, 1031],
    [5, 768, 520],
    [520, 64, 65],
    [9, 33, 1],
];

/// `[pos, d_head]` of products of heads.
const HEADS: [[usize; 2]; 10] = [
    [8, 64],
    [24, 64],
    [40, 64],
    [56, 64],
    [72, 64],
    [96, 64],
    [104, 64],
    [40, 32],
    [24, 80],
    [33, 96],
];

pub(super) fn check<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for [rows, inner] in COLUMNS {
        product(checks, Operation::ColumnProduct, [rows, inner, 1]);
    }
    for inner in INNER {
        for [rows, columns] in [[1, 40], [70, 65]] {
            product(checks, Operation::Product, [rows, inner, columns]);
        }
    }
    for rows in ROWS {
        product(checks, Operation::Product, [rows, 64, 33]);
    }
    for sizes in TRANSPOSED {
        transposed(checks, sizes);
        biased(checks, sizes);
    }
    for sizes in HEADS {
        heads(checks, sizes);
    }
}

/// `[rows, inner] × [inner, columns]`.
fn product<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    operation: Operation,
    [rows, inner, columns]: [usize; 3],
) {
    let x = checks.draw(&[rows, inner]);
    let y = checks.draw(&[inner, columns]);
    let expected = reference::product(&x.values, &y.values, [rows, inner, columns]);
    checks.check(operation, &[&x, &y], &expected, |cx| {
        cx.primitives.product(cx.tensor::<2>(&x), cx.tensor(&y))
    });
}

/// `[rows, inner] × [columns, inner]ᵀ`.
fn transposed<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, inner, columns]: [usize; 3],
) {
    let x = checks.draw(&[rows, inner]);
    let y = checks.draw(&[columns, inner]);
    let columns_last = reference::transposed(&y.values, [columns, inner]);
    let expected = reference::product(&x.values, &columns_last, [rows, inner, columns]);
    checks.check(Operation::TransposedProduct, &[&x, &y], &expected, |cx| {
        let y = cx.tensor::<2>(&y).transpose();
        cx.primitives.product(cx.tensor(&x), y)
    });
}

/// The same with a bias, which a backend may add in the kernel of the product.
fn biased<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, inner, columns]: [usize; 3],
) {
    let x = checks.draw(&[rows, inner]);
    let y = checks.draw(&[columns, inner]);
    let bias = checks.draw(&[columns]);
    let columns_last = reference::transposed(&y.values, [columns, inner]);
    let product = reference::product(&x.values, &columns_last, [rows, inner, columns]);
    let biases = bias.values.iter().cycle();
    let expected: Vec<f64> = product
        .iter()
        .zip(biases)
        .map(|(x, bias)| x + bias)
        .collect();
    let operands = [&x, &y, &bias];
    checks.check(Operation::TransposedProduct, &operands, &expected, |cx| {
        let y = cx.tensor::<2>(&y).transpose();
        cx.primitives.product(cx.tensor(&x), y) + cx.tensor::<1>(&bias).unsqueeze()
    });
}

/// Queries with keys, and weights with values, of `[batch, pos, head * d_head]`.
fn heads<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, [pos, d_head]: [usize; 2]) {
    const BATCH: usize = 2;
    const HEAD: usize = 3;
    let split = [BATCH, pos, HEAD, d_head];
    let q = checks.draw(&split);
    let k = checks.draw(&split);
    let [queries, keys] = [&q, &k].map(|x| reference::swapped(&x.values, [pos, HEAD, d_head]));

    let turned = reference::transposed(&keys, [pos, d_head]);
    let scores = reference::product(&queries, &turned, [pos, d_head, pos]);
    checks.check(Operation::HeadProduct, &[&q, &k], &scores, |cx| {
        let [q, k] = [&q, &k].map(|x| cx.tensor::<4>(x).swap_dims(1, 2));
        cx.primitives.product(q, k.swap_dims(2, 3)) // [batch, head, q_pos, k_pos]
    });

    let weights = checks.draw(&[BATCH, HEAD, pos, pos]);
    let mixed = reference::product(&weights.values, &keys, [pos, pos, d_head]);
    checks.check(Operation::HeadProduct, &[&weights, &k], &mixed, |cx| {
        let values = cx.tensor::<4>(&k).swap_dims(1, 2);
        cx.primitives.product(cx.tensor(&weights), values) // [batch, head, pos, d_head]
    });
}
