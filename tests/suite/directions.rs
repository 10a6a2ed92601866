//! Directions: planted ones are found, what is held out is held out, files read back. Control
//! vectors are those of llama.cpp's own writer (`make_control_vector.py`).

use std::fs;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_align::engine::{Indices, Plan, PlanError, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Activations, Direction, DirectionData, DirectionError, DirectionMethod, DirectionOptions,
    LoadResultError, PromptPositions, collect_activations, collect_activations_at, find_direction,
};
use burn_align::saved::{ControlVector, ControlVectorError};
use burn_align_models::{AlignableTransformer, Component, ModelDims, Site, TokenBatch};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{fixtures, load, message, tokens, values};

on_every_backend!(
    activations_are_those_of_a_plan,
    planted_directions_are_found,
    directions_of_a_model,
    prompts_that_do_not_fit_are_refused,
);

const SITE: Site = Site::Block(1, Component::BlockOutput);

fn prompts() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[7, 7], &[9, 2, 6]])
}

fn collected<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    site: Site,
    positions: &PromptPositions,
) -> Result<Activations, DirectionError> {
    collect_activations::<B, M>(model, &prompts(), site, positions, &RunOptions::default())
}

fn activations_are_those_of_a_plan<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let heads = Site::Block(0, Component::AttentionValueOutput);
        let sites = [Site::Embedding, heads, SITE];
        let mut plan = Plan::<B>::new();
        let input = plan.tokens(&prompts());
        let world = plan.world(input, []);
        let reads = sites.map(|site| plan.read(world, site, Units::ALL));
        let results = plan.run(&model, &[VanillaIntervention; 0]).expect("valid");

        for (positions, expected) in [
            (PromptPositions::Last, vec![(0, 4), (1, 1), (2, 2)]),
            (
                PromptPositions::From(1),
                vec![(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (2, 1), (2, 2)],
            ),
            (
                PromptPositions::At(Indices::each([[3], [0], [1]])),
                vec![(0, 3), (1, 0), (2, 1)],
            ),
            (
                PromptPositions::At(Indices::same([1, 0])),
                vec![(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)],
            ),
            (
                PromptPositions::At(Indices::All),
                (0..5)
                    .map(|pos| (0, pos))
                    .chain([(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
                    .collect(),
            ),
        ] {
            let options = RunOptions::default();
            let found = collect_activations_at(&model, &prompts(), &sites, &positions, &options);
            let found = found.expect("valid");
            assert_eq!(found.len(), sites.len());
            for (found, read) in found.iter().zip(reads) {
                let read = results.get(read); // [batch, pos, d_site]
                let [_batch, pos, width] = read.dims();
                let read = values(read);
                assert_eq!((found.count(), found.width()), (expected.len(), width));
                let prompts: Vec<usize> = expected.iter().map(|(example, _)| *example).collect();
                assert_eq!(found.prompts(), prompts);
                for (row, (example, position)) in found.rows().zip(&expected) {
                    let start = (example * pos + position) * width;
                    for (found, expected) in row.iter().zip(&read[start..start + width]) {
                        let error = (found - f64::from(*expected)).abs();
                        assert!(error <= 1e-5, "{name}, {positions}: {error}");
                    }
                }
            }
        }
    }
}

/// A normal number, nearly: the sum of twelve uniform ones.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

fn normals(count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..count).map(|_| normal(rng)).collect()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let a: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
    let b: f64 = b.iter().map(|b| b.powi(2)).sum();
    dot / (a * b).sqrt()
}

/// Pairs that share a topic and all have an offset, but for a step along a direction.
struct Planted {
    direction: Vec<f64>,
    positive: Vec<Vec<f64>>,
    negative: Vec<Vec<f64>>,
}

fn planted(width: usize, pairs: usize, step: f64, seed: u64) -> Planted {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let direction = normals(width, &mut rng);
    let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
    let direction: Vec<f64> = direction.iter().map(|x| x / length).collect();
    let offset: Vec<f64> = normals(width, &mut rng).iter().map(|x| 3.0 * x).collect();
    let (mut positive, mut negative) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let topic = normals(width, &mut rng);
        for (side, sign) in [(&mut positive, 0.5), (&mut negative, -0.5)] {
            let row = (0..width).map(|feature| {
                let noise = 0.7 * normal(&mut rng);
                offset[feature] + topic[feature] + noise + sign * step * direction[feature]
            });
            side.push(row.collect());
        }
    }
    Planted {
        direction,
        positive,
        negative,
    }
}

