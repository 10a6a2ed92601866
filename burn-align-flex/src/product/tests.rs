//! Products agree with their definition, with one another and with those of other dtypes.

use std::time::{Duration, Instant};

use burn_align_quants::BlockFormat;

use super::quantized::{affine_quantized_by, gradient_of_x};
use super::*;
use crate::tests::any_matrix;

/// All vector widths of this CPU: with the widest alone, the others would go untested.
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

/// Asserts that two tensors are the same, to the bit.
fn assert_same(found: &FlexTensor, expected: &FlexTensor, context: &str) {
    assert_eq!(found.shape(), expected.shape(), "{context}");
    let bits = |x: &FlexTensor| -> Vec<u32> {
        let x = contiguous(x.clone());
        x.storage().iter().map(|it: &f32| it.to_bits()).collect()
    };
    assert!(bits(found) == bits(expected), "{context}");
}

#[test]
fn rows_do_not_depend_on_the_part_that_they_are_packed_in() {
    // Wide rows, of which the fewest are packed at a time, and narrow ones.
    for [d_input, d_output] in [[2100, 5], [8, 3]] {
        // Two parts, which meet in the middle.
        let rows = many_rows::rows_at_a_time(d_input) + 9;
        let bias = tensor([1, d_output]).reshape([d_output].into());
        let weights = [
            tensor([d_input, d_output]),
            tensor([d_output, d_input]).transpose(0, 1),
        ];
        for x in [
            tensor([rows, d_input]),
            tensor([d_input, rows]).transpose(0, 1),
        ] {
            for weight in &weights {
                for arch in architectures() {
                    let all = affine_by(arch, &x, weight, Some(&bias));
                    for first in [0, rows / 2 - 10, rows - 20] {
                        let some = |x: &FlexTensor| x.narrow(0, first, 20);
                        let found = affine_by(arch, &some(&x), weight, Some(&bias));
                        let [x, weight] = [&x, weight].map(|it| it.layout().strides());
                        let context = format!("{rows} rows, {first}: {x:?} {weight:?} {arch:?}");
                        assert_same(&found, &some(&all), &context);
                    }
                }
            }
        }
    }
}

/// Few rows and many, more than a strip, more than a task.
const QUANTIZED: [[usize; 3]; 7] = [
    [1, 256, 1],
    [3, 512, 7],
    [8, 256, 241],
    [11, 256, 500],
    [40, 512, 95],
    [165, 768, 50],
    [170, 256, 481],
];

#[test]
fn quantized_products_and_gradients_are_those_of_the_widened_weight() {
    for format in BlockFormat::ALL {
        for dims in QUANTIZED {
            let [rows, d_input, d_output] = dims;
            let matrix = any_matrix(*format, [d_output, d_input]);
            let panels = matrix.in_panels();
            let bias = tensor([1, d_output]).reshape([d_output].into());
            for arch in architectures() {
                for (matrix, cols) in [
                    (&matrix, 0..d_input),
                    (&matrix, 3..d_input - 30),
                    (&panels, 0..d_input),
                    (&panels, d_input - 256..d_input),
                    (&panels, 64..128),
                    (&panels, 8..d_input - 3),
                    (&panels, 40..d_input - 5),
                    (&panels, 3..d_input - 30),
                    (&panels, 0..0),
                ] {
                    let matrix = matrix.cols(cols.clone());
                    let values = TensorData::new(matrix.dequantize(), matrix.dims());
                    let dense = FlexTensor::from_data(values);
                    let context = format!("{format} {dims:?} {cols:?} {arch:?}");

                    let x = tensor([rows, cols.len()]);
                    let weight = dense.clone().transpose(0, 1);
                    let found = affine_quantized_by(arch, &x, &matrix, Some(&bias));
                    let expected = affine_by(arch, &x, &weight, Some(&bias));
                    assert_same(&found, &expected, &context);

                    let y = tensor([rows, d_output]);
                    let found = gradient_of_x(arch, &y, &matrix);
                    assert_same(&found, &affine_by(arch, &y, &dense, None), &context);
                }
            }
        }
    }
}

