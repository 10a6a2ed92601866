//! Ablations: identities, sweeps and naive runs as oracles.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::engine::{
    Edit, Indices, LogitPositions, Operand, Plan, PlanError, RunOptions, Units,
};
use burn_align::interventions::{BuiltinIntervention, FillIntervention, VanillaIntervention};
use burn_align::methods::{
    Ablation, AblationError, Grid, SweepGrid, ablate, mean_activations, probability,
    resample_donors, sweep,
};
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, TokenBatch};

use crate::support::{load, max_difference, message, tokens, values};

on_every_backend!(
    the_mean_of_the_base_alone_changes_nothing,
    means_are_over_the_examples_of_all_batches,
    means_of_attention_are_over_prompts_of_one_length,
    every_place_is_ablated_alone,
    resampling_is_a_sweep_with_the_donors_as_source,
    donors_are_asked_for_their_own_units,
    what_cannot_be_ablated_is_refused,
);

const TOKEN: u32 = 5;

fn base() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1], &[5, 9, 2, 6], &[7, 7, 30, 8]])
}

fn dataset() -> [TokenBatch; 2] {
    [
        tokens(&[&[11, 2, 0, 40]]),
        tokens(&[&[1, 2, 3, 4], &[8, 6, 4, 2]]),
    ]
}

fn metric<B: Backend>(logits: Tensor<B, 2>) -> Tensor<B, 1> {
    probability(logits, TOKEN)
}

fn positions() -> SweepGrid {
    let tokens: Vec<String> = (0..4).map(|position| position.to_string()).collect();
    SweepGrid::layers_and_positions(Component::BlockOutput, 2, &tokens)
}

fn place(layer: usize, position: usize) -> (Site, Units) {
    let site = Site::Block(layer, Component::BlockOutput);
    (site, Units::position(position))
}

fn ablated<B: Backend>(
    model: &Decoder<B>,
    base: &TokenBatch,
    grid: &SweepGrid,
    ablation: Ablation<'_>,
) -> Result<Grid, AblationError> {
    ablate(model, base, grid, &ablation, metric, &RunOptions::default())
}

fn assert_close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() <= 1e-5,
        "expected {expected}, found {found}"
    );
}

fn assert_same(found: &Grid, expected: &Grid) {
    assert_eq!(
        (&found.rows, &found.columns),
        (&expected.rows, &expected.columns)
    );
    let cells = found.values.concat().into_iter();
    for (found, expected) in cells.zip(expected.values.concat()) {
        assert_close(found, expected);
    }
}

/// The metric of a world, computed naively.
fn naive<B: Backend>(
    model: &Decoder<B>,
    base: &TokenBatch,
    edit: impl FnOnce(&mut Plan<B>) -> Option<Edit>,
) -> f64 {
    let mut plan = Plan::new();
    let input = plan.tokens(base);
    let edit = edit(&mut plan);
    let world = plan.world(input, edit);
    let logits = plan.read_logits(world, LogitPositions::Last);
    let interventions = [
        BuiltinIntervention::from(FillIntervention::ZERO),
        BuiltinIntervention::from(VanillaIntervention),
    ];
    let results = plan.run_naively(model, &interventions).expect("valid");
    f64::from(values(metric(results.get(logits).squeeze_dim(1)).mean())[0])
}

const ZERO: usize = 0;
const SWAP: usize = 1;

fn the_mean_of_the_base_alone_changes_nothing<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let base = tokens(&[&[3, 1, 4, 1]]);
    let alone = [base.clone()];
    let untouched = naive(&model, &base, |_| None);
    let grid = ablated(&model, &base, &positions(), Ablation::Mean(&alone)).expect("valid");
    for value in grid.values.concat() {
        assert_close(value, untouched);
    }
    // The mean of other prompts does change something.
    let grid = ablated(&model, &base, &positions(), Ablation::Mean(&dataset())).expect("valid");
    assert!(
        (grid.values[0][0] - untouched).abs() > 1e-4,
        "{untouched}: {grid:?}"
    );
}

