//! Alignment maps, with each cell run alone as the oracle.

use std::cell::Cell;

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Locations, UnitLocations,
};
use burn_align::interventions::{
    Orthonormal, OrthonormalMap, RotatedSpaceIntervention, TokenGrouping,
};
use burn_align::methods::{
    AlignmentData, AlignmentEvent, AlignmentGrid, AlignmentMap, AlignmentMapError, alignment_map,
    alignment_map_with,
};
use burn_align::training::{
    CheckpointInterval, Checkpoints, Controlled, InterchangeData, TrainingConfig, TrainingError,
    TrainingEvent, evaluate, evaluate_with_controls, losses, train,
};
use burn_align_models::{Component, Decoder, FromPretrained, LoadOptions, TokenBatch};

use crate::support::{checkpoints, message};

on_every_backend!(
    a_map_finds_the_place_and_is_one_cell_at_a_time,
    interventions_of_any_type_are_mapped,
    ranks_share_what_is_computed_and_are_one_cell_at_a_time,
);

fn load<B: Backend>(device: &B::Device) -> Decoder<B> {
    let folder = checkpoints()["gpt2_plain"].clone();
    Decoder::from_pretrained(folder, &LoadOptions::default(), device)
        .expect("a fixture")
        .model
}

fn residual() -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(0, Component::BlockOutput)
}

/// Pairs of prompts of 4 to 6 tokens, and the model's prediction when the whole residual at
/// position 3 after layer 0 is swapped; only candidates where this changes the prediction. The
/// locations are meaningless.
fn data<B: Backend>(
    candidates: std::ops::Range<usize>,
    device: &B::Device,
) -> [InterchangeData<B>; 1] {
    let prompts = |salt: usize| {
        let ids = candidates.clone().map(|example| {
            let id = |pos: usize| ((example * 17 + pos * 29 + salt * (example + 3)) % 41) as u32;
            (0..4 + example % 3).map(id).collect()
        });
        TokenBatch::new(ids.collect()).expect("a batch")
    };
    let (base, source) = (prompts(5), prompts(11));
    let inputs = AlignableInputs::new(base.clone())
        .with_sources([source.clone()])
        .with_locations(3)
        .with_original_output();
    let model = AlignableModel::new(AlignableConfig::new([residual()]), load(device));
    let output = model.expect("it fits").forward_inputs(&inputs);
    let output = output.expect("valid");
    let said = |logits: Tensor<B, 3>| -> Vec<u32> {
        let best: Vec<u32> = logits.argmax(2).into_data().iter::<u32>().collect();
        let last = base.lengths().into_iter().enumerate();
        last.map(|(example, length)| best[example * base.pos() + length - 1])
            .collect()
    };
    let (swapped, clean) = (
        said(output.counterfactual),
        said(output.original.expect("asked for")),
    );
    let chosen: Vec<usize> = (0..swapped.len())
        .filter(|example| swapped[*example] != clean[*example])
        .collect();
    let select = |tokens: &TokenBatch| tokens.select(&chosen).expect("there are some");
    let inputs = AlignableInputs::new(select(&base))
        .with_sources([select(&source)])
        .with_locations(99);
    [InterchangeData::new(
        inputs,
        chosen.iter().map(|example| swapped[*example]),
    )]
}

/// The first, the fourth, or the last token.
fn locations<B: Backend>([_layer, column]: [usize; 2], data: &InterchangeData<B>) -> UnitLocations {
    let lengths = data.inputs.base.lengths();
    match column {
        0 => 0.into(),
        1 => 3.into(),
        _ => Indices::one_each(lengths.iter().map(|length| length - 1)).into(),
    }
}

fn grid() -> AlignmentGrid {
    let columns = ["first", "fourth", "last"].map(str::to_owned);
    AlignmentGrid::layers(
        &AlignableConfig::new([residual().with_low_rank(6)]),
        2,
        &columns,
    )
}

const EPOCHS: usize = 12;
const BATCH: usize = 32;

