//! Directions planted in random activations.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align::methods::{
    Activations, DirectionData, DirectionMethod, DirectionOptions, find_direction,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{SITE, found, normals, planted, planted_pairs, rows};
use crate::support::values;

on_every_backend!(planted_directions_are_found);

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let a: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
    let b: f64 = b.iter().map(|b| b.powi(2)).sum();
    dot / (a * b).sqrt()
}

fn in_tensor<B: Backend>(rows: &[Vec<f64>], device: &B::Device) -> Activations {
    let shape = [rows.len(), rows[0].len()];
    let numbers: Vec<f32> = rows.concat().iter().map(|number| *number as f32).collect();
    let tensor = Tensor::<B, 2>::from_data(TensorData::new(numbers, shape), (device, DType::F32));
    Activations::from_tensor(tensor).expect("finite rows")
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
