//! How well a direction tells held-out activations apart.

use serde::{Deserialize, Serialize};

use super::data::Rows;
use super::matrix::dot;

/// How well projections on a direction tell positive from negative activations that it was not
/// built from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Separation {
    /// The probability that a positive activation projects further than a negative one, ties
    /// counting half: the area under the ROC curve. 0.5 for no separation.
    pub auc: f64,
    /// The fraction of activations on their class's side of the threshold.
    pub accuracy: f64,
    /// Half way between the mean projections of the two classes in training, on the unit vector.
    pub threshold: f64,
    /// Number of positive and of negative activations.
    pub examples: [usize; 2],
}

/// Measures a unit vector.
pub(super) fn separation(unit: &[f64], [training, held_out]: [&Rows<'_>; 2]) -> Separation {
    let means = [true, false].map(|class| dot(unit, &training.mean(class)));
    let threshold = means.iter().sum::<f64>() / 2.0;
    let projections = held_out.rows.iter().map(|row| dot(unit, row));
    let projections: Vec<(f64, bool)> = projections.zip(held_out.labels.iter().copied()).collect();
    let right = projections
        .iter()
        .filter(|(projection, label)| (*projection > threshold) == *label);
    Separation {
        auc: auc(&projections),
        accuracy: right.count() as f64 / projections.len() as f64,
        threshold,
        examples: held_out.counts(),
    }
}

/// The area under the ROC curve of scores and labels, from their ranks (Mann & Whitney 1947). Both
/// labels must occur.
pub(super) fn auc(scores: &[(f64, bool)]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    // Negative scores below each group of equal scores, and positive scores above them.
    let (mut negatives, mut wins) = (0.0, 0.0);
    for equal in sorted.chunk_by(|(a, _), (b, _)| a == b) {
        let positive = equal.iter().filter(|(_, label)| *label).count() as f64;
        let negative = equal.len() as f64 - positive;
        wins += positive * (negatives + negative / 2.0);
        negatives += negative;
    }
    let positives = scores.len() as f64 - negatives;
    wins / (positives * negatives)
}

#[cfg(test)]
mod tests {
    use super::auc;

    #[test]
    fn areas_by_hand() {
        let area = |positive: &[f64], negative: &[f64]| {
            let positive = positive.iter().map(|score| (*score, true));
            let negative = negative.iter().map(|score| (*score, false));
            auc(&positive.chain(negative).collect::<Vec<_>>())
        };
        assert_eq!(area(&[2.0, 3.0], &[0.0, 1.0]), 1.0);
        assert_eq!(area(&[0.0, 1.0], &[2.0, 3.0]), 0.0);
        assert_eq!(area(&[1.0, 1.0], &[1.0, 1.0, 1.0]), 0.5);
        // Of six comparisons: 4 wins and a tie.
        assert_eq!(area(&[5.0, 2.0], &[1.0, 2.0, 3.0]), 4.5 / 6.0);
        assert_eq!(area(&[0.0, -0.0], &[-0.0, 0.0]), 0.5);
    }
}
