//! Gradients: those of Burn's operations.

use burn::backend::Autodiff;
use burn::tensor::{Bool, Tensor, TensorData, activation};
use burn_flex::{Flex, FlexDevice};
use pulp::Arch;

use super::super::gradient::gradients_by;
use super::super::*;
use super::{numbers, part, vectors};

/// By Burn's operations: `softmax(cap(scale · q kᵀ)) v`, one row of keys for each row of queries.
fn by_operations(
    [q, k, v]: [Tensor<Autodiff<Flex>, 4>; 3],
    how: &Attention,
) -> Tensor<Autodiff<Flex>, 4> {
    let [batch, heads, queries, d_head] = q.dims();
    let [_batch, kv_heads, len, _d_head] = k.dims();
    let [k, v] = [k, v].map(|x| {
        x.reshape([batch, kv_heads, 1, len, d_head])
            .expand([batch, kv_heads, heads / kv_heads, len, d_head])
            .reshape([batch, heads, len, d_head])
    });
    let scores = q.clone().matmul(k.swap_dims(2, 3)) * how.scale;
    let scores = match how.cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    let hidden = (0..queries).flat_map(|query| {
        let end = len - queries + query + 1;
        let start = end - how.window.map_or(end, |window| window.min(end));
        (0..len).map(move |key| !(start..end).contains(&key))
    });
    let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), [1, 1, queries, len]);
    let hidden = Tensor::<Autodiff<Flex>, 4, Bool>::from_data(hidden, &q.device());
    let scores = scores.mask_fill(
        hidden.expand([batch, heads, queries, len]),
        f32::NEG_INFINITY,
    );
    activation::softmax(scores, 3).matmul(v)
}

/// The gradients of some tensors, if the sum of the results has these weights.
fn gradients_of<const N: usize>(
    x: [&Tensor<Autodiff<Flex>, 4>; N],
    result: Tensor<Autodiff<Flex>, 4>,
) -> [Vec<f32>; N] {
    let shape = result.dims();
    let weights = TensorData::new(numbers(shape.iter().product(), 17), shape);
    let weights = Tensor::from_data(weights, &result.device());
    let gradients = (result * weights).sum().backward();
    x.map(|x| {
        let gradient = x.grad(&gradients).expect("it has a gradient");
        gradient.into_data().iter().collect()
    })
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs();
        assert!(error < 1e-5 * largest, "{found}, {expected}");
    }
}

fn tracked(shape: [usize; 4], seed: usize) -> Tensor<Autodiff<Flex>, 4> {
    let data = TensorData::new(numbers(shape.iter().product(), seed), shape);
    Tensor::from_data(data, &FlexDevice)
}

#[test]
fn gradients_are_those_of_the_operations() {
    for ([heads, kv_heads, d_head], [rows, queries, len], cap, window) in [
        ([6, 2, 64], [3, 37, 37], None, None),
        ([4, 4, 12], [2, 5, 40], None, Some(7)),
        ([2, 1, 4], [5, 1, 19], Some(2.0), None),
        ([3, 3, 80], [1, 70, 70], Some(5.0), Some(33)),
        ([4, 2, 16], [2, 90, 90], None, None),
        // Several tasks of a row.
        ([2, 1, 8], [2, 300, 310], None, None),
        ([2, 1, 8], [1, 530, 530], Some(4.0), Some(90)),
    ] {
        let how = Attention {
            scale: (d_head as f64).sqrt().recip(),
            cap,
            window,
        };
        // In either order of the axes.
        let drawn = || {
            [
                tracked([rows, heads, queries, d_head], 1),
                tracked([rows, len, kv_heads, d_head], 2).swap_dims(1, 2),
                tracked([rows, kv_heads, len, d_head], 3),
            ]
            .map(|x| x.detach().require_grad())
        };
        let (ours, theirs) = (drawn(), drawn());
        let found = crate::attend(ours.clone(), &how).expect("it is on Flex");
        let expected = by_operations(theirs.clone(), &how);
        let values: Vec<f32> = found.clone().into_data().iter().collect();
        let without = crate::attend(ours.clone().map(|x| x.inner()), &how).expect("on Flex");
        let without: Vec<f32> = without.into_data().iter().collect();
        assert_eq!(values, without);
        assert_near(
            &values,
            &expected.clone().into_data().iter().collect::<Vec<f32>>(),
        );
        let found = gradients_of(ours.each_ref(), found);
        let expected = gradients_of(theirs.each_ref(), expected);
        for (found, expected) in found.iter().zip(&expected) {
            assert_near(found, expected);
        }
        // The gradient of one of them does not need those of the others.
        let [q, k, v] = drawn().map(|x| x.detach());
        let k = k.require_grad();
        let alone = crate::attend([q, k.clone(), v], &how).expect("it is on Flex");
        let [alone] = gradients_of([&k], alone);
        assert_eq!(alone, found[1]);
    }
}

