//! The lockstep executor against the naive one, on random plans.

use std::cell::Cell;
use std::collections::BTreeSet;

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{
    Edit, Indices, LogitPositions, Operand, Plan, PlanError, Results, RunOptions, Units,
};
use burn_align_models::{AlignableTransformer, Site, SiteWidth, TokenBatch};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Mixed, mixed, sites};
use crate::counted::Counted;
use crate::support::{FAMILIES, load, max_difference, values};

on_every_backend!(random_plans_run_as_their_definition_says);

/// An edit before its numbers are fitted to a model: each is taken modulo what the model has.
#[derive(Clone, Debug)]
struct RawEdit {
    site: usize,
    intervention: usize,
    units: RawUnits,
    source_world: usize,
    /// How many sites before (or, if negative, after) the edit its source is.
    source_distance: isize,
    source_units: RawUnits,
    features: Vec<usize>,
}

#[derive(Clone, Debug)]
struct RawUnits {
    all_heads: bool,
    first_head: usize,
    positions: Vec<usize>,
}

#[derive(Clone, Debug)]
struct RawPlan {
    batch: usize,
    inputs: Vec<Vec<Vec<u32>>>,
    worlds: Vec<(usize, Vec<RawEdit>)>,
    read_site: usize,
    /// Whether only the last token of each example is read, and not all positions.
    read_last: bool,
}

fn raw_units() -> impl Strategy<Value = RawUnits> {
    (
        any::<bool>(),
        0..4_usize,
        prop::collection::vec(0..8_usize, 3),
    )
        .prop_map(|(all_heads, first_head, positions)| RawUnits {
            all_heads,
            first_head,
            positions,
        })
}

fn raw_edit() -> impl Strategy<Value = RawEdit> {
    (
        0..100_usize,
        0..3_usize,
        raw_units(),
        0..8_usize,
        -2..6_isize,
        raw_units(),
        prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec(0..4_usize, 1..3),
        ],
    )
        .prop_map(
            |(site, intervention, units, source_world, source_distance, source_units, features)| {
                RawEdit {
                    site,
                    intervention,
                    units,
                    source_world,
                    source_distance,
                    source_units,
                    features,
                }
            },
        )
}

fn raw_plan() -> impl Strategy<Value = RawPlan> {
    (1..=3_usize).prop_flat_map(|batch| {
        let example = prop::collection::vec(0..41_u32, 1..7);
        let input = prop::collection::vec(example, batch);
        let world = (0..3_usize, prop::collection::vec(raw_edit(), 0..4));
        (
            prop::collection::vec(input, 1..4),
            prop::collection::vec(world, 1..7),
            0..100_usize,
            any::<bool>(),
        )
            .prop_map(move |(inputs, worlds, read_site, read_last)| RawPlan {
                batch,
                inputs,
                worlds,
                read_site,
                read_last,
            })
    })
}

fn fit_units(raw: &RawUnits, heads: usize, batch: &[Vec<u32>]) -> Units {
    let positions = batch
        .iter()
        .zip(&raw.positions)
        .map(|(ids, position)| vec![position % ids.len()]);
    Units {
        heads: match raw.all_heads {
            true => Indices::All,
            false => Indices::Same(vec![raw.first_head % heads]),
        },
        positions: Indices::Each(positions.collect()),
    }
}

/// Fits a raw plan to a model. Its operands may have another width than what they replace, or
/// depend on themselves; such plans are refused when they are run.
fn fit<B: Backend, M: AlignableTransformer<B>>(raw: &RawPlan, model: &M) -> Plan<B> {
    let sites = sites(model);
    let heads = |site: Site| model.site(site).expect("it is there").heads;
    let mut plan = Plan::new();
    let inputs: Vec<_> = raw
        .inputs
        .iter()
        .map(|rows| plan.tokens(&TokenBatch::new(rows.clone()).expect("a batch")))
        .collect();
    // Worlds can refer to later ones.
    let ids = plan.upcoming_worlds(raw.worlds.len());
    for (input, edits) in &raw.worlds {
        let input = input % raw.inputs.len();
        let edits = edits.iter().map(|edit| {
            let place = edit.site % sites.len();
            let site = sites[place];
            let source_place = place
                .saturating_add_signed(-edit.source_distance)
                .min(sites.len() - 1);
            let mut source_site = sites[source_place];
            // Mostly the same component, so that widths agree.
            if model.site(source_site) != model.site(site) {
                source_site = site;
            }
            let source = edit.source_world % raw.worlds.len();
            let source_rows = &raw.inputs[raw.worlds[source].0 % raw.inputs.len()];
            let mut source_units = fit_units(&edit.source_units, heads(source_site), source_rows);
            let units = fit_units(&edit.units, heads(site), &raw.inputs[input]);
            if units.heads == Indices::All || source_units.heads == Indices::All {
                source_units.heads = units.heads.clone();
            }
            let features = match edit.features.is_empty() {
                true => Indices::All,
                // The narrowest site of the two models has 4 features.
                false => Indices::Each(vec![edit.features.clone(); raw.batch]),
            };
            Edit {
                site,
                units,
                features,
                intervention: edit.intervention,
                operand: match edit.intervention {
                    2 => Operand::None,
                    _ => Operand::Activation {
                        world: ids[source],
                        site: source_site,
                        units: source_units,
                    },
                },
            }
        });
        plan.world(inputs[input], edits);
    }
    let read_site = sites[raw.read_site % sites.len()];
    for (world, (input, _)) in ids.into_iter().zip(&raw.worlds) {
        let rows = &raw.inputs[input % raw.inputs.len()];
        let last = rows.iter().map(|ids| vec![ids.len() - 1]).collect();
        let (logits, units) = match raw.read_last {
            true => (LogitPositions::Last, Units::positions(Indices::Each(last))),
            false => (LogitPositions::All, Units::ALL),
        };
        plan.read_logits(world, logits);
        plan.read(world, read_site, units);
    }
    plan
}