/// An activation of each example, run separately and averaged here.
fn mean_of_lone_runs<B: Backend>(
    model: &Decoder<B>,
    examples: &[&[u32]],
    site: Site,
    units: &Units,
) -> TensorData {
    let mut sum: Vec<f64> = Vec::new();
    let mut shape = [0; 3];
    for example in examples {
        let mut plan = Plan::new();
        let input = plan.tokens(&tokens(&[example]));
        let world = plan.world(input, []);
        let read = plan.read(world, site, units.clone());
        let results = plan.run_naively(model, &[VanillaIntervention; 0]);
        let activation = results.expect("valid").get(read);
        shape = activation.dims();
        let activation = values(activation);
        sum.resize(activation.len(), 0.0);
        for (sum, value) in sum.iter_mut().zip(activation) {
            *sum += f64::from(value);
        }
    }
    let count = examples.len() as f64;
    let mean: Vec<f32> = sum.iter().map(|sum| (sum / count) as f32).collect();
    TensorData::new(mean, shape)
}

fn means_are_over_the_examples_of_all_batches<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    let options = RunOptions::default();
    let examples: [&[u32]; 4] = [&[3, 1, 4, 1, 5], &[9, 2], &[6, 5, 3], &[8, 9, 7]];
    // Of different sizes and lengths.
    let batches = [tokens(&examples[..1]), tokens(&examples[1..])];
    let two = Units::positions(Indices::Same(vec![1, 0]));
    for (site, units) in [
        (Site::Embedding, Units::position(1)),
        (Site::Block(1, Component::MlpActivation), two.clone()),
        (Site::Block(0, Component::ValueOutput), two.of_head(1)),
        (Site::FinalNorm, Units::position(0)),
    ] {
        let mean = mean_activations(&model, &batches, site, &units, &options).expect("valid");
        let expected = mean_of_lone_runs(&model, &examples, site, &units);
        let difference = max_difference(mean, &expected);
        assert!(difference <= 1e-5, "{site}: {difference}");
    }
    // All positions, of prompts of one length.
    let (site, dataset) = (Site::Block(1, Component::BlockInput), dataset());
    let mean = mean_activations(&model, &dataset, site, &Units::ALL, &options).expect("valid");
    let examples: Vec<&[u32]> = dataset
        .iter()
        .flat_map(|batch| batch.ids().iter().map(Vec::as_slice))
        .collect();
    let expected = mean_of_lone_runs(&model, &examples, site, &Units::ALL);
    let difference = max_difference(mean, &expected);
    assert!(difference <= 1e-5, "{difference}");
}

fn means_of_attention_are_over_prompts_of_one_length<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let weights = Site::Block(1, Component::AttentionWeights);
    let mean = |inputs: &[TokenBatch]| {
        let units = Units::position(1);
        mean_activations(&model, inputs, weights, &units, &RunOptions::default())
    };
    let even = mean(&dataset()).expect("valid");
    let [_one, unit, d_site] = even.dims();
    assert_eq!((unit, d_site), (1, 4 * model.dims().heads));
    // The sums of the weights of each head.
    let sums = even.reshape([model.dims().heads, 4]).sum_dim(1);
    for sum in values(sums) {
        assert_close(f64::from(sum), 1.0);
    }
    let [four, _] = dataset();
    let error = mean(&[four, tokens(&[&[1, 2], &[1, 2, 3]])]).expect_err("three keys");
    let expected = AblationError::Lengths {
        site: weights,
        batch: 1,
        example: 1,
        expected: 4,
        found: 3,
    };
    assert_eq!(error, expected);
}

