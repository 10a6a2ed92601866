//! Several devices give the same results as one. Here they are one device, named several times; in
//! `tests/remote.rs` they are servers.

mod agree;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::engine::{Plan, PlanError};
use burn_align::front::InterventionType;
use burn_align::interventions::VanillaIntervention;
use burn_align::training::{TrainingConfig, TrainingError, losses, train_on_devices};
use burn_align_models::Decoder;

use agree::{a_padded_run_agrees, a_plan_agrees, a_run_agrees, a_sweep_agrees, data, model};

on_every_backend!(
    sweeps_agree,
    plans_agree,
    training_agrees,
    padded_positions_agree,
    no_device_is_refused,
);

/// A device, repeated `count` times.
fn times<B: Backend>(count: usize, device: &B::Device) -> Vec<B::Device> {
    vec![device.clone(); count]
}

fn sweeps_agree<B: Backend>(device: &B::Device) {
    for count in [1, 2, 3, 40] {
        a_sweep_agrees::<B>(&times::<B>(count, device));
    }
}

fn plans_agree<B: Backend>(device: &B::Device) {
    a_plan_agrees::<B>(&times::<B>(2, device));
}

fn training_agrees<B: Backend>(device: &B::Device) {
    for count in [1, 2, 3] {
        a_run_agrees::<B>(&times::<B>(count, device));
    }
}

fn padded_positions_agree<B: Backend>(device: &B::Device) {
    // More devices than examples in some batches, and than examples in total.
    for count in [2, 13] {
        a_padded_run_agrees::<B>(&times::<B>(count, device));
    }
}

fn no_device_is_refused<B: Backend>(device: &B::Device) {
    let none: &[Decoder<B>] = &[];
    let found = Plan::<B>::new().run_on_devices(none, &[VanillaIntervention], &Default::default());
    assert_eq!(found.map(drop), Err(PlanError::NoDevice));
    let found = train_on_devices(
        model::<Autodiff<B>>(InterventionType::LowRankRotatedSpace, device),
        &[],
        &[data::<B>()],
        &[],
        &TrainingConfig::default(),
        losses::cross_entropy,
        |_| {},
    );
    assert!(matches!(found, Err(TrainingError::Nothing { .. })));
}