/// Whether a plan computes only some positions of some rows.
fn has_suffixes<B: Backend, M: AlignableTransformer<B>>(plan: &Plan<B>, model: &M) -> bool {
    let explanation = plan.explain(model).expect("a plan that runs");
    let passes = explanation.passes.iter();
    let mut stages = passes.flat_map(|pass| pass.stages.iter().map(move |stage| (pass.pos, stage)));
    stages.any(|(pos, stage)| stage.positions < pos * stage.rows)
}

/// Whether an MLP of a plan computes fewer positions than the attention before it, in as many rows.
fn leaves_out<B: Backend, M: AlignableTransformer<B>>(plan: &Plan<B>, model: &M) -> bool {
    let explanation = plan.explain(model).expect("a plan that runs");
    let mut passes = explanation.passes.iter();
    passes.any(|pass| {
        pass.stages.windows(2).any(|pair| {
            pair[0].stage.ends_with(" attention")
                && pair[1].stage.ends_with(" mlp")
                && pair[0].rows == pair[1].rows
                && pair[1].positions < pair[0].positions
        })
    })
}

/// The largest absolute value, at least 1.
fn magnitude<B: Backend>(tensor: &Tensor<B, 3>) -> f32 {
    let values = values(tensor.clone());
    values.iter().fold(1.0, |max, v| max.max(v.abs()))
}

fn random_plans_run_as_their_definition_says<B: Backend>(device: &B::Device) {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases: Option<u32> = cases.and_then(|n| n.parse().ok());
    for name in FAMILIES {
        let first = ["gpt2_plain", "llama_gqa", "mistral_window"].contains(&name);
        let cases = cases.unwrap_or(if first { 400 } else { 80 });
        random_plans_of(name, &load::<B>(name, device), cases);
    }
    // For a model whose blocks are not split into halves.
    let whole = Counted::new(load::<B>("gpt2_plain", device));
    random_plans_of("gpt2_plain", &whole, cases.unwrap_or(400));
}

