//! Moving values: by index, by slice, by mask, along axes; and sums along axes.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData, backend::Backend};

use super::Operation;
use super::array::Array;
use super::checks::Checks;
use super::primitives::Primitives;
use super::reference;

/// `[rows, width]` of tables from which rows are taken.
const TABLES: [[usize; 2]; 5] = [[3, 1], [41, 33], [520, 96], [1031, 768], [7, 4099]];

/// Shapes with an axis along which is summed.
const SUMS: [([usize; 3], usize); 8] = [
    ([3, 700, 33], 0),
    ([3, 700, 33], 1),
    ([3, 700, 33], 2),
    ([1, 1, 65_537], 2),
    ([2, 3, 50_257], 2),
    ([1, 4_097, 5], 1),
    ([600, 1, 768], 2),
    ([2_049, 2, 3], 0),
];

pub(super) fn check<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for sizes in TABLES {
        rows_by_index(checks, sizes);
        rows_added(checks, sizes);
    }
    elements_by_index(checks);
    slices(checks);
    mask(checks);
    axes(checks);
    for (shape, axis) in SUMS {
        sums(checks, shape, axis);
    }
    largest(checks);
}

/// Indices below `count` in no order, each of them, and some twice.
pub(super) fn scattered(count: usize) -> Vec<usize> {
    (0..count + 5).map(|i| i * 7919 % count).collect()
}

/// The rows of a table with these indices.
fn rows_of(table: &Array, indices: &[usize]) -> Vec<f64> {
    let width = table.shape[1];
    let rows = indices
        .iter()
        .map(|index| &table.values[index * width..][..width]);
    rows.flatten().copied().collect()
}

fn rows_by_index<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, width]: [usize; 2],
) {
    let table = checks.draw(&[rows, width]);
    let indices = scattered(rows);
    let expected = rows_of(&table, &indices);
    checks.check(Operation::Select, &[&table], &expected, |cx| {
        let indices = cx.indices(&indices);
        cx.primitives.select(cx.tensor::<2>(&table), 0, indices)
    });
}

fn rows_added<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    [rows, width]: [usize; 2],
) {
    let table = checks.draw(&[rows, width]);
    let indices = scattered(rows);
    let values = checks.draw(&[indices.len(), width]);
    let mut expected = table.values.clone();
    for (index, row) in indices.iter().zip(values.values.chunks(width)) {
        let sums = &mut expected[index * width..][..width];
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    checks.check(Operation::SelectAdd, &[&table, &values], &expected, |cx| {
        let indices = cx.indices(&indices);
        let (table, values) = (cx.tensor::<2>(&table), cx.tensor(&values));
        cx.primitives.select_add(table, 0, indices, values)
    });
}

/// A logit for each row of a batch.
fn elements_by_index<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for [rows, width] in [[6, 41], [520, 1031]] {
        let table = checks.draw(&[rows, width]);
        let indices: Vec<usize> = (0..rows).map(|row| (row * 104_729 + 13) % width).collect();
        let each = indices.iter().enumerate();
        let expected: Vec<f64> = each.map(|(row, i)| table.values[row * width + i]).collect();
        checks.check(Operation::Gather, &[&table], &expected, |cx| {
            let indices = cx.indices(&indices).reshape([rows, 1]);
            cx.tensor::<2>(&table).gather(1, indices)
        });
    }
}

/// A block of a `[row, pos, width]` activation, taken and replaced.
fn slices<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for [rows, pos, width] in [[4, 7, 33], [520, 3, 96]] {
        let x = checks.draw(&[rows, pos, width]);
        let block = checks.draw(&[rows - 2, 1, width - 1]);
        let (mut replaced, mut taken) = (x.values.clone(), Vec::new());
        for row in 1..rows - 1 {
            let place = (row * pos + 2) * width;
            taken.extend_from_slice(&x.values[place..][..width - 1]);
            let new = &block.values[(row - 1) * (width - 1)..][..width - 1];
            replaced[place..][..width - 1].copy_from_slice(new);
        }
        checks.check(Operation::Narrow, &[&x], &taken, |cx| {
            let part = cx.tensor::<3>(&x).narrow(0, 1, rows - 2).narrow(1, 2, 1);
            part.narrow(2, 0, width - 1)
        });
        checks.check(Operation::SliceAssign, &[&x, &block], &replaced, |cx| {
            let ranges = [1..rows - 1, 2..3, 0..width - 1];
            cx.tensor::<3>(&x).slice_assign(ranges, cx.tensor(&block))
        });
    }
}