/// One row that two continue, each of them continued by two; and two rows after others that have
/// been kept.
#[test]
fn gradients_of_rows_that_continue_others() {
    let [heads, kv_heads, d_head] = [4, 2, 16];
    let how = Attention {
        scale: 0.25,
        cap: None,
        window: Some(17),
    };
    let [trunk, suffix, queries] = [9, 8, 3];
    // The row, its suffixes, and the others, which are as long.
    let tokens = trunk + 4 * suffix + 2 * suffix;
    let asking = trunk + 4 * queries + 2 * suffix;
    let drawn = || {
        [
            tracked([1, heads, asking, d_head], 1),
            tracked([1, kv_heads, tokens, d_head], 2),
            tracked([1, kv_heads, tokens, d_head], 3),
        ]
        .map(|x| x.detach().require_grad())
    };
    let kept = [4, 5].map(|seed| tracked([1, kv_heads, 6, d_head], seed));
    let before: Vec<i64> = [0..5, 0..4, 5..6]
        .into_iter()
        .flatten()
        .map(|token| token as i64)
        .collect();
    let before = Tensor::from_data(TensorData::new(before, [10]), &FlexDevice);
    let [keys, values] = kept.each_ref();
    let classes = [
        AttendingRows {
            rows: 1,
            len: trunk,
            queries: trunk,
            before: KeysBefore::None,
        },
        AttendingRows {
            rows: 4,
            len: suffix,
            queries,
            before: KeysBefore::Tokens {
                rows: 2,
                tokens: &before,
            },
        },
        AttendingRows {
            rows: 2,
            len: suffix,
            queries: suffix,
            before: KeysBefore::Parts(vec![[keys, values]]),
        },
    ];
    let ours = drawn();
    let found = crate::attend_after(ours.each_ref(), &classes, &how).expect("it is on Flex");

    let theirs = drawn();
    let [q, k, v] = &theirs;
    let part =
        |x: &Tensor<Autodiff<Flex>, 4>, first: usize, len: usize| x.clone().narrow(2, first, len);
    let mut mixed = vec![by_operations(
        [part(q, 0, trunk), part(k, 0, trunk), part(v, 0, trunk)],
        &how,
    )];
    for row in 0..4 {
        let whole = |x| match row / 2 {
            0 => Tensor::cat(
                vec![part(x, 0, 5), part(x, trunk + row * suffix, suffix)],
                2,
            ),
            _ => {
                let own = part(x, trunk + row * suffix, suffix);
                Tensor::cat(vec![part(x, 0, 4), part(x, 5, 1), own], 2)
            }
        };
        let q = part(q, trunk + row * queries, queries);
        mixed.push(by_operations([q, whole(k), whole(v)], &how));
    }
    for row in 0..2 {
        let first = trunk + (4 + row) * suffix;
        let whole =
            |x, kept: &Tensor<_, 4>| Tensor::cat(vec![kept.clone(), part(x, first, suffix)], 2);
        let q = part(q, trunk + 4 * queries + row * suffix, suffix);
        mixed.push(by_operations([q, whole(k, keys), whole(v, values)], &how));
    }
    let expected = Tensor::cat(mixed, 2);
    let [a, b] = [&found, &expected].map(|x| x.clone().into_data().iter().collect::<Vec<f32>>());
    assert_near(&a, &b);
    let found = gradients_of(ours.each_ref(), found);
    let expected = gradients_of(theirs.each_ref(), expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert_near(found, expected);
    }
}

