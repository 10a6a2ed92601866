//! Directions: planted ones are found, what is held out is held out, files read back.

mod files;
mod of_a_model;
mod planted;
mod refused;
mod trained;

use burn_align::methods::{
    Activations, Direction, DirectionData, DirectionMethod, DirectionOptions, find_direction,
};
use burn_align_models::{Component, Site};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SITE: Site = Site::Block(1, Component::BlockOutput);

/// A normal number, nearly: the sum of twelve uniform ones.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

fn normals(count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..count).map(|_| normal(rng)).collect()
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

fn found(data: &DirectionData, method: DirectionMethod) -> Direction {
    find_direction(data, SITE, method, &DirectionOptions::default()).expect("a direction")
}

fn planted_pairs(planted: &Planted) -> DirectionData {
    let [positive, negative] = [&planted.positive, &planted.negative].map(|it| rows(it));
    DirectionData::pairs(&positive, &negative).expect("pairs")
}
