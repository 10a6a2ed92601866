//! Plans that are run with the options of earlier ones, whose schedules they may take.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, RunOptions, Units};
use burn_align_models::{AlignableTransformer, Component, Site};

use super::mixed;
use crate::support::{load, max_difference, tokens};

on_every_backend!(plans_of_one_structure_differ_in_their_values);

/// A swap with a second prompt and a constant, at positions of the two examples.
fn plan<B: Backend>(
    rows: [[&[u32]; 2]; 2],
    site: Site,
    positions: [usize; 2],
    constant: Tensor<B, 3>,
) -> Plan<B> {
    let mut plan = Plan::new();
    let [base, source] = rows.map(|rows| plan.tokens(&tokens(&rows)));
    let source = plan.world(source, []);
    let units = Units::positions(Indices::one_each(positions));
    let constant = Operand::Constant(plan.constant(constant));
    let swap = Edit::from_world(source, site, units.clone(), 0);
    let blend = Edit::new(site, units, 1, constant);
    let world = plan.world(base, [swap, blend]);
    plan.read_logits(world, LogitPositions::Last);
    plan.read(source, site, Units::ALL);
    plan
}

fn plans_of_one_structure_differ_in_their_values<B: Backend>(device: &B::Device) {
    const FIRST: [&[u32]; 2] = [&[3, 1, 4, 1, 5], &[9, 2, 6]];
    const SECOND: [&[u32]; 2] = [&[2, 7, 1, 8, 2], &[8, 1, 8]];
    const LONGER: [&[u32]; 2] = [&[2, 7, 1, 8, 2], &[8, 1, 8, 4]];
    let [llama, gpt2] = ["llama_gqa", "gpt2_plain"].map(|name| load::<B>(name, device));
    let [early, late] = [0, 1].map(|layer| Site::Block(layer, Component::BlockOutput));
    let constant = |value: f64| {
        let width = llama.dims().d_model;
        Tensor::<B, 3>::full([1, 1, width], value, device)
    };
    let shared = RunOptions::default();
    let interventions = mixed();
    for (rows, site, positions, value) in [
        ([FIRST, SECOND], early, [1, 1], 0.0),
        ([SECOND, FIRST], early, [1, 1], 0.0),
        ([FIRST, SECOND], early, [1, 1], 2.0),
        ([FIRST, SECOND], early, [3, 1], 0.0),
        ([FIRST, SECOND], late, [1, 1], 0.0),
        ([FIRST, LONGER], early, [1, 1], 0.0),
        ([LONGER, FIRST], early, [1, 1], 0.0),
        ([FIRST, SECOND], early, [1, 1], 1.0),
    ] {
        let plan = plan(rows, site, positions, constant(value));
        let batch = plan.examples(&[1, 0]).expect("it has them");
        let trained = |index: usize| index == 1;
        for model in [&llama, &gpt2] {
            let frozen = plan.freeze(model, &interventions, trained, &shared);
            let frozen = frozen.expect("valid");
            for plan in [&plan, &batch, &frozen] {
                let found = plan.run_with(model, &interventions, &shared);
                let naive = plan.run_naively(model, &interventions);
                let (found, naive) = (found.expect("valid"), naive.expect("valid"));
                for (found, naive) in found.iter().zip(naive.iter()) {
                    let difference = max_difference(found.clone(), &naive.to_data());
                    assert!(difference <= 1e-4, "{rows:?}, {positions:?}: {difference}");
                }
            }
        }
    }
}