fn config() -> TrainingConfig {
    TrainingConfig::default()
        .with_epochs(EPOCHS)
        .with_batch_size(BATCH)
        .with_learning_rate(5e-2)
        .with_seed(4)
}

fn a_map_finds_the_place_and_is_one_cell_at_a_time<B: Backend>(device: &B::Device) {
    let model = load::<Autodiff<B>>(device);
    let (training, held_out) = (data::<B>(0..200, device), data::<B>(200..300, device));
    let (mut steps, mut places) = (0, Vec::new());
    let map = alignment_map(
        |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4),
        &grid(),
        locations,
        [&training, &held_out],
        &config(),
        losses::cross_entropy,
        |event| match event {
            AlignmentEvent::Training { event, .. } => {
                steps += usize::from(matches!(event, TrainingEvent::Step(_)));
            }
            AlignmentEvent::Cell {
                place,
                model,
                history,
                found,
            } => {
                places.push(place);
                assert_eq!(history.epochs.len(), EPOCHS);
                // The model is the one that was evaluated.
                let mut data = held_out.clone();
                data[0].inputs.locations = locations(place, &data[0]);
                assert_eq!(evaluate(model, &data, BATCH).expect("valid"), found.trained);
            }
        },
    )
    .expect("valid");
    assert_eq!(steps, 6 * EPOCHS * training[0].len().div_ceil(BATCH));
    let all: Vec<[usize; 2]> = (0..2).flat_map(|r| (0..3).map(move |c| [r, c])).collect();
    assert_eq!(places, all);

    let (row, column, best) = map.best().expect("cells");
    assert_eq!((row, column), (0, 1), "{map:?}");
    assert_eq!(best.whole_vector.accuracy, 1.0);
    assert_eq!(best.no_swap.accuracy, 0.0);
    assert!(best.trained.interval[0] > best.random_rotation.accuracy);
    let first = &map.cells[0][0];
    assert!(best.trained.interval[0] > first.trained.accuracy, "{map:?}");

    for [row, column] in all {
        let mut representation = residual().with_low_rank(6);
        representation.layer = row;
        let alone = AlignableConfig::new([representation]);
        let alone = AlignableModel::new_seeded(alone, model.clone(), 4).expect("it fits");
        let located = |data: &[InterchangeData<B>; 1]| {
            let mut data = data.clone();
            data[0].inputs.locations = locations([row, column], &data[0]);
            data
        };
        let loss = losses::cross_entropy;
        let (alone, _) = train(alone, &located(&training), &[], &config(), loss, |_| {})
            .expect("it can be trained");
        let alone = evaluate_with_controls(&alone.valid(), &located(&held_out), BATCH, 5);
        let (cell, alone) = (&map.cells[row][column], alone.expect("valid"));
        let controls =
            |it: &Controlled| [it.trained, it.random_rotation, it.whole_vector, it.no_swap];
        for (cell, alone) in controls(cell).into_iter().zip(controls(&alone)) {
            assert_eq!(cell.accuracy, alone.accuracy, "{row} {column}");
            // Some backends add up in another order each time.
            let [cell, alone] = [cell, alone].map(|it| it.kl_divergence.mean);
            assert!(
                (cell - alone).abs() <= 1e-4,
                "{row} {column}: {cell} {alone}"
            );
        }
    }

    let grid = map.grid(|cell| cell.trained.interval[0]);
    assert_eq!(grid.rows, ["0", "1"]);
    assert_eq!(grid.values[0][1], best.trained.interval[0]);
    let json = serde_json::to_string(&map).expect("plain data");
    let read: AlignmentMap = serde_json::from_str(&json).expect("as written");
    assert_eq!(read, map);
}

