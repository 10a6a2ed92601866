//! Matrices that stay orthonormal.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::interventions::{Orthonormal, OrthonormalError, OrthonormalMap};

use crate::support::values;

on_every_backend!(
    random_matrices_are_orthonormal,
    gradients_agree_with_finite_differences,
    steps_keep_columns_orthonormal,
);

const SHAPES: [([usize; 2], OrthonormalMap); 8] = [
    ([16, 16], OrthonormalMap::Retraction),
    ([16, 5], OrthonormalMap::Retraction),
    ([16, 1], OrthonormalMap::Retraction),
    ([16, 16], OrthonormalMap::MatrixExponential),
    ([16, 16], OrthonormalMap::Cayley),
    ([16, 16], OrthonormalMap::Householder),
    ([16, 5], OrthonormalMap::Householder),
    ([16, 1], OrthonormalMap::Householder),
];

fn random<B: Backend>(
    shape: [usize; 2],
    map: OrthonormalMap,
    seed: u64,
    device: &B::Device,
) -> Orthonormal<B> {
    Orthonormal::random(shape, map, seed, device).expect("a shape that fits the map")
}

fn random_matrices_are_orthonormal<B: Backend>(device: &B::Device) {
    for (shape, map) in SHAPES {
        let matrix = random::<B>(shape, map, 1, device);
        assert_eq!(matrix.matrix().dims(), shape);
        let deviation = matrix.deviation();
        assert!(deviation < 5e-6, "{map:?} {shape:?}: {deviation}");
        let other = random::<B>(shape, map, 2, device);
        assert_ne!(values(matrix.matrix()), values(other.matrix()));
        let again = random::<B>(shape, map, 1, device);
        assert_eq!(values(matrix.matrix()), values(again.matrix()));
    }
}

/// The negated share of some vectors within the span of the matrix: smallest for the span of their
/// first principal components.
fn loss<B: Backend>(matrix: &Orthonormal<B>, vectors: Tensor<B, 2>) -> Tensor<B, 1> {
    let w = matrix.matrix();
    let inside = vectors.clone().matmul(w.clone()).matmul(w.transpose());
    (vectors - inside).powi_scalar(2).sum().unsqueeze()
}

/// Vectors whose variance lies mostly in three directions, which are not the axes.
fn vectors<B: Backend>(device: &B::Device) -> Tensor<B, 2> {
    let mixing = random::<B>([16, 16], OrthonormalMap::Retraction, 7, device).matrix();
    let values: Vec<f32> = (0..64 * 16)
        .map(|i| {
            let scale = [3.0, 2.0, 2.5].get(i % 16).copied().unwrap_or(0.1);
            (((i * 7919) % 2003) as f32 / 1001.0 - 1.0) * scale
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [64, 16]), device).matmul(mixing)
}

/// Adam on the loss.
fn train<B: Backend>(
    mut matrix: Orthonormal<Autodiff<B>>,
    steps: usize,
    rate: f64,
    device: &B::Device,
) -> Orthonormal<Autodiff<B>> {
    let vectors = Tensor::from_inner(vectors::<B>(device));
    let mut adam = AdamConfig::new().init();
    for _ in 0..steps {
        let gradients = loss(&matrix, vectors.clone()).backward();
        let mut gradients = GradientsParams::from_grads(gradients, &matrix);
        let id = matrix.parameter.id;
        let gradient = gradients.remove::<B, 2>(id).expect("tracked");
        gradients.register(id, matrix.valid().riemannian_gradient(gradient));
        let before = matrix.matrix();
        matrix = adam.step(rate, matrix, gradients);
        matrix = matrix.retracted(before);
    }
    matrix
}

fn steps_keep_columns_orthonormal<B: Backend>(device: &B::Device) {
    stay_orthonormal::<B>(20, device);
}

#[test]
fn a_thousand_steps_keep_columns_orthonormal() {
    stay_orthonormal::<burn::backend::Flex>(1000, &Default::default());
}

fn stay_orthonormal<B: Backend>(steps: usize, device: &B::Device) {
    for (shape, map) in SHAPES {
        let start = random::<Autodiff<B>>(shape, map, 3, device);
        let before = values(start.matrix());
        let end = train::<B>(start, steps, 1e-2, device);
        let deviation = end.valid().deviation();
        assert!(deviation < 1e-5, "{map:?} {shape:?}: {deviation}");
        assert!(end.parameter.is_require_grad(), "{map:?} {shape:?}");
        let moved = before != values(end.matrix());
        assert!(moved, "{map:?} {shape:?}: nothing was trained");
    }
}