/// Rows without queries, and without keys of their own, have no gradient; and there may be nothing
/// at all.
#[test]
fn there_may_be_no_gradients() {
    let how = Attention {
        scale: 0.5,
        cap: None,
        window: None,
    };
    let class = |rows, len, queries| AttendingRows::<Autodiff<Flex>> {
        rows,
        len,
        queries,
        before: KeysBefore::None,
    };
    let drawn = |queries, tokens| {
        let shapes = [(4, queries, 1), (2, tokens, 2), (2, tokens, 3)];
        shapes.map(|(heads, tokens, seed)| {
            let x = tracked([1, heads, tokens, 8], seed);
            x.detach().require_grad()
        })
    };
    let heads = drawn(6, 4 + 6);
    let classes = [class(2, 2, 0), class(3, 0, 0), class(2, 3, 3)];
    let found = crate::attend_after(heads.each_ref(), &classes, &how).expect("it is on Flex");
    let [q, k, v] = gradients_of(heads.each_ref(), found);
    let [_, own_k, own_v] = &heads;
    let alone = [
        heads[0].clone(),
        own_k.clone().narrow(2, 4, 6),
        own_v.clone().narrow(2, 4, 6),
    ]
    .map(|x| x.detach().require_grad());
    let found = crate::attend_after(alone.each_ref(), &classes[2..], &how).expect("on Flex");
    let [q_alone, k_alone, v_alone] = gradients_of(alone.each_ref(), found);
    assert_eq!(q, q_alone);
    for (all, alone) in [(k, k_alone), (v, v_alone)] {
        for (head, alone) in all.chunks(10 * 8).zip(alone.chunks(6 * 8)) {
            assert!(head[..4 * 8].iter().all(|x| *x == 0.0));
            assert_eq!(head[4 * 8..], *alone);
        }
    }
    for shape in [[1, 1, 1, 0], [0, 2, 3, 8]] {
        let x = Tensor::<Autodiff<Flex>, 4>::zeros(shape, &FlexDevice).require_grad();
        let all = [x.clone(), x.clone(), x.clone()];
        let found = crate::attend(all, &how).expect("it is on Flex");
        let gradients = found.sum().backward();
        assert_eq!(x.grad(&gradients).expect("a gradient").dims(), shape);
    }
}