/// Some features of some rows from one tensor, the rest from another.
fn mask<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    let shape = [9, 5, 97];
    let [x, y] = [(); 2].map(|()| checks.draw(&shape));
    let chosen: Vec<bool> = (0..x.values.len())
        .map(|i| i % 7 == 3 || i.is_multiple_of(97))
        .collect();
    let pairs = x.values.iter().zip(&y.values).zip(&chosen);
    let expected: Vec<f64> = pairs
        .map(|((x, y), y_is_chosen)| if *y_is_chosen { *y } else { *x })
        .collect();
    checks.check(Operation::MaskWhere, &[&x, &y], &expected, |cx| {
        let chosen = TensorData::new(chosen.clone(), shape);
        let chosen = Tensor::<B, 3, Bool>::from_data(chosen, cx.device);
        cx.tensor::<3>(&x).mask_where(chosen, cx.tensor(&y))
    });
}

/// Joining, repeating and swapping axes.
fn axes<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for [a, b, c] in [[3, 5, 33], [130, 4, 96]] {
        let x = checks.draw(&[a, b, c]);
        let y = checks.draw(&[a, b, c]);
        // Along an axis, parts of this length alternate.
        for (axis, part) in [a * b * c, b * c, c].into_iter().enumerate() {
            let parts = x.values.chunks(part).zip(y.values.chunks(part));
            let joined: Vec<f64> = parts.flat_map(|(x, y)| [x, y].concat()).collect();
            checks.check(Operation::Concatenate, &[&x, &y], &joined, |cx| {
                Tensor::cat(vec![cx.tensor::<3>(&x), cx.tensor(&y)], axis)
            });
        }
        let swapped = reference::swapped(&x.values, [b, c, 1]);
        checks.check(Operation::SwapAxes, &[&x], &swapped, |cx| {
            let swapped = cx.tensor::<3>(&x).swap_dims(1, 2); // [a, c, b]
            swapped.reshape([a, c * b])
        });
        let repeated: Vec<f64> = x.values.chunks(c).flat_map(|row| row.repeat(6)).collect();
        checks.check(Operation::Expand, &[&x], &repeated, |cx| {
            let x = cx.tensor::<3>(&x).reshape([a, b, 1, c]);
            x.expand([a, b, 6, c]).reshape([a, b * 6, c])
        });
    }
}

/// Sums in f32, as in norms and metrics, of numbers above 0: others would cancel each other out,
/// and leave the rounding.
fn sums<B: Backend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    shape: [usize; 3],
    axis: usize,
) {
    let mut x = checks.draw_in(DType::F32, &shape, 1.0);
    for value in &mut x.values {
        *value = value.abs();
    }
    let inner: usize = shape[axis + 1..].iter().product();
    let expected = reference::sums(&x.values, [shape[axis], inner]);
    checks.check(Operation::Sum, &[&x], &expected, |cx| {
        cx.primitives.sum(cx.tensor::<3>(&x), axis)
    });
}

/// The most likely token.
fn largest<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for [rows, width] in [[5, 41], [33, 4099]] {
        let drawn = checks.draw(&[rows, width]);
        let indices: Vec<usize> = (0..rows).map(|row| (row * 104_729 + 29) % width).collect();
        let mut values = drawn.values;
        for (row, index) in indices.iter().enumerate() {
            values[row * width + index] = 2.0;
        }
        let x = Array::new(&[rows, width], &values, checks.cx.dtype);
        let expected: Vec<f64> = indices.iter().map(|index| *index as f64).collect();
        checks.check(Operation::Argmax, &[&x], &expected, |cx| {
            let largest: Tensor<B, 2, Int> = cx.tensor::<2>(&x).argmax(1);
            largest.float()
        });
    }
}