/// Interventions of any type are mapped, and evaluated with the same controls.
fn interventions_of_any_type_are_mapped<B: Backend>(device: &B::Device) {
    type Rotated<B> = RotatedSpaceIntervention<Autodiff<B>>;
    let model = load::<Autodiff<B>>(device);
    let (training, held_out) = (data::<B>(0..40, device), data::<B>(40..60, device));
    let grid = AlignmentGrid {
        rows: grid().rows[..1].to_vec(),
        columns: grid().columns[..2].to_vec(),
    };
    let config = config().with_epochs(1);
    let own = |aligned| {
        let map = OrthonormalMap::Retraction;
        let rotation = Orthonormal::random([16, 6], map, 4, device).expect("a shape");
        let rotated = Rotated::<B>::new(rotation, TokenGrouping::Joint(1));
        AlignableModel::with_interventions(aligned, model.clone(), vec![rotated])
    };
    let builtin = |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4);
    let (data, loss) = ([&training[..], &held_out[..]], losses::cross_entropy);
    let found = alignment_map(own, &grid, locations, data, &config, loss, |_| {});
    let expected = alignment_map(builtin, &grid, locations, data, &config, loss, |_| {});
    let [found, expected] = [found, expected].map(|map| map.expect("valid"));
    let controls = |it: &Controlled| {
        [it.trained, it.random_rotation, it.whole_vector, it.no_swap]
            .map(|it| it.kl_divergence.mean)
    };
    let cells = found.cells.iter().flatten();
    for (cell, other) in cells.zip(expected.cells.iter().flatten()) {
        for (found, expected) in controls(cell).into_iter().zip(controls(other)) {
            assert!((found - expected).abs() <= 1e-4, "{found} {expected}");
        }
        // The controls differ from what is evaluated.
        let [trained, random, whole, none] = controls(cell);
        assert!(
            none == 0.0 && trained != random && random < whole,
            "{cell:?}"
        );
    }
}

