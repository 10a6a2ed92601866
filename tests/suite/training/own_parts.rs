//! A user's own featurizer and operation, composed with the crate's parts.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::front::{AlignableConfig, AlignableModel, InterventionType};
use burn_align::interventions::{
    Boundary, Change, Composed, Encoded, Features, Featurizer, Intervention, Operation,
    Orthonormal, OrthonormalMap, Rotation, SigmoidMask, Swap, TokenGrouping,
};
use burn_align::training::{TrainingConfig, losses, train};

use super::{data, load, representation};
use crate::support::values;

on_every_backend!(
    your_own_parts_are_trained_with_ours,
    how_a_loss_changes_off_the_manifold_does_not_matter,
);

/// `base + share · (source - base)`.
#[derive(Module, Debug)]
struct Blend<B: Backend> {
    /// `[1]`
    share: Param<Tensor<B, 1>>,
}

impl<B: Backend> Operation<B> for Blend<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Difference(features.difference() * self.share.val().unsqueeze())
    }
}

/// Every feature on its own scale, after a rotation: `z = x W ⊙ s`, and what `W` does not span is
/// kept.
#[derive(Module, Debug)]
struct ScaledRotation<B: Backend> {
    rotation: Orthonormal<B>,
    /// `[feature]`
    scale: Param<Tensor<B, 1>>,
}

impl<B: Backend> Featurizer<B> for ScaledRotation<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.rotation.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x.matmul(self.rotation.matrix()) * self.scale.val().unsqueeze()
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        let change = (z - from.features()) / self.scale.val().unsqueeze();
        from.vector() + change.matmul(self.rotation.matrix().transpose())
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }
}

fn your_own_parts_are_trained_with_ours<B: Backend>(device: &B::Device) {
    type A<B> = Autodiff<B>;
    let rotation = |rank| {
        Orthonormal::<A<B>>::random([16, rank], OrthonormalMap::Retraction, 3, device)
            .expect("it fits")
    };
    let number =
        |value: f32, count| Param::from_tensor(Tensor::<A<B>, 1>::full([count], value, device));
    let middle = Tensor::full([1], 0.5, device);
    let blend = Composed::of(
        Rotation::new(rotation(16)),
        Blend {
            share: number(0.3, 1),
        },
    )
    .with_tokens(TokenGrouping::Each)
    .with_mask(Boundary::new(middle, 16, 1.0));
    let (start, blend) = fit::<B, _>(blend, device);
    assert!(blend.featurizer.rotation.deviation() < 1e-5);
    let share = values(blend.operation.share.val())[0];
    assert!((share - 0.3).abs() > 1e-2, "{share}, from {start:?}");

    let scaled = ScaledRotation {
        rotation: rotation(6),
        scale: number(1.5, 6),
    };
    let mask = SigmoidMask::uniform(0.5, 6, 0.5, device);
    let (_, scaled) = fit::<B, _>(Composed::of(scaled, Swap).with_mask(mask), device);
    assert!(scaled.featurizer.rotation.deviation() < 1e-5);
    let logits = values(scaled.mask.logits.val());
    assert!(logits.iter().all(|logit| *logit != 0.5), "{logits:?}");
}

/// A rotation, times a power of the mean squared length of its columns, which is 1 as long as they
/// are orthonormal. Its gradient has a large part across the manifold, that of a plain rotation a
/// small one.
#[derive(Module, Debug)]
struct Longer<B: Backend> {
    rotation: Orthonormal<B>,
}

impl<B: Backend> Featurizer<B> for Longer<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.rotation.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let [_d, rank] = self.rotation.dims();
        let w = self.rotation.matrix();
        let squared = (w.clone() * w.clone()).sum() / rank as f64;
        x.matmul(w) * squared.powi_scalar(20).unsqueeze()
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        let change = z - from.features();
        from.vector() + change.matmul(self.rotation.matrix().transpose())
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }
}

fn how_a_loss_changes_off_the_manifold_does_not_matter<B: Backend>(device: &B::Device) {
    let rotation = || {
        Orthonormal::<Autodiff<B>>::random([16, 6], OrthonormalMap::Retraction, 3, device)
            .expect("it fits")
    };
    let (_, plain) = fit::<B, _>(Composed::of(Rotation::new(rotation()), Swap), device);
    let longer = Longer {
        rotation: rotation(),
    };
    let (_, longer) = fit::<B, _>(Composed::of(longer, Swap), device);
    let [start, plain, longer] = [
        rotation().valid(),
        plain.featurizer.rotation,
        longer.featurizer.rotation,
    ]
    .map(|it| it.matrix());
    let largest = |x: Tensor<B, 2>| values(x.abs().max())[0];
    let [moved, apart] = [start, longer].map(|it| largest(it - plain.clone()));
    assert!(moved > 0.1, "{moved}");
    assert!(apart < 2e-3, "{apart} apart, after {moved}");
}

/// The first and last loss, and the trained intervention.
fn fit<B: Backend, I>(it: I, device: &B::Device) -> ([f64; 2], I::InnerModule)
where
    I: Intervention<Autodiff<B>> + AutodiffModule<Autodiff<B>>,
    I::InnerModule: Intervention<B>,
{
    let config = AlignableConfig::new([representation(InterventionType::Vanilla)]);
    let model = load::<Autodiff<B>>(device);
    let model = AlignableModel::with_interventions(config, model, vec![it]).expect("it fits");
    let config = TrainingConfig::default()
        .with_epochs(20)
        .with_learning_rate(2e-2)
        .with_mask_learning_rate(2e-2);
    let data = [data::<B>(24, device)];
    let (trained, history) =
        train(model, &data, &[], &config, losses::cross_entropy, |_| {}).expect("trained");
    let (first, last) = (history.epochs[0].loss, history.epochs[19].loss);
    assert!(last < 0.99 * first, "{first} to {last}");
    ([first, last], trained.interventions()[0].valid())
}
