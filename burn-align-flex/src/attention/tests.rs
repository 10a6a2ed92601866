//! Attention by its definition, and whole rows beside their suffixes.

mod gradients;

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use pulp::Arch;

use super::forward::{attend, attend_by};
use super::*;

/// Numbers of either sign.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let numbers = (0..count).map(|i| (((i + seed) * 7919) % 2003) as f32 / 500.0 - 2.0);
    numbers.collect()
}

/// Vectors `[row, token, head, d_head]`.
fn vectors(elements: &[f32], [tokens, heads, d_head]: [usize; 3]) -> Vectors<'_> {
    Vectors {
        elements,
        start: 0,
        strides: [tokens * heads * d_head, d_head, heads * d_head],
    }
}

/// Keys and values, `[row, token, kv_head, d_head]`, in the order of their tokens.
fn part(elements: &[Vec<f32>; 2], [rows, count, kv_heads, d_head]: [usize; 4]) -> Part<'_> {
    let of = elements.each_ref();
    let [keys, values] = of.map(|elements| vectors(elements, [count, kv_heads, d_head]));
    Part {
        rows,
        count,
        keys,
        values,
        tokens: None,
    }
}

/// By the definition, in f64, with all keys and values of each row.
///
/// - q: `[row, query, head, d_head]`; keys, values: `[row, key, kv_head, d_head]`
fn expected(
    [q, keys, values]: [&[f32]; 3],
    [rows, queries, count]: [usize; 3],
    [heads, kv_heads, d_head]: [usize; 3],
    how: &Attention,
) -> Vec<f64> {
    let mut mixed = Vec::new();
    for row in 0..rows {
        for query in 0..queries {
            for head in 0..heads {
                let q = &q[((row * queries + query) * heads + head) * d_head..][..d_head];
                let place = |key: usize| {
                    let kv_head = head / (heads / kv_heads);
                    ((row * count + key) * kv_heads + kv_head) * d_head
                };
                let end = count - queries + query + 1;
                let start = end - how.window.map_or(end, |window| window.min(end));
                let powers = (start..end).map(|key| {
                    let key = &keys[place(key)..][..d_head];
                    let products = q.iter().zip(key);
                    let score: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    let score = score * how.scale;
                    how.cap
                        .map_or(score, |cap| cap * (score / cap).tanh())
                        .exp()
                });
                let powers: Vec<f64> = powers.collect();
                let total: f64 = powers.iter().sum();
                for feature in 0..d_head {
                    let parts = (start..end).zip(&powers);
                    let parts =
                        parts.map(|(key, power)| power * f64::from(values[place(key) + feature]));
                    mixed.push(parts.sum::<f64>() / total);
                }
            }
        }
    }
    mixed
}

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 1e-5,
            "{found}, {expected}"
        );
    }
}

#[test]
fn rows_attend_as_defined() {
    for (sizes, [rows, queries, len], cap, window) in [
        ([6, 2, 64], [3, 37, 37], None, None),
        ([4, 4, 12], [2, 5, 40], None, Some(7)),
        ([2, 1, 4], [5, 1, 19], Some(2.0), None),
        ([3, 3, 80], [1, 70, 70], None, Some(33)),
    ] {
        let [heads, kv_heads, d_head] = sizes;
        let how = Attention {
            scale: (d_head as f64).sqrt().recip(),
            cap,
            window,
        };
        let q = numbers(rows * queries * heads * d_head, 1);
        let own = [2, 3].map(|seed| numbers(rows * len * kv_heads * d_head, seed));
        let [keys, values] = &own;
        let all = [Rows {
            rows,
            queries,
            q: vectors(&q, [queries, heads, d_head]),
            parts: vec![part(&own, [rows, len, kv_heads, d_head])],
        }];
        let found = attend(&all, sizes, &how);
        let expected = expected([&q, keys, values], [rows, queries, len], sizes, &how);
        assert_close(&found, &expected);
        // To the bit, whatever the tasks.
        for threads in [1, 3, 64] {
            let other = attend_by(Arch::new(), &all, sizes, &how, threads);
            assert_eq!(other, found, "{threads} threads");
        }
        // On the vectors that every CPU has: other sums, the same numbers.
        let scalar = attend_by(Arch::Scalar, &all, sizes, &how, 2);
        assert_close(&scalar, &expected);
    }
}