fn gradients_agree_with_finite_differences<B: Backend>(device: &B::Device) {
    const STEP: f32 = 1e-2;
    let weights: Vec<f32> = (0..36)
        .map(|i| ((i * 29) % 17) as f32 / 8.0 - 1.0)
        .collect();
    for (shape, map) in [
        ([6, 6], OrthonormalMap::MatrixExponential),
        ([6, 6], OrthonormalMap::Cayley),
        ([6, 6], OrthonormalMap::Householder),
        ([6, 2], OrthonormalMap::Householder),
    ] {
        let [d, rank] = shape;
        let weights = &weights[..d * rank];
        let value = |matrix: &Orthonormal<B>| -> f64 {
            let matrix = values(matrix.matrix());
            let terms = matrix.iter().zip(weights);
            terms.map(|(m, w)| f64::from(*m) * f64::from(*w)).sum()
        };
        let mut at = random::<B>(shape, map, 5, device);
        let change: Vec<f32> = (0..d * rank)
            .map(|i| ((i * 31) % 13) as f32 / 26.0 - 0.2)
            .collect();
        let moved_by = |matrix: &Orthonormal<B>, change: Vec<f32>| {
            let mut matrix = matrix.clone();
            let change = Tensor::<B, 2>::from_data(TensorData::new(change, shape), device);
            matrix.parameter = matrix.parameter.map(|x| x + change);
            matrix
        };
        at = moved_by(&at, change);
        // The diagonal of a Householder parameter holds signs, which must be exactly ±1.
        if map == OrthonormalMap::Householder {
            at.parameter = at.parameter.map(|x| {
                let unit = Tensor::<B, 2>::eye(d, &x.device()).narrow(1, 0, rank);
                x.tril(-1) - unit
            });
        }
        let mut tracked = Orthonormal::<Autodiff<B>>::from_inner(at.clone());
        tracked.parameter = tracked.parameter.map(Tensor::require_grad);
        let w = Tensor::<B, 2>::from_data(TensorData::new(weights.to_vec(), shape), device);
        let gradients = (tracked.matrix() * Tensor::from_inner(w)).sum().backward();
        let gradient = tracked.parameter.val().grad(&gradients).expect("tracked");
        let gradient = values(gradient);
        let largest = gradient.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
        assert!(largest > 1e-2, "{map:?}: the gradient vanishes");
        for entry in 0..d * rank {
            let (row, column) = (entry / rank, entry % rank);
            if column > row || (column == row && map == OrthonormalMap::Householder) {
                assert!(
                    gradient[entry].abs() < 1e-4,
                    "{map:?}: {entry} does not count"
                );
                continue;
            }
            let at = |by: f32| {
                let mut change = vec![0.0; d * rank];
                change[entry] = by;
                value(&moved_by(&at, change))
            };
            let difference = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            assert!(
                (f64::from(gradient[entry]) - difference).abs()
                    < 2e-3 * f64::from(largest).max(1.0),
                "{map:?} {shape:?}, entry {entry}: {} and {difference}",
                gradient[entry]
            );
        }
    }
}

#[test]
fn every_map_finds_the_same_subspace() {
    type B = burn::backend::Flex;
    let device = &Default::default();
    let found = [OrthonormalMap::Retraction, OrthonormalMap::Householder].map(|map| {
        let start = random::<Autodiff<B>>([16, 3], map, 3, device);
        let end = train::<B>(start, 2000, 2e-2, device).valid();
        let w = end.matrix();
        values(w.clone().matmul(w.transpose()))
    });
    let largest = found[0]
        .iter()
        .zip(&found[1])
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(largest < 1e-2, "the projections differ by {largest}");
}

#[test]
fn a_riemannian_gradient_is_tangent_and_says_how_tangent_steps_change_the_loss() {
    type B = burn::backend::Flex;
    let device = &Default::default();
    let at = random::<B>([16, 5], OrthonormalMap::Retraction, 3, device);
    let draw = |seed| {
        let matrix = random::<B>([16, 16], OrthonormalMap::Retraction, seed, device);
        matrix.matrix().narrow(1, 0, 5)
    };
    let (gradient, step) = (draw(4), at.riemannian_gradient(draw(5)));
    let found = at.riemannian_gradient(gradient.clone());
    let inner = at.matrix().transpose().matmul(found.clone());
    let across = values(inner.clone() + inner.transpose());
    assert!(across.iter().all(|it| it.abs() < 1e-6), "{across:?}");
    let change = |gradient: Tensor<B, 2>| values((gradient * step.clone()).sum())[0];
    let [expected, found] = [gradient, found].map(change);
    assert!(expected.abs() > 1e-2, "{expected}");
    assert!((expected - found).abs() < 1e-6, "{expected} {found}");
}

#[test]
fn shapes_that_no_map_has() {
    type B = burn::backend::Flex;
    let device = Default::default();
    for rank in [0, 5] {
        assert_eq!(
            Orthonormal::<B>::random([4, rank], OrthonormalMap::Retraction, 0, &device)
                .expect_err("refused"),
            OrthonormalError::Rank { d: 4, rank }
        );
    }
    for map in [OrthonormalMap::MatrixExponential, OrthonormalMap::Cayley] {
        let error = Orthonormal::<B>::random([4, 2], map, 0, &device).expect_err("refused");
        let expected = OrthonormalError::NotSquare { map, d: 4, rank: 2 };
        assert_eq!(error, expected);
    }
}