fn rows(rows: &[Vec<f64>]) -> Activations {
    Activations::from_rows(rows).expect("finite rows")
}

fn in_tensor<B: Backend>(rows: &[Vec<f64>], device: &B::Device) -> Activations {
    let shape = [rows.len(), rows[0].len()];
    let numbers: Vec<f32> = rows.concat().iter().map(|number| *number as f32).collect();
    let tensor = Tensor::<B, 2>::from_data(TensorData::new(numbers, shape), (device, DType::F32));
    Activations::from_tensor(tensor).expect("finite rows")
}

fn found(data: &DirectionData, method: DirectionMethod) -> Direction {
    find_direction(data, SITE, method, &DirectionOptions::default()).expect("a direction")
}

fn planted_directions_are_found<B: Backend>(device: &B::Device) {
    const PAIRS: usize = 400;
    let planted = planted(24, PAIRS, 6.0, 1);
    let [positive, negative] =
        [&planted.positive, &planted.negative].map(|rows| in_tensor::<B>(rows, device));
    let pairs = DirectionData::pairs(&positive, &negative).expect("pairs");
    let sets = DirectionData::sets(&positive, &negative).expect("sets");
    // The same as sets, with rows in another order.
    let mixed: Vec<Vec<f64>> = planted
        .negative
        .iter()
        .zip(&planted.positive)
        .flat_map(|(negative, positive)| [negative.clone(), positive.clone()])
        .collect();
    let labels: Vec<bool> = (0..2 * PAIRS).map(|row| row % 2 == 1).collect();
    let labelled = DirectionData::labelled(&in_tensor::<B>(&mixed, device), &labels);
    let labelled = labelled.expect("labels");

    let mut norms: Vec<f64> = positive.rows().chain(negative.rows()).map(length).collect();
    norms.sort_by(f64::total_cmp);
    let median = (norms[PAIRS - 1] + norms[PAIRS]) / 2.0;
    for (method, least) in [
        (DirectionMethod::MeanDifference, 0.99),
        (DirectionMethod::PrincipalComponent, 0.99),
        (DirectionMethod::Lat, 0.98),
        (DirectionMethod::Probe { l2: 100.0 }, 0.98),
    ] {
        for data in [&pairs, &sets, &labelled] {
            let found = found(data, method);
            let cosine = cosine(&found.vector, &planted.direction);
            assert!(cosine > least, "{method:?}: {cosine}");
            assert!(found.separation.auc > 0.99, "{:?}", found.separation);
            assert!(found.separation.accuracy > 0.95, "{:?}", found.separation);
            let held_out = PAIRS / 4;
            assert_eq!(found.separation.examples, [held_out; 2]);
            assert_eq!(found.control.examples, [held_out; 2]);
            assert_eq!(found.provenance.examples, [PAIRS - held_out; 2]);
            assert_eq!(found.provenance.pairs, data.is_paired());
            assert_eq!((found.site, found.method), (SITE, method));

            let vector: Vec<f64> = found.vector.iter().map(|x| f64::from(*x)).collect();
            assert!((length(&vector) / median - 1.0).abs() < 1e-5);
            assert!((found.norms.median_activation / median - 1.0).abs() < 1e-9);
            let unit: Vec<f64> = found.unit().iter().map(|x| f64::from(*x)).collect();
            assert!((length(&unit) - 1.0).abs() < 1e-6);
            let tensor = found.to_tensor::<B>(device);
            assert_eq!(values(tensor), found.vector);
        }
    }
    // The step of 6, and what is left of the noise.
    let unscaled = found(&pairs, DirectionMethod::MeanDifference)
        .norms
        .unscaled;
    assert!((unscaled - 6.0).abs() < 0.2, "{unscaled}");
    let random = found(&pairs, DirectionMethod::Random);
    assert!(cosine(&random.vector, &planted.direction) < 0.9);
    assert_ne!(random.separation, random.control, "another draw");
}