fn every_place_is_ablated_alone<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let (base, dataset) = (base(), dataset());
        let donors = resample_donors(base.batch(), 3).expect("three examples");
        let source = base.select(&donors).expect("they are there");
        let [donor, _] = &dataset;
        let repeated = donor.select(&[0, 0, 0]).expect("it is there");
        let options = RunOptions::default();
        let heads = SweepGrid::layers_and_heads(
            Component::AttentionValueOutput,
            2,
            model.dims().heads,
            &Indices::Same(vec![1, 3]),
        );
        let head_place = |layer, head| {
            let site = Site::Block(layer, Component::AttentionValueOutput);
            let units = Units::positions(Indices::Same(vec![1, 3])).of_head(head);
            (site, units)
        };
        let place: &dyn Fn(usize, usize) -> (Site, Units) = &place;
        for (grid, place) in [(&positions(), place), (&heads, &head_place)] {
            for ablation in [
                Ablation::Zero,
                Ablation::Mean(&dataset),
                Ablation::Resample { seed: 3 },
                // There is only one candidate.
                Ablation::ResampleFrom {
                    donors: donor,
                    seed: 7,
                },
            ] {
                let whole = ablated(&model, &base, grid, ablation).expect("valid");
                let within = options.clone().with_max_rows(6);
                let parts = ablate(&model, &base, grid, &ablation, metric, &within);
                assert_same(&parts.expect("valid"), &whole);
                for (row, values) in whole.values.iter().enumerate() {
                    for (column, found) in values.iter().enumerate() {
                        let (site, units) = place(row, column);
                        let expected = naive(&model, &base, |plan| {
                            Some(match ablation {
                                Ablation::Zero => Edit::new(site, units, ZERO, Operand::None),
                                Ablation::Mean(inputs) => {
                                    let mean =
                                        mean_activations(&model, inputs, site, &units, &options);
                                    let mean = plan.constant(mean.expect("valid"));
                                    Edit::new(site, units, SWAP, Operand::Constant(mean))
                                }
                                Ablation::Resample { .. } => {
                                    let source = plan.tokens(&source);
                                    let source = plan.world(source, []);
                                    Edit::from_world(source, site, units, SWAP)
                                }
                                Ablation::ResampleFrom { .. } => {
                                    let source = plan.tokens(&repeated);
                                    let source = plan.world(source, []);
                                    Edit::from_world(source, site, units, SWAP)
                                }
                            })
                        });
                        assert_close(*found, expected);
                    }
                }
            }
        }
    }
}

fn resampling_is_a_sweep_with_the_donors_as_source<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let (base, grid) = (base(), positions());
    let swept = |source: &TokenBatch| {
        let (prompts, options) = ([&base, source], RunOptions::default());
        let swept = sweep(
            &model,
            &VanillaIntervention,
            prompts,
            &grid,
            metric,
            &options,
        );
        swept.expect("valid")
    };
    let donors = resample_donors(3, 1).expect("three examples");
    let source = base.select(&donors).expect("they are there");
    let within = ablated(&model, &base, &grid, Ablation::Resample { seed: 1 }).expect("valid");
    assert_same(&within, &swept(&source));
    // Drawn from another dataset: its two prompts for three examples, none of them three times.
    let [_, donors] = &dataset();
    let drawn = |seed| {
        let ablation = Ablation::ResampleFrom { donors, seed };
        ablated(&model, &base, &grid, ablation).expect("valid")
    };
    assert_eq!(drawn(2), drawn(2), "the draw is seeded");
    let possible: Vec<Grid> = (1..7)
        .map(|draw| [draw & 1, draw >> 1 & 1, draw >> 2])
        .map(|draw| swept(&donors.select(&draw).expect("they are there")))
        .collect();
    for seed in 0..8 {
        let drawn = drawn(seed).values.concat();
        let is_one = possible.iter().any(|grid| {
            let cells = grid.values.concat();
            drawn.iter().zip(cells).all(|(a, b)| (a - b).abs() <= 1e-5)
        });
        assert!(is_one, "{drawn:?}");
    }
}

fn donors_are_asked_for_their_own_units<B: Backend>(device: &B::Device) {
    let model = load::<B>("llama_gqa", device);
    // The last token of each prompt, which is past the end of other prompts.
    let base = tokens(&[&[3, 1, 4, 1], &[5, 9], &[7, 7, 30]]);
    let last = vec![vec![3], vec![1], vec![2]];
    let site = Site::Block(0, Component::QueryOutput);
    let heads = vec![vec![0], vec![1], vec![2]];
    let units = Units {
        heads: Indices::Each(heads.clone()),
        positions: Indices::Each(last.clone()),
    };
    let grid = SweepGrid::new(vec!["0".into()], vec!["last".into()], |_, _| {
        (site, units.clone())
    });
    let found = ablated(&model, &base, &grid, Ablation::Resample { seed: 0 }).expect("valid");
    let donors = resample_donors(3, 0).expect("three examples");
    let of_donors = |each: &[Vec<usize>]| {
        Indices::Each(donors.iter().map(|donor| each[*donor].clone()).collect())
    };
    let expected = naive(&model, &base, |plan| {
        let source = plan.tokens(&base.select(&donors).expect("they are there"));
        let taken = Operand::Activation {
            world: plan.world(source, []),
            site,
            units: Units {
                heads: of_donors(&heads),
                positions: of_donors(&last),
            },
        };
        Some(Edit::new(site, units.clone(), SWAP, taken))
    });
    assert_close(found.values[0][0], expected);
}

