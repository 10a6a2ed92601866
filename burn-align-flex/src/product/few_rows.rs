//! Products of a few rows with a weight, which are limited by memory bandwidth.
//!
//! The weight is read once, in its own layout, and never packed. A sum runs over the features in
//! order, so that a row depends neither on what it is batched with nor on the number of threads.

use std::array;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Maximum number of rows.
const MOST_ROWS: usize = 7;
/// Maximum number of rows that are faster here with a weight whose rows are shorter than a page:
/// the CPU cannot prefetch those, and the more rows there are, the longer it waits.
const MOST_ROWS_NARROW: usize = 5;
/// Elements of a page of memory.
const PAGE: usize = 1024;
/// Rows of the weight that are read together.
const DEPTH: usize = 8;
/// Maximum number of columns per task: this many sums of all rows stay in the first-level cache.
const MOST_COLUMNS: usize = 512;
/// Weight elements that are not worth another thread.
const SMALL: usize = 1 << 15;
/// Elements of the widest vector of a CPU.
const MOST_LANES: usize = 16;

/// Maximum number of rows that are faster here than with a packed weight.
pub(super) fn most_rows(d_output: usize) -> usize {
    match d_output < PAGE {
        true => MOST_ROWS_NARROW,
        false => MOST_ROWS,
    }
}

/// `x W + b`.
///
/// # Shapes
/// - x: `[row, d_input]`, no more than [`most_rows`]
/// - weight: `[d_input, d_output]`, whose rows are `stride` elements apart
/// - bias: `[d_output]`
/// - output: `[row, d_output]`
pub(super) fn affine(
    arch: Arch,
    x: &[f32],
    weight: &[f32],
    stride: usize,
    bias: Option<&[f32]>,
    [rows, d_input, d_output]: [usize; 3],
) -> Vec<f32> {
    let mut product = vec![0.0; rows * d_output];
    if let Some(bias) = bias {
        for row in product.chunks_mut(d_output) {
            row.copy_from_slice(bias);
        }
    }
    let columns = columns_of_a_task(d_input, d_output);
    // Each task handles a part of every row.
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(d_output.div_ceil(columns), Vec::new);
    for row in product.chunks_mut(d_output) {
        for (part, piece) in parts.iter_mut().zip(row.chunks_mut(columns)) {
            part.push(piece);
        }
    }
    let task = |(number, part): (usize, Vec<&mut [f32]>)| {
        let weight = &weight[number * columns..];
        let rows = part.len();
        macro_rules! with_rows {
            ($($count:literal)+) => {
                match rows {
                    $($count => arch.dispatch(Task::<$count> {
                        x,
                        d_input,
                        weight,
                        stride,
                        sums: array_of(part),
                    }),)+
                    _ => unreachable!("no more rows than {MOST_ROWS}"),
                }
            };
        }
        with_rows!(1 2 3 4 5 6 7);
    };
    let parts = parts.into_iter().enumerate();
    match d_input * d_output <= SMALL {
        true => parts.for_each(task),
        false => parts.collect::<Vec<_>>().into_par_iter().for_each(task),
    }
    product
}

/// The same number of tasks for each thread, in whole vectors.
fn columns_of_a_task(d_input: usize, d_output: usize) -> usize {
    let threads = match d_input * d_output <= SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    let tasks = threads * d_output.div_ceil(threads * MOST_COLUMNS);
    d_output.div_ceil(tasks).next_multiple_of(MOST_LANES)
}

fn array_of<const R: usize>(rows: Vec<&mut [f32]>) -> [&mut [f32]; R] {
    rows.try_into().expect("counted")
}

/// All rows with some columns of the weight.
struct Task<'a, const R: usize> {
    x: &'a [f32],
    d_input: usize,
    /// Starts at the first of the columns.
    weight: &'a [f32],
    stride: usize,
    sums: [&'a mut [f32]; R],
}

impl<const R: usize> WithSimd for Task<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let whole = self.d_input - self.d_input % DEPTH;
        for first in (0..whole).step_by(DEPTH) {
            self.step::<S, DEPTH>(simd, first);
        }
        for first in whole..self.d_input {
            self.step::<S, 1>(simd, first);
        }
    }
}

impl<const R: usize> Task<'_, R> {
    /// Adds the products of `D` features, starting at the first one.
    // Plain loops: a closure would not be compiled for the vectors of `S`.
    #[inline(always)]
    fn step<S: Simd, const D: usize>(&mut self, simd: S, first: usize) {
        let columns = self.sums[0].len();
        let mut features = [[0.0; R]; D];
        for (depth, features) in features.iter_mut().enumerate() {
            for (row, feature) in features.iter_mut().enumerate() {
                *feature = self.x[row * self.d_input + first + depth];
            }
        }
        let weight: [(&[S::f32s], &[f32]); D] = array::from_fn(|depth| {
            S::as_simd_f32s(&self.weight[(first + depth) * self.stride..][..columns])
        });
        let sums = self.sums.each_mut().map(|sums| S::as_mut_simd_f32s(sums));
        for vector in 0..columns / S::F32_LANES {
            let mut total: [S::f32s; R] = array::from_fn(|row| sums[row].0[vector]);
            for depth in 0..D {
                let weight = weight[depth].0[vector];
                for row in 0..R {
                    let feature = simd.splat_f32s(features[depth][row]);
                    total[row] = simd.mul_add_f32s(feature, weight, total[row]);
                }
            }
            for row in 0..R {
                sums[row].0[vector] = total[row];
            }
        }
        for column in 0..columns % S::F32_LANES {
            for depth in 0..D {
                let weight = weight[depth].1[column];
                for row in 0..R {
                    let sum = &mut sums[row].1[column];
                    *sum = features[depth][row].mul_add(weight, *sum);
                }
            }
        }
    }
}
