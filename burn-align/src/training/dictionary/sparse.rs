//! Products with features of which few are active, on the host.
//!
//! Of the five products of a training step only that of the encoder needs all features. The others
//! run over the active ones, which are a few in a hundred.

use std::ops::Range;

use super::parallel::{in_parts, joined};
use crate::dictionaries::Largest;

/// Some features of each row.
#[derive(Debug, PartialEq)]
pub(super) struct SparseRows {
    /// Where the entries of each row begin, and where those of the last one end.
    starts: Vec<usize>,
    /// The feature of each entry, ascending in a row.
    features: Vec<u32>,
    /// The hidden value of each entry.
    hidden: Vec<f32>,
}

/// The same entries by feature.
pub(super) struct SparseColumns {
    /// Where the entries of each feature begin, and where those of the last one end.
    starts: Vec<usize>,
    /// For each entry, its row and its number among the entries by row; rows ascend.
    entries: Vec<(u32, u32)>,
}

impl SparseRows {
    /// The `k` largest values of each row that are above 0; of equal ones at the border, those of
    /// lower features. A value that is not a number counts as large, so that it is not hidden.
    ///
    /// - hidden: `[row, feature]`
    pub(super) fn top_k(hidden: &[f32], features: usize, k: usize) -> Self {
        Self::new(hidden, features, |row, found| {
            let mut on: Vec<f32> = row.iter().copied().filter(|it| is_on(*it, 0.0)).collect();
            let mut largest = Largest::new(&mut on, k);
            found.extend(chosen(row, |_, value| {
                is_on(value, 0.0) && largest.takes(value)
            }));
        })
    }

    /// The values above a bound of their feature.
    ///
    /// - hidden: `[row, feature]`
    pub(super) fn above(hidden: &[f32], bounds: &[f32]) -> Self {
        Self::new(hidden, bounds.len(), |row, found| {
            found.extend(chosen(row, |feature, value| is_on(value, bounds[feature])));
        })
    }

    fn new(
        hidden: &[f32],
        features: usize,
        choose: impl Fn(&[f32], &mut Vec<(u32, f32)>) + Sync,
    ) -> Self {
        let rows = hidden.len() / features;
        let parts = in_parts(rows, hidden.len(), |part| {
            let (mut found, mut counts) = (Vec::new(), Vec::with_capacity(part.len()));
            for row in hidden[part.start * features..part.end * features].chunks(features) {
                let before = found.len();
                choose(row, &mut found);
                counts.push(found.len() - before);
            }
            (found, counts)
        });
        let mut all = Self {
            starts: vec![0],
            features: Vec::new(),
            hidden: Vec::new(),
        };
        let mut end = 0;
        for (found, counts) in parts {
            for count in counts {
                end += count;
                all.starts.push(end);
            }
            all.features
                .extend(found.iter().map(|(feature, _)| *feature));
            all.hidden.extend(found.iter().map(|(_, value)| *value));
        }
        all
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.features.len()
    }

    /// The feature and the hidden value of each entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, f32)> {
        let features = self.features.iter().map(|feature| *feature as usize);
        features.zip(self.hidden.iter().copied())
    }

    /// The numbers of the entries of each row.
    pub(super) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|ends| ends[0]..ends[1])
    }

    /// `values · directions`: for each row, the sum of its features' directions.
    ///
    /// # Shapes
    /// - values: one for each entry
    /// - directions: `[feature, width]`
    /// - output: `[row, width]`
    pub(super) fn sums(&self, values: &[f32], directions: &[f32], width: usize) -> Vec<f32> {
        let rows = self.starts.len() - 1;
        let parts = in_parts(rows, self.len() * width, |part| {
            let mut sums = vec![0.0; part.len() * width];
            for (row, sum) in part.zip(sums.chunks_mut(width)) {
                let own = self.starts[row]..self.starts[row + 1];
                for (feature, value) in self.features[own.clone()].iter().zip(&values[own]) {
                    let direction = &directions[*feature as usize * width..][..width];
                    add_scaled(sum, *value, direction);
                }
            }
            sums
        });
        joined(parts)
    }

    /// For each entry, the product of its row with its feature's direction.
    ///
    /// # Shapes
    /// - rows: `[row, width]`
    /// - directions: `[feature, width]`
    /// - output: one for each entry
    pub(super) fn dots(&self, rows: &[f32], directions: &[f32], width: usize) -> Vec<f32> {
        let count = self.starts.len() - 1;
        let parts = in_parts(count, self.len() * width, |part| {
            let mut dots = Vec::with_capacity(self.starts[part.end] - self.starts[part.start]);
            for row in part {
                let own = &rows[row * width..][..width];
                for entry in self.starts[row]..self.starts[row + 1] {
                    let feature = self.features[entry] as usize;
                    dots.push(dot(own, &directions[feature * width..][..width]));
                }
            }
            dots
        });
        joined(parts)
    }

    /// The entries by feature.
    pub(super) fn by_feature(&self, features: usize) -> SparseColumns {
        let mut starts = vec![0; features + 1];
        for feature in &self.features {
            starts[*feature as usize + 1] += 1;
        }
        for feature in 0..features {
            starts[feature + 1] += starts[feature];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0); self.len()];
        for (row, own) in self.rows().enumerate() {
            for entry in own {
                let place = &mut next[self.features[entry] as usize];
                entries[*place] = (row as u32, entry as u32);
                *place += 1;
            }
        }
        SparseColumns { starts, entries }
    }
}