fn what_cannot_be_ablated_is_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let refused = |base: &TokenBatch, grid: &SweepGrid, ablation: Ablation<'_>| {
        ablated(&model, base, grid, ablation).expect_err("wrong")
    };
    let (one, grid) = (tokens(&[&[3, 1, 4, 1]]), positions());
    let error = refused(&one, &grid, Ablation::Resample { seed: 0 });
    assert_eq!(error, AblationError::NoDonor { found: 1 });
    let error = refused(&one, &grid, Ablation::Mean(&[]));
    assert_eq!(error, AblationError::EmptyDataset);

    // A batch of the dataset that is too short.
    let [good, _] = dataset();
    let short = [good.clone(), tokens(&[&[1, 2, 3, 4], &[1, 2, 3]])];
    let error = refused(&one, &grid, Ablation::Mean(&short));
    let said = message(&error);
    assert!(
        matches!(error, AblationError::Dataset { batch: 1, .. }),
        "{error:?}"
    );
    assert!(said.starts_with("batch 1 of the dataset: "), "{said}");
    assert!(said.contains("example 1 has 3 tokens"), "{said}");

    // All positions, but not as many as the base has.
    let site = Site::Block(1, Component::MlpOutput);
    let whole = SweepGrid::new(vec!["1".into()], vec!["all".into()], |_, _| {
        (site, Units::ALL)
    });
    let error = refused(
        &one,
        &whole,
        Ablation::Mean(&[good.clone(), tokens(&[&[1]])]),
    );
    let expected = AblationError::Lengths {
        site,
        batch: 1,
        example: 0,
        expected: 4,
        found: 1,
    };
    assert_eq!(error, expected);
    let padded = [tokens(&[&[1, 2, 3, 4], &[1, 2]])];
    let mean = mean_activations(&model, &padded, site, &Units::ALL, &RunOptions::default());
    let error = mean.expect_err("padding");
    assert!(
        matches!(error, AblationError::Lengths { example: 1, .. }),
        "{error:?}"
    );

    // Places that the base does not have, whatever replaces them.
    let ragged = tokens(&[&[3, 1], &[1, 2, 3, 4]]);
    let [_, donors] = &dataset();
    for ablation in [
        Ablation::Zero,
        Ablation::Mean(std::slice::from_ref(&good)),
        Ablation::Resample { seed: 0 },
        Ablation::ResampleFrom { donors, seed: 0 },
    ] {
        let error = refused(&ragged, &grid, ablation);
        let plan = matches!(
            error,
            AblationError::Plan(PlanError::PositionOutOfRange { .. })
        );
        assert!(plan, "{error:?}");
        let nowhere = SweepGrid::new(vec!["9".into()], vec!["0".into()], |_, _| place(9, 0));
        let error = refused(&ragged, &nowhere, ablation);
        let plan = matches!(error, AblationError::Plan(PlanError::NoSuchSite { .. }));
        assert!(plan, "{error:?}");
        // Units for another number of examples.
        let three = Units::positions(Indices::Each(vec![vec![0]; 3]));
        let grid = SweepGrid::new(vec!["1".into()], vec!["0".into()], |_, _| {
            (site, three.clone())
        });
        let error = refused(&ragged, &grid, ablation);
        let plan = matches!(error, AblationError::Plan(PlanError::WrongBatch { .. }));
        assert!(plan, "{error:?}");
    }
}

#[test]
fn donors_are_another_example_each() {
    const BATCH: usize = 5;
    const SEEDS: u64 = 4000;
    let mut counts = [[0; BATCH]; BATCH];
    for seed in 0..SEEDS {
        let donors = resample_donors(BATCH, seed).expect("five examples");
        assert_eq!(resample_donors(BATCH, seed).expect("the same"), donors);
        let mut sorted = donors.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4], "each example is taken once");
        for (example, donor) in donors.into_iter().enumerate() {
            counts[example][donor] += 1;
        }
    }
    // 1000 of each other example, within five standard deviations.
    for (example, counts) in counts.iter().enumerate() {
        for (donor, count) in counts.iter().enumerate() {
            match example == donor {
                true => assert_eq!(*count, 0, "no example is its own donor"),
                false => assert!((860..1140).contains(count), "{example} {donor}: {count}"),
            }
        }
    }
    assert_eq!(resample_donors(2, 9), Ok(vec![1, 0]));
    for found in [0, 1] {
        assert_eq!(
            resample_donors(found, 0),
            Err(AblationError::NoDonor { found })
        );
    }
}