fn length(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn planted_pairs(planted: &Planted) -> DirectionData {
    let [positive, negative] = [&planted.positive, &planted.negative].map(|it| rows(it));
    DirectionData::pairs(&positive, &negative).expect("pairs")
}

/// Without a difference, a direction separates only what it was built from; with one, a random
/// direction separates little.
#[test]
fn what_is_held_out_does_not_contribute() {
    const SEEDS: u64 = 20;
    let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
    let separations = |step: f64, pairs: usize| -> [f64; 2] {
        let found = (0..SEEDS).map(|seed| {
            let data = planted_pairs(&planted(256, pairs, step, seed));
            let options = DirectionOptions::default().with_seed(seed);
            let method = DirectionMethod::MeanDifference;
            find_direction(&data, SITE, method, &options).expect("a direction")
        });
        let (found, control): (Vec<f64>, Vec<f64>) = found
            .map(|found| (found.separation.auc, found.control.auc))
            .unzip();
        [mean(&found), mean(&control)]
    };
    let [found, control] = separations(0.0, 60);
    assert!((found - 0.5).abs() < 0.12, "{found}");
    assert!((control - 0.5).abs() < 0.12, "{control}");
    let [found, control] = separations(6.0, 100);
    assert!(found > 0.97, "{found}");
    assert!((0.45..0.7).contains(&control), "{control}");
}

/// Rows of one prompt stay together: here they are all alike, and the prompts are not.
#[test]
fn prompts_are_held_out_as_a_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut all, mut labels, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in 0..24 {
        let row = normals(64, &mut rng);
        for _ in 0..10 {
            all.push(row.clone());
            labels.push(prompt % 2 == 0);
            prompts.push(prompt);
        }
    }
    let activations = rows(&all).with_prompts(prompts).expect("one each");
    let data = DirectionData::labelled(&activations, &labels).expect("labels");
    let mut sum = 0.0;
    for seed in 0..20 {
        let options = DirectionOptions::default().with_seed(seed);
        let found = find_direction(&data, SITE, DirectionMethod::PROBE, &options);
        let found = found.expect("a direction").separation;
        assert_eq!(found.examples, [30, 30]);
        sum += found.auc / 20.0;
    }
    assert!(sum < 0.8, "{sum}");
}

/// All pairs differ by 5 in the first feature, and by 1 or -1 in the second: without its mean, the
/// difference would be the second feature.
#[test]
fn principal_components_keep_what_pairs_share() {
    let pair = |index: usize| {
        let side = if index.is_multiple_of(2) { 1.0 } else { -1.0 };
        [vec![2.0, side, 7.0], vec![-3.0, 0.0, 7.0]]
    };
    let [positive, negative] = [0, 1].map(|side| {
        (0..16)
            .map(|index| pair(index)[side].clone())
            .collect::<Vec<_>>()
    });
    let data = DirectionData::pairs(&rows(&positive), &rows(&negative)).expect("pairs");
    let component = found(&data, DirectionMethod::PrincipalComponent);
    assert!(cosine(&component.vector, &[1.0, 0.0, 0.0]) > 0.99);
    assert!((component.norms.unscaled - 1.0).abs() < 1e-12);
    // The labels set the sign.
    let data = DirectionData::pairs(&rows(&negative), &rows(&positive)).expect("pairs");
    for method in [
        DirectionMethod::PrincipalComponent,
        DirectionMethod::MeanDifference,
        DirectionMethod::PROBE,
    ] {
        let found = found(&data, method);
        assert!(cosine(&found.vector, &[-1.0, 0.0, 0.0]) > 0.9, "{found:?}");
    }
}

