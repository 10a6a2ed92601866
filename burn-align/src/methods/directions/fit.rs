//! The vector of each method, from training rows.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::data::Rows;
use super::matrix::{Symmetric, dot, norm, weighted_sum};
use super::probe::probe;
use super::{DirectionError, DirectionMethod};

/// The vector of a method, of any length. Positive rows are further along it than negative ones on
/// average; see [`towards_positive`].
pub(super) fn fit(
    training: &Rows<'_>,
    method: DirectionMethod,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<f64>, DirectionError> {
    match method {
        DirectionMethod::MeanDifference => mean_difference(training),
        DirectionMethod::PrincipalComponent => {
            let pairs = match &training.pairs {
                Some(pairs) => pairs.clone(),
                None => random_pairs(training, rng),
            };
            let found = first_component(&differences(training, &pairs))?;
            Ok(towards_positive(found, training))
        }
        DirectionMethod::Lat => {
            let mut order: Vec<usize> = (0..training.rows.len()).collect();
            order.shuffle(rng);
            let (pairs, _rest) = order.as_chunks::<2>();
            let mut differences = differences(training, pairs);
            for difference in &mut differences {
                let length = norm(difference);
                if length > 0.0 {
                    difference.iter_mut().for_each(|value| *value /= length);
                }
            }
            Ok(towards_positive(first_component(&differences)?, training))
        }
        DirectionMethod::Probe { l2 } => probe(&training.rows, &training.labels, l2),
        DirectionMethod::Random => Ok(random(training, rng)),
        DirectionMethod::ReftR1 { .. } => Err(DirectionError::TrainedOnTexts),
    }
}

/// A random direction: each is equally likely, but for its sign.
pub(super) fn random(training: &Rows<'_>, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let width = training.rows.first().map_or(0, |row| row.len());
    let normal = |_| -> f64 { StandardNormal.sample(rng) };
    towards_positive((0..width).map(normal).collect(), training)
}

fn mean_difference(training: &Rows<'_>) -> Result<Vec<f64>, DirectionError> {
    let [positive, negative] = [true, false].map(|class| training.mean(class));
    let difference: Vec<f64> = positive.iter().zip(negative).map(|(a, b)| a - b).collect();
    if difference.iter().all(|value| *value == 0.0) {
        return Err(DirectionError::NoDifference {
            what: "the mean activations",
        });
    }
    Ok(difference)
}

/// Positive and negative rows, paired at random, as many as there are of the rarer class.
fn random_pairs(training: &Rows<'_>, rng: &mut ChaCha8Rng) -> Vec<[usize; 2]> {
    let [mut positive, mut negative] = [true, false].map(|class| training.of(class));
    positive.shuffle(rng);
    negative.shuffle(rng);
    let pairs = positive.into_iter().zip(negative);
    pairs
        .map(|(positive, negative)| [positive, negative])
        .collect()
}

fn differences(training: &Rows<'_>, pairs: &[[usize; 2]]) -> Vec<Vec<f64>> {
    let pairs = pairs.iter().map(|pair| pair.map(|row| training.rows[row]));
    let differences =
        pairs.map(|[a, b]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() });
    differences.collect()
}

/// The unit vector along which the sum of squares is largest, without subtracting a mean.
fn first_component(rows: &[Vec<f64>]) -> Result<Vec<f64>, DirectionError> {
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    let width = rows.first().map_or(0, |row| row.len());
    let found = if rows.len() <= width {
        // X Xᵀ has the same eigenvalues as Xᵀ X, and is smaller.
        let weights = eigenvector(Symmetric::gram(&rows))?;
        weighted_sum(&rows, &weights)
    } else {
        let columns: Vec<Vec<f64>> = (0..width)
            .map(|feature| rows.iter().map(|row| row[feature]).collect())
            .collect();
        let columns: Vec<&[f64]> = columns.iter().map(Vec::as_slice).collect();
        eigenvector(Symmetric::gram(&columns))?
    };
    let length = norm(&found);
    Ok(found.into_iter().map(|value| value / length).collect())
}

fn eigenvector(matrix: Symmetric) -> Result<Vec<f64>, DirectionError> {
    if matrix.trace() == 0.0 {
        return Err(DirectionError::NoDifference {
            what: "the activations of each pair",
        });
    }
    let found = matrix.first_eigenvector();
    found.ok_or(DirectionError::Undetermined)
}

/// The vector or its opposite, so that positive rows are further along it on average.
fn towards_positive(vector: Vec<f64>, training: &Rows<'_>) -> Vec<f64> {
    let [positive, negative] = [true, false].map(|class| training.mean(class));
    if dot(&vector, &positive) < dot(&vector, &negative) {
        return vector.into_iter().map(|value| -value).collect();
    }
    vector
}