#[test]
fn what_cannot_be_mapped() {
    type B = Flex;
    let device = Default::default();
    let model = load::<Autodiff<B>>(&device);
    let right = data::<B>(0..40, &device);
    let attempt = |grid: &AlignmentGrid, column_at: [usize; 3], data: [&[_]; 2]| {
        alignment_map(
            |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4),
            grid,
            |[_row, column], _data| UnitLocations::from(column_at[column]),
            data,
            &config(),
            losses::cross_entropy,
            |_| panic!("something was trained"),
        )
        .expect_err("refused")
    };

    // The last place is wrong, which is detected before anything is trained.
    let error = attempt(&grid(), [0, 3, 4], [&right, &right]);
    let AlignmentMapError::Cell { row, column, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((row.as_str(), column.as_str()), ("0", "last"));
    let mut deep = grid();
    deep.rows[1].1.representations[0].layer = 7;
    let error = attempt(&deep, [0; 3], [&right, &right]);
    let AlignmentMapError::Cell { row, cause, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(row, "1");
    assert!(matches!(**cause, TrainingError::Align(_)), "{error:?}");
    let mut unlabelled = right.clone();
    unlabelled[0].labels[1] = vec![41];
    let error = attempt(&grid(), [0; 3], [&right, &unlabelled]);
    assert_eq!(
        message(&error),
        "row 0, column first: labels: example 1: expected a class below 41, found 41"
    );
    let mut untrained = grid();
    untrained.rows[1].1.representations[0].intervention = InterventionType::Vanilla;
    let error = attempt(&untrained, [0; 3], [&right, &right]);
    assert_eq!(
        message(&error),
        "row 1, column first: expected at least one intervention with parameters, found none"
    );
    for (grid, data, expected) in [
        (
            AlignmentGrid::layers(&AlignableConfig::new([residual()]), 0, &grid().columns),
            [&right[..], &right[..]],
            "expected at least one row, found none",
        ),
        (
            AlignmentGrid::layers(&AlignableConfig::new([residual()]), 2, &[]),
            [&right[..], &right[..]],
            "expected at least one column, found none",
        ),
        (
            grid(),
            [&[], &right[..]],
            "expected at least one example to train on, found none",
        ),
        (
            grid(),
            [&right[..], &[]],
            "expected at least one held-out example, found none",
        ),
    ] {
        assert_eq!(message(&attempt(&grid, [0; 3], data)), expected);
    }
}

/// The numbers of a cell, with those of its controls.
fn numbers(cell: &Controlled) -> [[f64; 2]; 4] {
    let all = [
        cell.trained,
        cell.random_rotation,
        cell.whole_vector,
        cell.no_swap,
    ];
    all.map(|it| [it.accuracy, it.kl_divergence.mean])
}

#[track_caller]
fn assert_close(cell: &Controlled, other: &Controlled) {
    let pairs = numbers(cell).into_iter().zip(numbers(other));
    for ([accuracy, divergence], [of_other, divergence_of_other]) in pairs {
        assert_eq!(accuracy, of_other, "{cell:?} {other:?}");
        let difference = (divergence - divergence_of_other).abs();
        assert!(difference <= 1e-4, "{cell:?} {other:?}");
    }
}

/// Layers × ranks × positions, with an early stop: each cell is what training and evaluating it
/// alone gives, whatever fits the memory.
fn ranks_share_what_is_computed_and_are_one_cell_at_a_time<B: Backend>(device: &B::Device) {
    const RANKS: [usize; 2] = [6, 2];
    let model = load::<Autodiff<B>>(device);
    let [training, validation, held_out] =
        [0..60, 100..130, 200..230].map(|range| data::<B>(range, device));
    let columns = ["first", "fourth"].map(str::to_owned);
    let aligned = AlignableConfig::new([residual()]);
    let grid = AlignmentGrid::layers_and_ranks(&aligned, 2, &RANKS, &columns);
    let labels: Vec<&str> = grid.rows.iter().map(|(label, _)| &label[..]).collect();
    assert_eq!(labels, ["0, rank 6", "1, rank 6", "0, rank 2", "1, rank 2"]);
    let config = config().with_epochs(5).with_patience(1);
    let own = |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4);
    let all = || AlignmentData::new(&training, &held_out).with_validation(&validation);
    let run = |config: &TrainingConfig| {
        let (mut epochs, mut places) = (Vec::new(), Vec::new());
        let loss = losses::cross_entropy;
        let map = alignment_map_with(own, &grid, locations, all(), config, loss, |event| {
            if let AlignmentEvent::Cell { place, history, .. } = event {
                epochs.push((place, history.epochs.len()));
                places.push(place);
            }
        });
        epochs.sort();
        (map.expect("valid"), epochs, places)
    };
    let (map, epochs, places) = run(&config);
    // Cells that differ in their rank alone follow one another.
    assert_eq!(places[..4], [[0, 0], [2, 0], [0, 1], [2, 1]]);
    assert!(epochs.iter().any(|(_, epochs)| *epochs < 5), "{epochs:?}");

    for ([row, column], epochs) in &epochs {
        let mut representation = residual().with_low_rank(RANKS[row / 2]);
        representation.layer = row % 2;
        let alone = own(AlignableConfig::new([representation])).expect("it fits");
        let located = |data: &[InterchangeData<B>; 1]| {
            let mut data = data.clone();
            data[0].inputs.locations = locations([*row, *column], &data[0]);
            data
        };
        let [own_training, own_validation] = [&training, &validation].map(located);
        let loss = losses::cross_entropy;
        let (alone, history) =
            train(alone, &own_training, &own_validation, &config, loss, |_| {}).expect("trained");
        assert_eq!(history.epochs.len(), *epochs);
        let alone = evaluate_with_controls(&alone.valid(), &located(&held_out), BATCH, 5);
        assert_close(&map.cells[*row][*column], &alone.expect("valid"));
    }
    // Nothing kept, and one group of cells after another.
    for budget in [0, 20_000] {
        let (other, _, _) = run(&config.clone().with_memory_budget(budget));
        for (cell, other) in map.cells.iter().flatten().zip(other.cells.iter().flatten()) {
            assert_close(cell, other);
        }
    }
    let rank_2 = map.part(2..4);
    assert_eq!(rank_2.rows, ["0, rank 2", "1, rank 2"]);
    assert_eq!(rank_2.cells[..], map.cells[2..]);
    assert!(map.part(3..9).rows.is_empty());
}

