//! Linearised norms against automatic differentiation.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use crate::nn::{Norm, NormKind, ParamInit};

type A = Autodiff<Flex>;

const KINDS: [NormKind; 4] = [
    NormKind::Layer,
    NormKind::Rms,
    NormKind::RmsF32,
    NormKind::RmsPlusOne,
];
const SHAPE: [usize; 3] = [2, 3, 5];

/// A norm of some kind, with a large ε, so that it matters.
fn norm(kind: NormKind) -> Norm<A> {
    let device = Default::default();
    let mut init = ParamInit::new(&device, DType::F32, 3, 0.7);
    let mut norm = init.norm(kind, SHAPE[2], 0.3);
    norm.weight = init.normal([SHAPE[2]]);
    norm.bias = norm.bias.map(|_zero| init.normal([SHAPE[2]]));
    norm
}

/// Some vectors, which differ by `seed`.
fn vectors<B: burn::tensor::backend::Backend>(seed: f32) -> Tensor<B, 3> {
    let count = SHAPE.iter().product::<usize>();
    let values = (0..count).map(|index| (1.7 * index as f32 + seed).sin() + 0.2 * seed);
    let data = TensorData::new(values.collect::<Vec<f32>>(), SHAPE);
    Tensor::from_data(data, &Default::default())
}

fn numbers(x: Tensor<Flex, 3>) -> Vec<f32> {
    x.into_data().to_vec().expect("f32")
}

#[track_caller]
fn assert_close(found: Tensor<Flex, 3>, expected: Tensor<Flex, 3>, what: &str) {
    let (found, expected) = (numbers(found), numbers(expected));
    assert!(expected.iter().any(|number| number.abs() > 0.05), "{what}");
    for (found, expected) in found.iter().zip(&expected) {
        let off = (found - expected).abs();
        assert!(off <= 2e-6, "{what}: {found}, {expected}");
    }
}

#[test]
fn gradients_are_those_of_autodiff() {
    for kind in KINDS {
        let norm = norm(kind);
        let x = vectors::<A>(1.0).require_grad();
        let gradient = vectors::<A>(2.0);
        let gradients = (norm.forward(x.clone()) * gradient.clone())
            .sum()
            .backward();
        let expected = x.grad(&gradients).expect("it is tracked");
        let linear = norm.linearised(x.detach()).inner();
        let found = linear.pull_back(gradient.inner());
        assert_close(found, expected, &format!("{kind:?}"));
    }
}

#[test]
fn small_changes_are_those_of_the_norm() {
    for kind in KINDS {
        let norm = norm(kind);
        let (x, change) = (vectors::<A>(1.0), vectors::<A>(2.0));
        let linear = norm.linearised(x.clone()).inner();
        let moved = |by: f64| norm.forward(x.clone() + change.clone() * by);
        let expected = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let found = linear.push_forward(change.inner());
        let (found, expected) = (numbers(found), numbers(expected.inner()));
        for (found, expected) in found.iter().zip(&expected) {
            let off = (found - expected).abs();
            assert!(off <= 1e-3, "{kind:?}: {found}, {expected}");
        }
    }
}

#[test]
fn parts_sum_to_the_output() {
    for kind in KINDS {
        let norm = norm(kind);
        let (one, other) = (vectors::<A>(1.0), vectors::<A>(2.0));
        let whole = one.clone() + other.clone();
        let mut expected = norm.forward(whole.clone()).inner();
        if let Some(bias) = &norm.bias {
            expected = expected - bias.val().inner().unsqueeze();
        }
        let linear = norm.linearised(whole).inner();
        let found = linear.part(one.inner()) + linear.part(other.inner());
        assert_close(found, expected, &format!("{kind:?}"));
    }
}