/// Any numbers may stand for prompts: only which are the same matters, and their order.
#[test]
fn sets_take_prompts_of_any_number() {
    let planted = planted(16, 20, 2.0, 8);
    let sides = [&planted.positive, &planted.negative].map(|it| rows(it));
    let numbered = |number: &dyn Fn(usize) -> usize| {
        let [positive, negative] = sides.clone().map(|side| {
            let prompts = (0..20).map(number).collect();
            side.with_prompts(prompts).expect("one each")
        });
        DirectionData::sets(&positive, &negative).expect("sets")
    };
    let expected = DirectionData::sets(&sides[0], &sides[1]).expect("sets");
    assert_eq!(numbered(&|row| usize::MAX - 19 + row), expected);
    assert_eq!(numbered(&|row| 7 * row + 3), expected);
    let method = DirectionMethod::MeanDifference;
    let apart = found(&numbered(&|row| usize::MAX - 19 + row), method);
    assert_eq!(apart, found(&expected, method));
    assert_eq!(apart.separation.examples, [5, 5]);
    // Rows of one prompt are counted together.
    let pairs = numbered(&|row| usize::MAX - row / 2);
    assert_ne!(pairs, expected);
    assert_eq!(found(&pairs, method).separation.examples, [6, 6]);
}

#[test]
fn a_seed_gives_the_same_direction() {
    let data = planted_pairs(&planted(16, 40, 2.0, 8));
    let sets = {
        let planted = planted(16, 40, 2.0, 8);
        DirectionData::sets(&rows(&planted.positive), &rows(&planted.negative)).expect("sets")
    };
    for method in [
        DirectionMethod::MeanDifference,
        DirectionMethod::PrincipalComponent,
        DirectionMethod::Lat,
        DirectionMethod::PROBE,
        DirectionMethod::Random,
    ] {
        for data in [&data, &sets] {
            let with_seed = |seed| {
                let options = DirectionOptions::default().with_seed(seed);
                find_direction(data, SITE, method, &options).expect("a direction")
            };
            assert_eq!(with_seed(4), with_seed(4));
            assert_ne!(with_seed(4).vector, with_seed(5).vector, "{method:?}");
        }
    }
}

fn directions_of_a_model<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let batch = |salt: usize| {
        let prompts = (0..12).map(|example| {
            let id = |pos: usize| ((example * 17 + pos * 29 + salt) % 41) as u32;
            (0..4).map(id).collect()
        });
        TokenBatch::new(prompts.collect()).expect("a batch")
    };
    let sites: Vec<Site> = (0..2)
        .map(|layer| Site::Block(layer, Component::BlockOutput))
        .collect();
    let [positive, negative] = [1, 20].map(|salt| {
        let (positions, options) = (PromptPositions::Last, RunOptions::default());
        collect_activations_at(&model, &batch(salt), &sites, &positions, &options).expect("valid")
    });
    let options = DirectionOptions::default()
        .with_model("gpt2_plain")
        .with_positions(&PromptPositions::Last)
        .with_labels("first", "second");
    let mut found = Vec::new();
    for (site, (positive, negative)) in sites.iter().zip(positive.iter().zip(&negative)) {
        let data = DirectionData::pairs(positive, negative).expect("pairs");
        let method = DirectionMethod::MeanDifference;
        let direction = find_direction(&data, *site, method, &options).expect("a direction");
        direction.check(&model).expect("of this model");
        assert_eq!(direction.provenance.model, "gpt2_plain");
        assert_eq!(direction.provenance.positions, "last token");
        assert_eq!(direction.provenance.labels, ["first", "second"]);
        found.push(direction);
    }

    let mut elsewhere = found[1].clone();
    elsewhere.site = Site::Block(2, Component::BlockOutput);
    let error = elsewhere.check(&model).expect_err("two layers");
    let plan = matches!(error, DirectionError::Plan(PlanError::NoSuchSite { .. }));
    assert!(plan, "{error:?}");
    elsewhere.site = Site::Block(1, Component::MlpActivation);
    let error = elsewhere.check(&model).expect_err("another width");
    assert!(message(&error).ends_with("features, found 16"), "{error:?}");

    // The control vector has the second layer's direction; it cannot have the first's.
    let vector = ControlVector::from_directions("gpt2", &found[1..], 0.5).expect("after block 1");
    let expected: Vec<f32> = found[1].vector.iter().map(|x| 0.5 * x).collect();
    assert_eq!(vector.directions()[&1], expected);
    vector.check(model.dims()).expect("of this model");
    let error = ControlVector::from_directions("gpt2", &found, 0.5).expect_err("after block 0");
    assert!(matches!(error, ControlVectorError::LayerZero), "{error:?}");
    found[0].site = Site::Embedding;
    let error = ControlVector::from_directions("gpt2", &found, 0.5).expect_err("not after one");
    assert!(
        message(&error).starts_with("embedding: expected a direction after a block"),
        "{error:?}"
    );
    let error = ControlVector::from_directions("gpt2", &found[1..], f32::NAN);
    let error = error.expect_err("not finite");
    assert!(
        matches!(error, ControlVectorError::NotFinite { layer: 1, .. }),
        "{error:?}"
    );
}