/// What is prepared for all cells, and the validation data of the cell that is being trained, share
/// the memory budget.
#[test]
fn one_budget_is_for_all_that_is_kept() {
    type B = Flex;
    let device = Default::default();
    let model = load::<Autodiff<B>>(&device);
    let [training, validation, held_out] =
        [0..300, 300..600, 600..620].map(|range| data::<B>(range, &device));
    let config = config().with_epochs(1).with_batch_size(4);
    let config = config.with_memory_budget(16_000);
    let aligned = AlignableConfig::new([residual().with_low_rank(6)]);
    let own = |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4);
    let loss = losses::cross_entropy;

    // A cell trained alone keeps its training data first.
    let located = |data: &[InterchangeData<B>; 1]| data.clone().map(|it| it.with_locations(3));
    let [of_training, of_validation] = [&training, &validation].map(located);
    let alone = own(aligned.clone()).expect("it fits");
    let mut kept = 0;
    let observe = |event: TrainingEvent<'_>| {
        if let TrainingEvent::Prepared { examples, .. } = event {
            kept = examples;
        }
    };
    train(alone, &of_training, &of_validation, &config, loss, observe).expect("trained");
    assert!(kept > 0 && kept < training[0].len(), "{kept} examples fit");

    let grid = AlignmentGrid::layers(&aligned, 1, &["fourth".to_owned()]);
    let data = AlignmentData::new(&training, &held_out).with_validation(&validation);
    let at = |_place: [usize; 2], _data: &InterchangeData<B>| UnitLocations::from(3);
    let mut beside = 0;
    alignment_map_with(own, &grid, at, data, &config, loss, |event| {
        if let AlignmentEvent::Training { event, .. } = event
            && let TrainingEvent::Prepared { examples, .. } = event
        {
            beside = examples;
        }
    })
    .expect("valid");
    assert!(
        beside > 0 && beside < kept,
        "{beside} of {kept} examples are for validation"
    );
}

#[test]
fn columns_that_begin_at_different_layers_are_trained_together() {
    type B = Flex;
    let device = Default::default();
    let model = load::<Autodiff<B>>(&device);
    let (training, held_out) = (data::<B>(0..40, &device), data::<B>(40..60, &device));
    let layers = [0, 1].map(|layer| {
        let mut representation = residual().with_low_rank(4);
        representation.layer = layer;
        representation
    });
    let aligned = AlignableConfig::new(layers);
    let columns = ["both", "first", "second", "none"];
    let at = |column: usize| match column {
        0 => Locations::each([Some(3), Some(3)]),
        1 => Locations::each([Some(3), None]),
        2 => Locations::each([None, Some(3)]),
        _ => Locations::each([None::<usize>, None]),
    };
    let grid = AlignmentGrid {
        rows: vec![("both layers".to_owned(), aligned.clone())],
        columns: columns.map(str::to_owned).to_vec(),
    };
    let new = |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4);
    // With everything kept, and with nothing.
    for budget in [1 << 30, 0] {
        let config = config().with_epochs(2).with_memory_budget(budget);
        let map = alignment_map(
            new,
            &grid,
            |[_row, column], _data| UnitLocations::from(at(column)),
            [&training, &held_out],
            &config,
            losses::cross_entropy,
            |_| {},
        );
        let map = map.expect("valid");
        for column in 0..columns.len() {
            let located = |data: &[InterchangeData<B>; 1]| {
                let mut data = data.clone();
                data[0].inputs.locations = at(column).into();
                data
            };
            let (training, held_out) = (located(&training), located(&held_out));
            let alone = new(aligned.clone()).expect("it fits");
            let loss = losses::cross_entropy;
            let alone = train(alone, &training, &[], &config, loss, |_| {});
            let (alone, _history) = alone.expect("it can be trained");
            let alone = evaluate_with_controls(&alone.valid(), &held_out, BATCH, 5);
            assert_close(&map.cells[0][column], &alone.expect("valid"));
        }
    }
}