/// To the bit: a suffix is what the whole row has there.
#[test]
fn rows_that_continue_others_are_the_whole_rows() {
    let sizes = [6, 3, 16];
    let [heads, kv_heads, d_head] = sizes;
    // One row of 8 positions, continued by two of 13, each of which is continued by three of 10,
    // the last 4 of which ask.
    let (rows, queries) = (6, 4);
    let counts = [(1, 8), (2, 13), (rows, 10)];
    let width = kv_heads * d_head;
    let drawn = |index: usize| {
        let (rows, count) = counts[index];
        [0, 1].map(|which| numbers(rows * count * width, 2 * index + which))
    };
    let [first, second, own] = [0, 1, 2].map(drawn);
    let q = numbers(rows * queries * heads * d_head, 8);
    // Rows that these parts make up, if all parts have as many positions as there.
    let joined = |parts: &[&[Vec<f32>; 2]], rows: usize| {
        [0, 1].map(|which: usize| {
            let rows = (0..rows).flat_map(|row| {
                let parts = parts.iter().zip(counts);
                parts.flat_map(move |(part, (of_part, count))| {
                    let row = row / (rows / of_part);
                    part[which][row * count * width..][..count * width].to_vec()
                })
            });
            rows.collect::<Vec<f32>>()
        })
    };
    let attended = |parts, window| {
        let how = Attention {
            scale: 0.25,
            cap: None,
            window,
        };
        let rows = Rows {
            rows,
            queries,
            q: vectors(&q, [queries, heads, d_head]),
            parts,
        };
        attend(&[rows], sizes, &how)
    };
    let whole = joined(&[&first, &second, &own], rows);
    let expected = attended(vec![part(&whole, [rows, 31, kv_heads, d_head])], None);
    let parts = vec![
        part(&first, [1, 8, kv_heads, d_head]),
        part(&second, [2, 13, kv_heads, d_head]),
        part(&own, [rows, 10, kv_heads, d_head]),
    ];
    assert_eq!(attended(parts, None), expected);
    // The rows before them as one part, and as tokens of one row, last ones first.
    let before = joined(&[&first, &second], 2);
    let parts = vec![
        part(&before, [2, 21, kv_heads, d_head]),
        part(&own, [rows, 10, kv_heads, d_head]),
    ];
    assert_eq!(attended(parts, None), expected);
    let order: Vec<usize> = (0..2 * 21).rev().collect();
    let shuffled = before.each_ref().map(|elements| {
        let vectors = order.iter();
        let vectors = vectors.flat_map(|token| &elements[token * width..][..width]);
        vectors.copied().collect::<Vec<f32>>()
    });
    let as_tokens = Part {
        rows: 2,
        count: 21,
        tokens: Some(&order),
        ..part(&shuffled, [1, 2 * 21, kv_heads, d_head])
    };
    assert_eq!(
        attended(
            vec![as_tokens, part(&own, [rows, 10, kv_heads, d_head])],
            None
        ),
        expected
    );
    // Without the positions that no window reaches: the first query sees one of those before.
    let expected = attended(vec![part(&whole, [rows, 31, kv_heads, d_head])], Some(8));
    let mut near = part(&second, [2, 13, kv_heads, d_head]);
    for vectors in [&mut near.keys, &mut near.values] {
        vectors.start += 9 * width;
    }
    near.count = 4;
    assert_eq!(
        attended(
            vec![near, part(&own, [rows, 10, kv_heads, d_head])],
            Some(8)
        ),
        expected
    );
}

#[test]
fn there_may_be_no_rows_and_no_queries() {
    let sizes = [2, 1, 8];
    let how = Attention {
        scale: 1.0,
        cap: None,
        window: None,
    };
    let (q, x) = (numbers(3 * 16, 1), [2, 3].map(|seed| numbers(3 * 8, seed)));
    let rows = |rows: usize, queries: usize| Rows {
        rows,
        queries,
        q: vectors(&q, [queries, 2, 8]),
        parts: vec![part(&x, [rows, 3, 1, 8])],
    };
    let expected = attend(&[rows(1, 3)], sizes, &how);
    assert_eq!(
        attend(&[rows(0, 3), rows(1, 3), rows(1, 0)], sizes, &how),
        expected
    );
    assert!(attend(&[rows(0, 3)], sizes, &how).is_empty());
}

/// Parts of tensors, swapped, repeated and reversed axes: as copies in row-major order.
#[test]
fn views_attend_as_their_copies_do() {
    let device = FlexDevice;
    let tensor = |shape: [usize; 4], seed: usize| {
        let data = TensorData::new(numbers(shape.iter().product(), seed), shape);
        Tensor::<Flex, 4>::from_data(data, &device)
    };
    let how = Attention {
        scale: 0.3,
        cap: None,
        window: Some(6),
    };
    let attended = |heads: [Tensor<Flex, 4>; 3]| crate::attend(heads, &how).expect("it is on Flex");
    // [2, 4, 5, 12]
    let q = tensor([2, 9, 4, 12], 1).swap_dims(1, 2).narrow(2, 3, 5);
    for [k, v] in [
        // [2, 2, 9, 12] each
        [
            tensor([1, 2, 14, 12], 2)
                .narrow(2, 1, 9)
                .expand([2, 2, 9, 12]),
            tensor([2, 2, 9, 12], 3).flip([2]),
        ],
        [
            tensor([2, 2, 1, 12], 4).expand([2, 2, 9, 12]),
            tensor([2, 2, 12, 9], 5).swap_dims(2, 3),
        ],
    ] {
        let views = [q.clone(), k, v];
        let copies = views
            .clone()
            .map(|x| Tensor::from_data(x.into_data(), &device));
        assert_eq!(attended(views).into_data(), attended(copies).into_data());
    }
}