fn prompts_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let refused = |site, positions: PromptPositions| {
        collected::<B, _>(&model, site, &positions).expect_err("refused")
    };
    let error = refused(SITE, PromptPositions::From(2));
    assert_eq!(
        message(&error),
        "example 1: expected more than 2 tokens, found 2"
    );
    let scores = Site::Block(0, Component::AttentionScores);
    let error = refused(scores, PromptPositions::Last);
    assert_eq!(error, DirectionError::NoFeatures { site: scores });
    let error = refused(
        Site::Block(9, Component::BlockOutput),
        PromptPositions::Last,
    );
    let plan = matches!(error, DirectionError::Plan(PlanError::NoSuchSite { .. }));
    assert!(plan, "{error:?}");
    let error = refused(SITE, PromptPositions::At(Indices::same([4])));
    let plan = matches!(
        error,
        DirectionError::Plan(PlanError::PositionOutOfRange { .. })
    );
    assert!(plan, "{error:?}");
    let error = refused(SITE, PromptPositions::At(Indices::one_each([0, 0])));
    let plan = matches!(error, DirectionError::Plan(PlanError::WrongBatch { .. }));
    assert!(plan, "{error:?}");
    let unknown = collect_activations(
        &model,
        &tokens(&[&[3, 41]]),
        SITE,
        &PromptPositions::Last,
        &RunOptions::default(),
    );
    let error = unknown.expect_err("an unknown token");
    let plan = matches!(error, DirectionError::Plan(PlanError::Input { .. }));
    assert!(plan, "{error:?}");
}

#[test]
fn activations_that_are_refused() {
    let rows = |rows: &[&[f64]]| {
        Activations::from_rows(&rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>())
    };
    for (refused, expected) in [
        (
            rows(&[]),
            "expected at least one activation with at least one feature, found none",
        ),
        (
            rows(&[&[], &[]]),
            "expected at least one activation with at least one feature, found none",
        ),
        (
            rows(&[&[1.0, 2.0], &[3.0]]),
            "activation 1: expected 2 features, found 1",
        ),
        (
            rows(&[&[1.0, 2.0], &[3.0, f64::NAN]]),
            "activation 1, feature 1: expected a finite number within the range of f32, found NaN",
        ),
        (
            rows(&[&[1e39]]),
            "activation 0, feature 0: expected a finite number within the range of f32, found \
             1000000000000000000000000000000000000000",
        ),
        (
            rows(&[&[1.0]]).and_then(|one| one.with_prompts(vec![0, 1])),
            "prompts: expected one for each of 1 activations, found 2",
        ),
    ] {
        assert_eq!(message(&refused.expect_err("refused")), expected);
    }

    let three = rows(&[&[1.0, 0.0], &[2.0, 1.0], &[0.0, 3.0]]).expect("finite");
    let two = rows(&[&[1.0, 1.0], &[2.0, 0.0]]).expect("finite");
    let wide = rows(&[&[1.0; 3], &[2.0; 3], &[3.0; 3]]).expect("finite");
    let other = three.clone().with_prompts(vec![0, 5, 2]).expect("three");
    for (refused, expected) in [
        (
            DirectionData::labelled(&three, &[true, false]),
            "labels: expected one for each of 3 activations, found 2",
        ),
        (
            DirectionData::labelled(&three, &[true; 3]),
            "expected positive and negative activations, found no negative ones",
        ),
        (
            DirectionData::labelled(&three, &[false; 3]),
            "expected positive and negative activations, found no positive ones",
        ),
        (
            DirectionData::sets(&three, &wide),
            "negative activations: expected 2 features, found 3",
        ),
        (
            DirectionData::pairs(&three, &two),
            "negative activations: expected one for each of 3 activations, found 2",
        ),
        (
            DirectionData::pairs(&three, &other),
            "pair 1: expected activations of prompts with the same index, found 1 and 5; pass the \
             prompts of both sides in the same order, or use sets instead of pairs",
        ),
    ] {
        assert_eq!(message(&refused.expect_err("refused")), expected);
    }
}