/// Ten rows after each of two that have been kept, and after five of which each is continued by
/// four: more than a task has, in groups that do not nest.
#[test]
fn gradients_of_rows_after_several_parts() {
    let how = Attention {
        scale: 0.5,
        cap: None,
        window: None,
    };
    let (rows, len) = (20, 3);
    let drawn = || {
        let seeds = [(4, 1), (2, 2), (2, 3)];
        seeds.map(|(heads, seed)| {
            let x = tracked([1, heads, rows * len, 8], seed);
            x.detach().require_grad()
        })
    };
    let kept = [(2, 4), (5, 6)]
        .map(|(rows, count)| [1, 2].map(|seed| tracked([rows, 2, count, 8], seed + rows)));
    let parts = || kept.each_ref().map(|pair| pair.each_ref());
    let class = |parts| AttendingRows {
        rows,
        len,
        queries: len,
        before: KeysBefore::Parts(parts),
    };
    let ours = drawn();
    let classes = [class(parts().to_vec())];
    let found = crate::attend_after(ours.each_ref(), &classes, &how).expect("it is on Flex");
    let theirs = drawn();
    let mixed = (0..rows).map(|row| {
        let own = |x: &Tensor<Autodiff<Flex>, 4>| x.clone().narrow(2, row * len, len);
        let [q, k, v] = theirs.each_ref();
        let whole = |x: &Tensor<Autodiff<Flex>, 4>, which: usize| {
            let before = parts().map(|pair| {
                let [of, ..] = pair[which].dims();
                pair[which].clone().narrow(0, row / (rows / of), 1)
            });
            Tensor::cat(before.into_iter().chain([own(x)]).collect(), 2)
        };
        by_operations([own(q), whole(k, 0), whole(v, 1)], &how)
    });
    let expected = Tensor::cat(mixed.collect(), 2);
    let found = gradients_of(ours.each_ref(), found);
    let expected = gradients_of(theirs.each_ref(), expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert_near(found, expected);
    }
    // There is no kernel for gradients of what has been kept.
    let [[keys, values], second] = &kept;
    let keys = keys.clone().require_grad();
    let classes = [class(vec![[&keys, values], second.each_ref()])];
    assert!(crate::attend_after(ours.each_ref(), &classes, &how).is_none());
}

/// The other rows, to the bit, whatever a task has left behind.
#[test]
fn what_is_no_number_stays_in_its_row() {
    let how = Attention {
        scale: 0.5,
        cap: None,
        window: None,
    };
    let found = |first: f32| {
        let all = [1, 2, 3].map(|seed| {
            let x = tracked([3, 2, 20, 12], seed);
            let [own, rest] = [x.clone().narrow(0, 0, 1) * first, x.narrow(0, 1, 2)];
            Tensor::cat(vec![own, rest], 0).detach().require_grad()
        });
        let mixed = crate::attend(all.clone(), &how).expect("it is on Flex");
        gradients_of(all.each_ref(), mixed)
    };
    let (expected, beside) = (found(1.0), found(f32::NAN));
    for (expected, beside) in expected.iter().zip(&beside) {
        let row = expected.len() / 3;
        assert!(beside[..row].iter().any(|x| x.is_nan()));
        assert_eq!(beside[row..], expected[row..]);
    }
}

/// To the bit.
#[test]
fn gradients_depend_neither_on_threads_nor_on_other_rows() {
    let sizes = [6, 3, 16];
    let [heads, kv_heads, d_head] = sizes;
    let how = Attention {
        scale: 0.25,
        cap: None,
        window: None,
    };
    let (rows, len) = (5, 41);
    let [q, of_mixed] = [1, 2].map(|seed| numbers(rows * len * heads * d_head, seed));
    let own = [3, 4].map(|seed| numbers(rows * len * kv_heads * d_head, seed));
    let run = |first: usize, some: usize, arch, threads| {
        let of = |x: &Vec<f32>, heads: usize| {
            x[first * len * heads * d_head..][..some * len * heads * d_head].to_vec()
        };
        let own = own.each_ref().map(|x| of(x, kv_heads));
        let [q, of_mixed] = [&q, &of_mixed].map(|x| of(x, heads));
        let [q, of_mixed] = [&q, &of_mixed].map(|x| vectors(x, [len, heads, d_head]));
        let rows = [Rows {
            rows: some,
            queries: len,
            q,
            parts: vec![part(&own, [some, len, kv_heads, d_head])],
        }];
        gradients_by(arch, &rows, &[of_mixed], sizes, &how, threads)
    };
    let expected = run(0, rows, Arch::new(), 1);
    assert_eq!(run(0, rows, Arch::new(), 2), expected);
    for (row, found) in (0..rows).map(|row| (row, run(row, 1, Arch::new(), 2))) {
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(*found, expected[row * found.len()..][..found.len()]);
        }
    }
    for (found, expected) in run(0, rows, Arch::Scalar, 2).iter().zip(&expected) {
        assert_near(found, expected);
    }
}
