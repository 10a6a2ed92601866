//! Which plans take the schedule of an earlier one.

use std::sync::Arc;

use burn::backend::Flex;
use burn::tensor::Tensor;
use burn_align_models::{Component, Decoder, DecoderConfig, Site, TokenBatch};
use serde_json::json;

use super::Schedules;
use crate::engine::schedule::Schedule;
use crate::engine::validate::validate_keeping;
use crate::engine::{
    Edit, Indices, InputId, LogitPositions, Operand, Plan, PlanError, Units, WorldId,
};
use crate::interventions::VanillaIntervention;

type Rows = &'static [&'static [u32]];

const SITE: Site = Site::Block(0, Component::BlockOutput);

fn model(layers: usize) -> Decoder<Flex> {
    let config = DecoderConfig::from_json(&json!({
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
    }));
    config.expect("valid").init(&Default::default())
}

fn input(plan: &mut Plan<Flex>, rows: Rows) -> InputId {
    let rows = rows.iter().map(|row| row.to_vec()).collect();
    plan.tokens(&TokenBatch::new(rows).expect("not empty"))
}

/// A world with one edit, and one that it may take from. The edited world's logits are read.
fn plan_with(rows: [Rows; 2], edit: impl FnOnce(WorldId) -> Edit) -> Plan<Flex> {
    let mut plan = Plan::new();
    let [base, source] = rows.map(|rows| input(&mut plan, rows));
    let source = plan.world(source, []);
    let world = plan.world(base, [edit(source)]);
    plan.read_logits(world, LogitPositions::Last);
    plan
}

fn swap(source: WorldId) -> Edit {
    Edit::from_world(source, SITE, Units::position(1), 0)
}

const BASE: Rows = &[&[1, 2, 3], &[4, 5]];
const SOURCE: Rows = &[&[6, 7, 8], &[9, 1]];

fn scheduled(
    plan: &Plan<Flex>,
    model: &Decoder<Flex>,
    schedules: &Schedules,
) -> Result<Arc<Schedule>, PlanError> {
    let interventions = [VanillaIntervention, VanillaIntervention];
    validate_keeping(plan, model, &interventions, &[], Some(schedules))
}

#[test]
fn plans_that_differ_in_values_share_a_schedule() {
    let (model, schedules) = (model(2), Schedules::new());
    let first = plan_with([BASE, SOURCE], swap);
    let first = scheduled(&first, &model, &schedules).expect("valid");
    let others: [[Rows; 2]; 2] = [
        [BASE, SOURCE],
        [&[&[3, 3, 3], &[0, 9]], &[&[1, 1, 2], &[3, 5]]],
    ];
    for rows in others {
        let other = plan_with(rows, swap);
        let other = scheduled(&other, &model, &schedules).expect("valid");
        assert!(Arc::ptr_eq(&first, &other));
    }

    let constant = |values: [f32; 8]| {
        let mut plan = Plan::new();
        let values = Tensor::<Flex, 1>::from_floats(values, &Default::default());
        let operand = Operand::Constant(plan.constant(values.reshape([1, 1, 8])));
        let input = input(&mut plan, BASE);
        let world = plan.world(input, [Edit::new(SITE, Units::position(1), 0, operand)]);
        plan.read_logits(world, LogitPositions::Last);
        scheduled(&plan, &model, &schedules).expect("valid")
    };
    assert!(Arc::ptr_eq(&constant([1.0; 8]), &constant([2.0; 8])));
}

