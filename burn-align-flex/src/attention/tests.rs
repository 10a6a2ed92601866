//! Attention by its definition, and whole rows beside their suffixes.

use pulp::Arch;

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
        let keys = numbers(rows * len * kv_heads * d_head, 2);
        let values = numbers(rows * len * kv_heads * d_head, 3);
        let all = [Rows {
            rows,
            queries,
            len,
            q: vectors(&q, [queries, heads, d_head]),
            keys: vectors(&keys, [len, kv_heads, d_head]),
            values: vectors(&values, [len, kv_heads, d_head]),
            before: Vec::new(),
        }];
        let found = attend(&all, sizes, &how);
        let expected = expected([&q, &keys, &values], [rows, queries, len], sizes, &how);
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
    let how = Attention {
        scale: 0.25,
        cap: None,
        window: None,
    };
    // Two prefixes of 21 positions, each continued by three rows of 10, the last 4 of which ask.
    let (prefixes, rows, count, len, queries) = (2, 6, 21, 10, 4);
    let width = kv_heads * d_head;
    let before = [4, 5].map(|seed| numbers(prefixes * count * width, seed));
    let own = [6, 7].map(|seed| numbers(rows * len * width, seed));
    let q = numbers(rows * queries * heads * d_head, 8);
    let whole = [0, 1].map(|which| {
        let rows = (0..rows).flat_map(|row| {
            let prefix = row / (rows / prefixes);
            let before = &before[which][prefix * count * width..][..count * width];
            [before, &own[which][row * len * width..][..len * width]].concat()
        });
        rows.collect::<Vec<f32>>()
    });
    let of_whole = [Rows {
        rows,
        queries,
        len: count + len,
        q: vectors(&q, [queries, heads, d_head]),
        keys: vectors(&whole[0], [count + len, kv_heads, d_head]),
        values: vectors(&whole[1], [count + len, kv_heads, d_head]),
        before: Vec::new(),
    }];
    let expected = attend(&of_whole, sizes, &how);
    let continuing = |before| Rows {
        rows,
        queries,
        len,
        q: vectors(&q, [queries, heads, d_head]),
        keys: vectors(&own[0], [len, kv_heads, d_head]),
        values: vectors(&own[1], [len, kv_heads, d_head]),
        before,
    };
    let of = |elements| vectors(elements, [count, kv_heads, d_head]);
    let in_one = Before {
        rows: prefixes,
        count,
        keys: of(&before[0]),
        values: of(&before[1]),
        tokens: None,
    };
    assert_eq!(attend(&[continuing(vec![in_one])], sizes, &how), expected);
    // The same as tokens of one row, last ones first.
    let order: Vec<usize> = (0..prefixes * count).rev().collect();
    let shuffled = [0, 1].map(|which| {
        let vectors = order.iter();
        let vectors = vectors.flat_map(|token| &before[which][token * width..][..width]);
        vectors.copied().collect::<Vec<f32>>()
    });
    let of = |elements| vectors(elements, [prefixes * count, kv_heads, d_head]);
    let as_tokens = Before {
        rows: prefixes,
        count,
        keys: of(&shuffled[0]),
        values: of(&shuffled[1]),
        tokens: Some(order.clone()),
    };
    assert_eq!(
        attend(&[continuing(vec![as_tokens])], sizes, &how),
        expected
    );
    // In two parts, the first 8 positions and the others.
    let parts = [(0, 8), (8, count - 8)].map(|(first, here)| {
        let of = |elements| {
            let whole = vectors(elements, [count, kv_heads, d_head]);
            Vectors {
                start: first * width,
                ..whole
            }
        };
        Before {
            rows: prefixes,
            count: here,
            keys: of(&before[0]),
            values: of(&before[1]),
            tokens: None,
        }
    });
    let found = attend(&[continuing(parts.into())], sizes, &how);
    assert_eq!(found, expected);
}