#[test]
fn directions_that_are_refused() {
    let planted = planted(4, 12, 3.0, 2);
    let good = planted_pairs(&planted);
    let method = DirectionMethod::MeanDifference;
    let refused = |data: &DirectionData, method, options: DirectionOptions| {
        let error = find_direction(data, SITE, method, &options).expect_err("refused");
        message(&error)
    };
    for held_out in [0.0, 1.0, -0.1, f64::NAN] {
        let options = DirectionOptions::default().with_held_out(held_out);
        let found = refused(&good, method, options);
        let expected = format!("held_out: expected a fraction between 0 and 1, found {held_out}");
        assert_eq!(found, expected);
    }
    for l2 in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        let probe = DirectionMethod::Probe { l2 };
        let found = refused(&good, probe, DirectionOptions::default());
        assert_eq!(
            found,
            format!("l2: expected a finite number above 0, found {l2}")
        );
    }

    let one = rows(&planted.positive[..1]);
    let many = rows(&planted.negative);
    let lonely = DirectionData::sets(&one, &many).expect("sets");
    let found = refused(&lonely, method, DirectionOptions::default());
    assert_eq!(
        found,
        "expected positive activations of more prompts, so that some can be held out; found those \
         of 1 prompt; add prompts"
    );

    let same = DirectionData::pairs(&many, &many).expect("pairs");
    for method in [
        DirectionMethod::MeanDifference,
        DirectionMethod::PrincipalComponent,
        DirectionMethod::PROBE,
    ] {
        let found = refused(&same, method, DirectionOptions::default());
        assert!(found.contains("found no difference"), "{found}");
    }
    let zeros = rows(&vec![vec![0.0; 3]; 8]);
    let zeros = DirectionData::sets(&zeros, &zeros).expect("sets");
    let found = refused(&zeros, DirectionMethod::Random, DirectionOptions::default());
    assert!(found.starts_with("the median norm of the"), "{found}");

    // Differences along two axes, equally long and equally often.
    let corners: Vec<Vec<f64>> = (0..16)
        .map(|index| match index % 2 {
            0 => vec![1.0, 0.0],
            _ => vec![0.0, 1.0],
        })
        .collect();
    let origin = rows(&vec![vec![0.0, 0.0]; 16]);
    // Equal numbers must be left in training: 8 of 16 are drawn, and each seed is another draw.
    let data = DirectionData::pairs(&rows(&corners), &origin).expect("pairs");
    let undetermined = (0..50).filter(|seed| {
        let options = DirectionOptions::default()
            .with_held_out(0.5)
            .with_seed(*seed);
        let found = find_direction(&data, SITE, DirectionMethod::PrincipalComponent, &options);
        found == Err(DirectionError::Undetermined)
    });
    // A draw leaves 4 of each kind with a probability of 0.38.
    assert!((5..35).contains(&undetermined.count()));
}

