//! Plans that cannot be run: each is rejected before anything is computed.

mod edits;
mod ids;
mod inputs;
mod units;

use burn::backend::Flex;
use burn_align::engine::{
    Edit, Indices, InputId, LogitPositions, Operand, Plan, PlanError, Units, WorldId,
};
use burn_align::interventions::{BuiltinIntervention, FillIntervention, VanillaIntervention};
use burn_align_models::{Component, Site};

use crate::counted::Counted;
use crate::support::{load, message, tokens};

/// `gpt2_plain` and `llama_gqa` have 2 layers, 4 heads, `d_model` 16, 41 tokens and 32 positions.
/// LLaMA has 2 KV heads.
const MODELS: [&str; 2] = ["gpt2_plain", "llama_gqa"];
const OUTPUT: Site = Site::Block(0, Component::BlockOutput);
const QUERY: Site = Site::Block(0, Component::QueryOutput);
const KEY: Site = Site::Block(0, Component::KeyOutput);

/// Index of the intervention that takes a source.
const SWAP: usize = 0;

/// Index of the one that takes none.
const ZERO: usize = 1;

fn interventions() -> [BuiltinIntervention<Flex>; 2] {
    [
        BuiltinIntervention::from(VanillaIntervention),
        BuiltinIntervention::from(FillIntervention::ZERO),
    ]
}

/// The error of a plan, having checked that neither executor computes anything.
fn refused_by(name: &str, build: impl FnOnce(&mut Plan<Flex>)) -> PlanError {
    let model = Counted::new(load::<Flex>(name, &Default::default()));
    let mut plan = Plan::new();
    build(&mut plan);
    let error = plan.run(&model, &interventions()).expect_err("refused");
    let naive = plan.run_naively(&model, &interventions());
    assert_eq!(naive.expect_err("refused"), error);
    // It knows of no interventions.
    let of_interventions = matches!(
        error,
        PlanError::NoSuchIntervention { .. }
            | PlanError::OperandPresence { .. }
            | PlanError::FeatureOutOfRange { .. }
    );
    match plan.explain(&model) {
        Err(other) => assert_eq!(other, error),
        Ok(_) => assert!(of_interventions, "{error}"),
    }
    assert_eq!(model.stages(), 0, "{name}: {error}");
    error
}

/// The error that a plan has on both models.
fn refused(build: impl Fn(&mut Plan<Flex>)) -> PlanError {
    let [error, other] = MODELS.map(|name| refused_by(name, &build));
    assert_eq!(error, other);
    error
}

/// Two examples of 5 and 3 tokens.
fn base(plan: &mut Plan<Flex>) -> InputId {
    plan.tokens(&tokens(&[&[3, 1, 4, 1, 5], &[9, 2, 6]]))
}

/// A world under one edit, and its logits.
fn edited(plan: &mut Plan<Flex>, edit: Edit) {
    let input = base(plan);
    let world = plan.world(input, [edit]);
    plan.read_logits(world, LogitPositions::Last);
}

/// A swap between two worlds on the same input.
fn swap(plan: &mut Plan<Flex>, site: Site, from: Units, to: Units) {
    let input = base(plan);
    let world = plan.world(input, []);
    let operand = Operand::Activation {
        world,
        site,
        units: from,
    };
    edited(plan, Edit::new(site, to, SWAP, operand));
}

fn zero(site: Site, units: Units) -> Edit {
    Edit::new(site, units, ZERO, Operand::None)
}

fn each(positions: &[&[usize]]) -> Indices {
    Indices::Each(positions.iter().map(|list| list.to_vec()).collect())
}

fn assert_says(error: &PlanError, expected: &str) {
    assert_eq!(message(error), expected);
}

/// The first world of another plan that has several.
fn foreign_world(index: usize) -> WorldId {
    let mut other = Plan::<Flex>::new();
    let input = base(&mut other);
    let worlds: Vec<WorldId> = (0..=index).map(|_| other.world(input, [])).collect();
    worlds[index]
}

#[test]
fn a_right_plan_is_computed_and_counted() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let mut plan = Plan::new();
    edited(&mut plan, zero(OUTPUT, Units::position(2)));
    plan.run(&model, &interventions()).expect("right");
    // the embedding, two blocks, the norm and the unembedding
    assert_eq!(model.stages(), 5);
}

#[test]
fn a_site_that_is_named_but_not_tapped() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default())).silent();
    let site = Site::Block(1, Component::MlpInput);
    let (mut edited_there, mut read_there) = (Plan::new(), Plan::new());
    edited(&mut edited_there, zero(site, Units::position(2)));
    let input = base(&mut read_there);
    let world = read_there.world(input, []);
    read_there.read(world, site, Units::position(2));
    for plan in [edited_there, read_there] {
        let error = plan.run(&model, &interventions()).expect_err("refused");
        assert_eq!(
            message(&error),
            "the model never taps the activation at layer 1 mlp_input: call Cx::stream or \
             Cx::heads there, or take it out of the model's ModelLayout"
        );
    }
}

#[test]
fn worlds_that_nobody_reads_are_not_computed() {
    let model = Counted::new(load::<Flex>("gpt2_plain", &Default::default()));
    let mut plan = Plan::new();
    let input = base(&mut plan);
    plan.world(input, [zero(OUTPUT, Units::position(2))]);
    assert_eq!(
        plan.run(&model, &interventions())
            .expect("right")
            .iter()
            .count(),
        0
    );
    assert_eq!(model.stages(), 0);
}