#[test]
fn a_cell_that_fails_leaves_those_in_lockstep_alone() {
    type B = Flex;
    let device = Default::default();
    let model = load::<Autodiff<B>>(&device);
    let (training, held_out) = (data::<B>(0..40, &device), data::<B>(40..60, &device));
    let (losses_taken, mut cells) = (Cell::new(0), Vec::new());
    let error = alignment_map(
        |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4),
        &grid(),
        locations,
        [&training, &held_out],
        &config().with_epochs(2),
        |logits, targets| {
            // In the first step, the second cell's.
            losses_taken.set(losses_taken.get() + 1);
            let factor = if losses_taken.get() == 2 {
                f64::NAN
            } else {
                1.0
            };
            losses::cross_entropy(logits, targets) * factor
        },
        |event| {
            if let AlignmentEvent::Cell { place, history, .. } = event {
                cells.push((place, history.epochs.len()));
            }
        },
    )
    .expect_err("its loss is not a number");
    let AlignmentMapError::Cell { row, column, cause } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((row.as_str(), column.as_str()), ("0", "fourth"));
    let cause = &**cause;
    assert!(
        matches!(cause, TrainingError::Diverged { step: 0, .. }),
        "{cause:?}"
    );
    assert_eq!(cells, [([0, 0], 2), ([0, 2], 2)]);
}

#[test]
fn an_interrupted_map_is_resumed() {
    type B = Flex;
    let device = Default::default();
    let model = load::<Autodiff<B>>(&device);
    let (training, held_out) = (data::<B>(0..40, &device), data::<B>(40..60, &device));
    let grid = AlignmentGrid {
        columns: grid().columns[..2].to_vec(),
        ..grid()
    };
    let plain = config().with_epochs(2);
    let run = |config: &TrainingConfig, cut: Option<usize>| {
        let (mut steps, mut cells) = (0, Vec::new());
        let map = alignment_map(
            |aligned| AlignableModel::new_seeded(aligned, model.clone(), 4),
            &grid,
            locations,
            [&training, &held_out],
            config,
            losses::cross_entropy,
            |event| match event {
                AlignmentEvent::Training { event, .. } => {
                    steps += usize::from(matches!(event, TrainingEvent::Step(_)));
                    assert_ne!(Some(steps), cut, "interrupted");
                }
                AlignmentEvent::Cell { place, history, .. } => {
                    cells.push((place, history.clone()));
                }
            },
        );
        map.map(|map| (map, steps, cells))
    };
    let (whole, steps, cells) = run(&plain, None).expect("valid");
    assert_eq!(cells.len(), 4);
    let folder = tempfile::tempdir().expect("a folder");
    let every = CheckpointInterval::Steps(1);
    let saved = plain
        .clone()
        .with_checkpoints(Checkpoints::new(folder.path()).with_every(every));
    // In the second layer, after the first step of its two cells.
    let cut = Some(steps / 2 + 3);
    let cut_off = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&saved, cut)));
    assert!(cut_off.is_err());
    let (found, left, of_cells) = run(&saved, None).expect("valid");
    assert_eq!(left, steps / 2 - 2);
    assert_eq!((&found, &of_cells), (&whole, &cells));
    // A map that is done is read.
    let (again, left, of_cells) = run(&saved, None).expect("valid");
    assert_eq!(left, 0);
    assert_eq!((&again, &of_cells), (&whole, &cells));
    // Its cells belong to these settings.
    let error = run(&saved.with_seed(5), None).expect_err("refused");
    let AlignmentMapError::Cell { row, column, cause } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((&row[..], &column[..]), ("0", "first"));
    assert!(
        matches!(**cause, TrainingError::OtherRun { .. }),
        "{error:?}"
    );
}