#[test]
fn a_direction_reads_back() {
    let data = planted_pairs(&planted(12, 40, 3.0, 5));
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("new");
    for (site, method) in [
        (SITE, DirectionMethod::MeanDifference),
        (Site::Embedding, DirectionMethod::Probe { l2: 0.3 }),
        (Site::FinalNorm, DirectionMethod::Lat),
        (
            Site::Block(3, Component::AttentionValueOutput),
            DirectionMethod::PrincipalComponent,
        ),
    ] {
        let options = DirectionOptions::default()
            .with_model("a model")
            .with_labels("höflich", "\"rude\"")
            .with_positions(&PromptPositions::From(1))
            .with_seed(u64::MAX);
        let direction = find_direction(&data, site, method, &options).expect("a direction");
        direction.save(&folder).expect("written");
        assert_eq!(Direction::load(&folder).expect("read"), direction);
    }
    assert_eq!(fs::read_dir(&folder).expect("the folder").count(), 2);

    let saved = Direction::load(&folder).expect("read");
    let mut damaged = saved.clone();
    damaged.vector[2] = f32::NAN;
    let error = damaged.save(&folder).expect_err("not finite");
    assert_eq!(
        message(&error),
        "the direction cannot be saved: vector: expected finite numbers, found NaN as feature 2"
    );
    damaged.vector = vec![0.0; 12];
    let error = damaged.save(&folder).expect_err("no direction");
    assert!(message(&error).contains("other than 0"), "{error:?}");
    damaged = saved.clone();
    damaged.norms.unscaled = f64::INFINITY;
    let error = damaged.save(&folder).expect_err("not finite");
    assert!(message(&error).contains("finite numbers"), "{error:?}");
    assert_eq!(Direction::load(&folder).expect("unchanged"), saved);

    let (json, tensors) = ("direction.json", "direction.safetensors");
    let text = fs::read_to_string(folder.join(json)).expect("text");
    let refused = |contents: &str| {
        fs::write(folder.join(json), contents).expect("written");
        message(&Direction::load(&folder).expect_err("damaged"))
    };
    let unknown = refused(&text.replace("attention_value_output", "attention"));
    assert!(
        unknown.contains("unknown component `attention`"),
        "{unknown}"
    );
    let more = refused(&text.replace("\"site\"", "\"more\": 1, \"site\""));
    assert!(more.contains("unknown field `more`"), "{more}");
    let cut = refused(&text[..text.len() / 2]);
    assert!(cut.contains("expected the description of a"), "{cut}");
    fs::write(folder.join(json), &text).expect("written");
    assert_eq!(Direction::load(&folder).expect("whole again"), saved);

    let bytes = fs::read(folder.join(tensors)).expect("bytes");
    fs::write(folder.join(tensors), &bytes[..bytes.len() - 4]).expect("written");
    let error = Direction::load(&folder).expect_err("cut off");
    assert!(
        message(&error).contains("expected safetensors"),
        "{error:?}"
    );
    fs::remove_file(folder.join(tensors)).expect("removed");
    let error = Direction::load(&folder).expect_err("no vector");
    assert!(matches!(error, LoadResultError::Io { .. }), "{error:?}");
    fs::rename(folder.join(json), folder.join("direction.json.part")).expect("renamed");
    let error = Direction::load(&folder).expect_err("interrupted");
    assert!(matches!(error, LoadResultError::CutOff { .. }), "{error:?}");
    let found = message(&error);
    let expected = "saving a direction here was interrupted, direction.json is missing";
    assert!(found.contains(expected), "{found}");
    let error = Direction::load(folder.join("nowhere")).expect_err("no folder");
    assert!(message(&error).contains("no direction.json"), "{error:?}");
}

/// The vectors of `make_control_vector.py`.
fn control_vector() -> ControlVector {
    let directions = [1, 2, 10].map(|layer| {
        let vector = (0..10).map(|feature| (feature - layer) as f32 / 8.0);
        (layer as usize, vector.collect())
    });
    ControlVector::new("llama", directions).expect("vectors")
}