#[test]
fn rows_of_panels_are_a_part_of_the_matrix() {
    let matrix = any_matrix(BlockFormat::Q4_1, [100, 64]).in_panels();
    let dense = FlexTensor::from_data(TensorData::new(matrix.dequantize(), [100, 64]));
    for rows in [16..48, 32..100, 90..100, 5..60] {
        let weight = dense.narrow(0, rows.start, rows.len()).transpose(0, 1);
        let part = matrix.rows(rows.clone());
        for count in [1, 2, 4, 7, 20] {
            let x = tensor([count, 64]);
            let found = affine_quantized(&x, &part, None);
            assert_same(
                &found,
                &affine(&x, &weight, None),
                &format!("{rows:?} {count}"),
            );
            let y = tensor([count, rows.len()]);
            let dense = weight.clone().transpose(0, 1);
            for arch in architectures() {
                let found = gradient_of_x(arch, &y, &part);
                let context = format!("gradient, {rows:?} {count} {arch:?}");
                assert_same(&found, &affine_by(arch, &y, &dense, None), &context);
            }
        }
    }
}

#[test]
fn quantized_products_of_nothing() {
    let matrix = any_matrix(BlockFormat::Q4_1, [3, 64]);
    let bias = tensor([1, 3]).reshape([3].into());
    let product = affine_quantized(&tensor([0, 64]), &matrix, Some(&bias));
    assert_eq!(product.shape().dims(), [0, 3]);
    let product = affine_quantized(&tensor([2, 0]), &matrix.cols(5..5), Some(&bias));
    let expected: Vec<f32> = [bias.storage::<f32>(); 2].concat();
    assert_eq!(product.storage::<f32>(), expected);
    let product = affine_quantized(&tensor([2, 64]), &matrix.rows(1..1), None);
    assert_eq!(product.shape().dims(), [2, 0]);
}

/// The shortest of many runs, which other load on the machine affects least.
fn shortest(mut run: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut shortest = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || began.elapsed() < Duration::from_millis(400) {
        let began = Instant::now();
        run();
        shortest = shortest.min(began.elapsed());
        runs += 1;
    }
    shortest.as_secs_f64() * 1e3
}

/// The shapes of the projections of SmolLM2 135M, and of its unembedding.
const SHAPES: [[usize; 2]; 4] = [[576, 576], [576, 1536], [1536, 576], [576, 49152]];

/// Times products with weights in blocks against those with the same weights in f32:
/// `cargo test --release -p burn-align-flex --lib timings -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "its result")]
fn timings() {
    let arch = Arch::new();
    for [d_input, d_output] in SHAPES {
        for rows in [1, 5, 8, 16, 40, 100, 160, 512] {
            if d_output > 10_000 && rows > 100 {
                continue;
            }
            let x = tensor([rows, d_input]);
            let y = tensor([rows, d_output]);
            // As models keep it: an embedding is transposed for the unembedding.
            let dense = match d_output > 10_000 {
                true => tensor([d_output, d_input]).transpose(0, 1),
                false => tensor([d_input, d_output]),
            };
            let forward = shortest(|| drop(affine_by(arch, &x, &dense, None)));
            let back = dense.transpose(0, 1);
            let backward = shortest(|| drop(affine_by(arch, &y, &back, None)));
            println!("{rows:4} x {d_input} x {d_output}: f32 {forward:.3} ms, back {backward:.3}");
            for format in [
                BlockFormat::Q4_1,
                BlockFormat::Q8_0,
                BlockFormat::Q4_K,
                BlockFormat::Q6_K,
            ] {
                let cols = d_input.next_multiple_of(format.block_elements());
                let matrix = any_matrix(format, [d_output, cols]).cols(0..d_input);
                let panels = matrix.in_panels();
                for (order, matrix) in [("rows", matrix), ("panels", panels)] {
                    let forward = shortest(|| drop(affine_quantized_by(arch, &x, &matrix, None)));
                    let backward = shortest(|| drop(gradient_of_x(arch, &y, &matrix)));
                    println!("       {format} {order} {forward:.3} ms, back {backward:.3}");
                }
            }
        }
    }
}