/// Runs that many random plans on a model, in lockstep, in
/// chunks, frozen and joined, and compares them with the naive executor.
pub(crate) fn random_plans_of<B: Backend, M: AlignableTransformer<B>>(
    name: &str,
    model: &M,
    cases: u32,
) {
    let interventions = mixed();
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let (compared, in_suffixes, frozen_in_suffixes, joined) =
        (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
    let (left_out, in_chunks) = (Cell::new(0), Cell::new(0));
    let count = |counter: &Cell<u32>, found: bool| counter.set(counter.get() + u32::from(found));
    let result = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
    .run(&raw_plan(), |raw| {
        let plan = fit(&raw, model);
        let lockstep = match plan.run(model, &interventions) {
            Err(
                PlanError::Circular { .. }
                | PlanError::OperandShape { .. }
                | PlanError::FeatureOutOfRange { .. },
            ) => return Ok(()),
            other => other.expect("the plan is right"),
        };
        count(&compared, true);
        count(&in_suffixes, has_suffixes(&plan, model));
        count(&left_out, leaves_out(&plan, model));
        let rows = RunOptions::default().with_max_rows(raw.batch * (1 + raw.read_site % 4));
        let bytes = plan.explain(model).expect("valid").peak_bytes * (6 + raw.read_site as u64 % 4);
        let bytes = RunOptions::default().with_memory_budget(bytes / 10);
        for options in [rows, bytes] {
            match plan.run_with(model, &interventions, &options) {
                Err(PlanError::RowBudget { .. } | PlanError::MemoryBudget { .. }) => {}
                chunked => {
                    count(&in_chunks, options.memory_budget.is_some());
                    for (chunked, whole) in chunked.expect("valid").iter().zip(lockstep.iter()) {
                        let scale = magnitude(whole);
                        let difference = max_difference(chunked.clone(), &whole.to_data());
                        prop_assert!(difference <= 1e-5 * scale, "in chunks: {difference}");
                    }
                }
            }
        }
        // Frozen before the first edit by one of the interventions, or by none.
        let trained = raw.read_site % (interventions.len() + 1);
        let frozen = plan
            .freeze(
                model,
                &interventions,
                |index| index == trained,
                &RunOptions::default(),
            )
            .expect("valid");
        // Those that are not frozen have been counted above.
        let resumed = frozen.held_bytes() > plan.held_bytes();
        count(&frozen_in_suffixes, resumed && has_suffixes(&frozen, model));
        let rest = frozen.run(model, &interventions).expect("valid");
        let naively = frozen.run_naively(model, &interventions).expect("valid");
        let pairs = rest.iter().zip(lockstep.iter());
        for (found, whole) in pairs.chain(naively.iter().zip(lockstep.iter())) {
            let scale = magnitude(whole);
            let difference = max_difference(found.clone(), &whole.to_data());
            prop_assert!(difference <= 1e-5 * scale, "frozen: {difference}");
        }
        let agree = parts_agree(&plan, &raw, model, &interventions, trained, &lockstep)?;
        count(&joined, agree);
        let naive = plan.run_naively(model, &interventions).expect("valid");
        for (index, (lockstep, naive)) in lockstep.iter().zip(naive.iter()).enumerate() {
            let scale = magnitude(naive);
            let difference = max_difference(lockstep.clone(), &naive.to_data());
            prop_assert!(
                difference <= 1e-5 * scale,
                "{name}, batch {}: read {index} differs by {difference}",
                raw.batch
            );
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{name}: {error}");
    }
    let least_left_out = match model.layout().layers()[0].sublayers().len() {
        1 => 0,
        _ => cases / 10,
    };
    for (what, found, least) in [
        ("were valid", compared.get(), cases / 5),
        ("were joined", joined.get(), cases / 20),
        ("fitted into less memory", in_chunks.get(), cases / 40),
        ("left positions out", left_out.get(), least_left_out),
        ("had suffixes", in_suffixes.get(), cases / 10),
        (
            "had some when they were frozen",
            frozen_in_suffixes.get(),
            cases / 40,
        ),
    ] {
        assert!(found >= least, "{name}: only {found} plans {what}");
    }
}

/// Cuts a plan between its examples, freezes both parts, joins them in the other order, and puts
/// the examples back; whether all of this was possible. The result must equal that of the whole
/// plan, except at padding.
fn parts_agree<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    raw: &RawPlan,
    model: &M,
    interventions: &[Mixed],
    trained: usize,
    whole: &Results<B>,
) -> Result<bool, TestCaseError> {
    let batch = raw.batch;
    let all: Vec<usize> = (0..batch).collect();
    let (first, rest) = all.split_at(1);
    let sites = sites(model);
    // Unmasked scores used as weights attend to padding, of which parts have less.
    let lengths = |rows: &Vec<Vec<u32>>| rows.iter().map(Vec::len).collect::<BTreeSet<usize>>();
    let is_ragged = raw.inputs.iter().any(|rows| lengths(rows).len() > 1);
    let mut edits = raw.worlds.iter().flat_map(|(_, edits)| edits);
    let has_patterns = edits.any(|edit| sites[edit.site % sites.len()].is_attention_pattern());
    if rest.is_empty() || is_ragged && has_patterns {
        return Ok(false);
    }
    let frozen = [rest, first].map(|examples| {
        let part = plan.examples(examples).expect("they are there");
        part.freeze(
            model,
            interventions,
            |it| it == trained,
            &RunOptions::default(),
        )
    });
    let [Ok(rest), Ok(first)] = frozen else {
        // Whole activations of examples of different lengths do not match.
        return Ok(false);
    };
    let joined = match Plan::join(&[rest, first]) {
        Err(PlanError::Different { .. }) => return Ok(false),
        joined => joined.expect("parts of one plan"),
    };
    let order: Vec<usize> = (0..batch).map(|it| (it + batch - 1) % batch).collect();
    let again = joined.examples(&order).expect("they are there");
    let results = again.run(model, interventions).expect("valid");
    let site = sites[raw.read_site % sites.len()];
    let has_keys = model.site(site).map(|it| it.width) == Some(SiteWidth::KeyPositions);
    for (read, (found, whole)) in results.iter().zip(whole.iter()).enumerate() {
        // Two reads of each world: logits, and an activation, which may be of keys at padding.
        if read % 2 == 1 && has_keys {
            continue;
        }
        let input = &raw.inputs[raw.worlds[read / 2].0 % raw.inputs.len()];
        let ([_, pos, _], scale) = (found.dims(), magnitude(whole));
        let [_, whole_pos, features] = whole.dims();
        prop_assert_eq!(pos, whole_pos);
        let is_real = |at: usize| raw.read_last || input[at / pos].len() > at % pos;
        let (found, whole) = (values(found.clone()), values(whole.clone()));
        for (place, (a, b)) in found.iter().zip(&whole).enumerate() {
            let real = is_real(place / features);
            prop_assert!(
                !real || (a - b).abs() <= 1e-5 * scale,
                "joined: {a}, not {b}"
            );
        }
    }
    Ok(true)
}