#[test]
fn control_vectors_are_those_of_the_gguf_package() {
    let file = fixtures().join("control_vector.gguf");
    let expected = fs::read(&file).expect("the fixture");
    let vector = control_vector();
    assert_eq!(vector.to_gguf(), expected);
    let read = ControlVector::load(&file).expect("a control vector");
    assert_eq!(read, vector);
    assert_eq!(read.model_hint(), "llama");
    assert_eq!(read.directions().len(), 3);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("new").join("vector.gguf");
    for _ in 0..2 {
        vector.save(&file).expect("written");
        assert_eq!(fs::read(&file).expect("the file"), expected);
    }
    assert_eq!(
        fs::read_dir(folder.path().join("new")).expect("it").count(),
        1
    );
}

#[test]
fn control_vectors_that_are_refused() {
    let new = |directions: &[(usize, &[f32])]| {
        let directions = directions.iter();
        let directions = directions.map(|(layer, vector)| (*layer, vector.to_vec()));
        let refused = ControlVector::new("llama", directions).expect_err("refused");
        message(&refused)
    };
    for (found, expected) in [
        (new(&[]), "expected a vector with at least one feature"),
        (new(&[(1, &[])]), "expected a vector with at least one"),
        (new(&[(0, &[1.0])]), "layer 0: expected layers from 1 on"),
        (
            new(&[(1, &[1.0]), (4, &[1.0, 2.0])]),
            "layer 4: expected 1 features, found 2",
        ),
        (
            new(&[(3, &[1.0]), (3, &[2.0])]),
            "layer 3: expected one vector, found two",
        ),
        (
            new(&[(3, &[1.0, f32::INFINITY])]),
            "layer 3, feature 1: expected a finite number, found inf",
        ),
    ] {
        assert!(found.starts_with(expected), "{found}");
    }

    let dims = ModelDims::features(2, 16, 5);
    let error = control_vector().check(&dims).expect_err("10 wide");
    assert_eq!(message(&error), "layer 1: expected 16 features, found 10");
    let deep = ControlVector::new("gpt2", [(2, vec![0.5; 16])]).expect("vectors");
    let error = deep.check(&dims).expect_err("two blocks");
    assert!(
        message(&error).starts_with("layer 2: expected layers below 2"),
        "{error:?}"
    );

    let gguf = fixtures().join("gguf").join("kinds.gguf");
    let error = ControlVector::load(&gguf).expect_err("something else");
    assert!(
        message(&error).ends_with(
            "expected a control vector (general.architecture `controlvector`), found `llama`"
        ),
        "{error:?}"
    );
    let error = ControlVector::load(fixtures().join("paths.json")).expect_err("not GGUF");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );
    let error = ControlVector::load(fixtures().join("nowhere")).expect_err("no file");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("vector.gguf");
    let bytes = control_vector().to_gguf();
    let at = |text: &[u8]| {
        let mut windows = bytes.windows(text.len());
        windows.position(|it| it == text).expect("there")
    };
    let name = at(b"direction.2");
    let changed = |place: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[place] = value;
        fs::write(&file, bytes).expect("written");
        message(&ControlVector::load(&file).expect_err("refused"))
    };
    for (place, value, expected) in [
        (
            name,
            b'D',
            "expected the name `direction.LAYER`, found another",
        ),
        (
            name + 10,
            b'x',
            "expected the name `direction.LAYER`, found another",
        ),
        (name + 10, b'0', "layer 0: expected layers from 1 on"),
        // The type, after the number of axes and one size.
        (
            name + 11 + 4 + 8,
            26,
            "`direction.2`: expected F32, found I32",
        ),
    ] {
        let found = changed(place, value);
        assert!(found.contains(expected), "{found}");
    }
    fs::write(&file, &bytes[..bytes.len() - 32]).expect("written");
    let error = ControlVector::load(&file).expect_err("cut off");
    assert!(
        matches!(error, ControlVectorError::Gguf { .. }),
        "{error:?}"
    );
    let error = control_vector().save("/").expect_err("no name");
    assert!(matches!(error, ControlVectorError::Io { .. }), "{error:?}");
}