impl SparseColumns {
    /// `valuesᵀ · rows`: for each feature, the sum of the rows that have it.
    ///
    /// # Shapes
    /// - values: one for each entry by row
    /// - rows: `[row, width]`
    /// - output: `[feature, width]`
    pub(super) fn sums(&self, values: &[f32], rows: &[f32], width: usize) -> Vec<f32> {
        let features = self.starts.len() - 1;
        let parts = in_parts(features, self.entries.len() * width, |part| {
            let mut sums = vec![0.0; part.len() * width];
            for (feature, sum) in part.zip(sums.chunks_mut(width)) {
                for (row, entry) in self.of(feature) {
                    add_scaled(
                        sum,
                        values[*entry as usize],
                        &rows[*row as usize * width..][..width],
                    );
                }
            }
            sums
        });
        joined(parts)
    }

    /// For each feature, the sum of the values of its entries.
    pub(super) fn totals(&self, values: &[f32]) -> Vec<f32> {
        let features = 0..self.starts.len() - 1;
        let total = |feature| {
            self.of(feature)
                .iter()
                .map(|it| values[it.1 as usize])
                .sum()
        };
        features.map(total).collect()
    }

    fn of(&self, feature: usize) -> &[(u32, u32)] {
        &self.entries[self.starts[feature]..self.starts[feature + 1]]
    }
}

fn is_on(value: f32, bound: f32) -> bool {
    value > bound || value.is_nan()
}

/// The features of a row that are chosen, with their values.
fn chosen(
    row: &[f32],
    mut is_chosen: impl FnMut(usize, f32) -> bool,
) -> impl Iterator<Item = (u32, f32)> {
    let values = row.iter().copied().enumerate();
    let values = values.filter(move |(feature, value)| is_chosen(*feature, *value));
    values.map(|(feature, value)| (feature as u32, value))
}

/// `sum += factor · x`
fn add_scaled(sum: &mut [f32], factor: f32, x: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}

/// The inner product, as several sums at a time: one after the other, they could not use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::SparseRows;
    use crate::training::dictionary::parallel::SMALL;

    const HIDDEN: [f32; 8] = [1.0, 3.0, -2.0, 3.0, 0.0, 0.5, 3.0, 3.0];

    fn entries(rows: &SparseRows) -> Vec<Vec<(usize, f32)>> {
        let all: Vec<(usize, f32)> = rows.entries().collect();
        rows.rows().map(|own| all[own].to_vec()).collect()
    }

    #[test]
    fn the_largest_values_above_zero_are_kept() {
        let one = SparseRows::top_k(&HIDDEN, 4, 1);
        assert_eq!(entries(&one), [vec![(1, 3.0)], vec![(2, 3.0)]]);
        let three = SparseRows::top_k(&HIDDEN, 4, 3);
        let expected = [
            vec![(0, 1.0), (1, 3.0), (3, 3.0)],
            vec![(1, 0.5), (2, 3.0), (3, 3.0)],
        ];
        assert_eq!(entries(&three), expected);
        let all = SparseRows::top_k(&HIDDEN, 4, 4);
        assert_eq!(all, three);
        let bounded = SparseRows::above(&HIDDEN, &[0.0, 2.0, 3.0, -9.0]);
        let expected = [vec![(0, 1.0), (1, 3.0), (3, 3.0)], vec![(3, 3.0)]];
        assert_eq!(entries(&bounded), expected);
    }

    #[test]
    fn a_value_that_is_not_a_number_is_kept() {
        let rows = SparseRows::top_k(&[f32::NAN, 3.0, 2.0, 5.0], 4, 2);
        assert!(
            rows.entries()
                .any(|(feature, value)| feature == 0 && value.is_nan())
        );
    }

    /// Large enough for several threads.
    #[test]
    fn products_are_those_of_matrices() {
        let [rows, features, width, k] = [300, 80, 70, 16];
        let number = |at: usize| ((at * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
        let matrix = |size: usize| -> Vec<f32> { (0..size).map(number).collect() };
        let sparse = SparseRows::top_k(&matrix(rows * features), features, k);
        assert!(sparse.len() * width > SMALL);
        let values: Vec<f32> = sparse.entries().map(|(_, value)| value).collect();
        let mut dense = vec![0.0; rows * features];
        let all: Vec<(usize, f32)> = sparse.entries().collect();
        for (row, own) in sparse.rows().enumerate() {
            assert_eq!(own.len(), k);
            for (feature, value) in &all[own] {
                dense[row * features + feature] = *value;
            }
        }
        let close = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() < 1e-3, "{a} {b}");
            }
        };

        let directions = matrix(features * width);
        let by_row = matrix(rows * width);
        let mut expected = vec![0.0; rows * width];
        let mut expected_by_feature = vec![0.0; features * width];
        for row in 0..rows {
            for feature in 0..features {
                let value = dense[row * features + feature];
                for at in 0..width {
                    expected[row * width + at] += value * directions[feature * width + at];
                    expected_by_feature[feature * width + at] += value * by_row[row * width + at];
                }
            }
        }
        close(&sparse.sums(&values, &directions, width), &expected);
        let columns = sparse.by_feature(features);
        close(&columns.sums(&values, &by_row, width), &expected_by_feature);

        let dots = sparse.dots(&by_row, &directions, width);
        let rows_of_entries = sparse.rows().enumerate();
        let rows_of_entries = rows_of_entries.flat_map(|(row, own)| own.map(move |_| row));
        let expected: Vec<f32> = rows_of_entries
            .zip(&all)
            .map(|(row, (feature, _))| {
                let product =
                    |at: usize| by_row[row * width + at] * directions[feature * width + at];
                (0..width).map(product).sum()
            })
            .collect();
        close(&dots, &expected);

        let totals: Vec<f32> = (0..features)
            .map(|feature| (0..rows).map(|row| dense[row * features + feature]).sum())
            .collect();
        close(&columns.totals(&values), &totals);
    }
}