#[test]
fn plans_that_differ_otherwise_have_their_own() {
    let (model, schedules) = (model(2), Schedules::new());
    let first = plan_with([BASE, SOURCE], swap);
    let first = scheduled(&first, &model, &schedules).expect("valid");

    let other = plan_with([BASE, SOURCE], swap);
    let deeper = scheduled(&other, &self::model(3), &schedules).expect("valid");
    assert!(!Arc::ptr_eq(&first, &deeper));

    let with = |edit: &dyn Fn(WorldId) -> Edit| plan_with([BASE, SOURCE], edit);
    let later = Site::Block(1, Component::BlockOutput);
    let mut others = vec![
        with(&|source| Edit::from_world(source, SITE, Units::position(0), 0)),
        with(&|source| Edit::from_world(source, later, Units::position(1), 0)),
        with(&|source| Edit::from_world(source, SITE, Units::position(1), 1)),
        with(&|source| swap(source).with_features(Indices::same([0, 1]))),
        with(&|source| Edit {
            operand: Operand::Activation {
                world: source,
                site: SITE,
                units: Units::position(0),
            },
            ..swap(source)
        }),
        plan_with([&[&[1, 2, 3], &[4, 5, 6]], SOURCE], swap),
        plan_with([BASE, &[&[6, 7, 8, 1], &[9, 1]]], swap),
        plan_with([&[&[1, 2, 3]], &[&[6, 7, 8]]], swap),
    ];
    type Change<'a> = &'a dyn Fn(&mut Plan<Flex>);
    let more: [Change<'_>; 4] = [
        &|plan| {
            plan.read_logits(plan.world_id(1), LogitPositions::All);
        },
        &|plan| {
            plan.read(plan.world_id(0), SITE, Units::ALL);
        },
        &|plan| {
            plan.read_logits(plan.world_id(0), LogitPositions::Last);
        },
        &|plan| {
            plan.world(plan.input_id(0), []);
        },
    ];
    others.extend(more.iter().map(|add| {
        let mut plan = plan_with([BASE, SOURCE], swap);
        add(&mut plan);
        plan
    }));
    for (index, other) in others.iter().enumerate() {
        let fresh = Schedules::new();
        let keeping = [&schedules, &fresh];
        let [found, own] = keeping.map(|it| scheduled(other, &model, it).expect("valid"));
        assert!(!Arc::ptr_eq(&first, &found), "{index}");
        assert_eq!(format!("{found:?}"), format!("{own:?}"), "{index}");
    }
}

/// What does not belong to the structure is checked every time.
#[test]
fn plans_of_a_known_structure_can_be_wrong() {
    let (model, schedules) = (model(2), Schedules::new());
    let right = plan_with([BASE, SOURCE], swap);
    scheduled(&right, &model, &schedules).expect("valid");

    let unknown_token = plan_with([&[&[1, 20, 3], &[4, 5]], SOURCE], swap);
    let error = scheduled(&unknown_token, &model, &schedules).expect_err("refused");
    assert!(
        matches!(error, PlanError::Input { input: 0, .. }),
        "{error}"
    );

    let foreign = right.world_id(0);
    let of_another_plan = plan_with([BASE, SOURCE], |_own| swap(foreign));
    let error = scheduled(&of_another_plan, &model, &schedules).expect_err("refused");
    let is_unknown = matches!(error, PlanError::UnknownId { what: "world", .. });
    assert!(is_unknown, "{error}");

    let none: [VanillaIntervention; 0] = [];
    let error =
        validate_keeping(&right, &model, &none, &[], Some(&schedules)).expect_err("refused");
    assert!(
        matches!(error, PlanError::NoSuchIntervention { .. }),
        "{error}"
    );
}

#[test]
fn only_the_last_few_are_kept() {
    let (model, schedules) = (model(2), Schedules::new());
    let of_length = |pos: usize| {
        let mut plan = Plan::<Flex>::new();
        let tokens = TokenBatch::new(vec![vec![1; pos]]).expect("not empty");
        let input = plan.tokens(&tokens);
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
        scheduled(&plan, &model, &schedules).expect("valid")
    };
    let first = of_length(1);
    (2..=Schedules::MOST_PLANS).for_each(|pos| drop(of_length(pos)));
    assert!(Arc::ptr_eq(&first, &of_length(1)));
    let second = of_length(2);
    // Another structure takes the place of the one that was used least recently, of length 3.
    let mut plan = plan_with([BASE, SOURCE], swap);
    scheduled(&plan, &model, &schedules).expect("valid");
    assert_eq!(schedules.known().len(), Schedules::MOST_PLANS);
    assert!(Arc::ptr_eq(&second, &of_length(2)));

    // Large plans are not kept. Each of these worlds has two rows.
    let input = plan.input_id(0);
    for _ in 0..Schedules::MOST_ROWS / 2 {
        plan.world(input, []);
    }
    let [one, other] = [(); 2].map(|()| scheduled(&plan, &model, &schedules).expect("valid"));
    assert!(!Arc::ptr_eq(&one, &other));
}
