//! Positive and negative activations, and which of them are held out.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Activations, DirectionError};

/// Positive and negative activations.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionData {
    width: usize,
    /// `[row * width + feature]`
    values: Vec<f64>,
    labels: Vec<bool>,
    prompts: Vec<usize>,
    /// Whether the first half of the rows is positive and has its pairs in the second half.
    is_paired: bool,
}

/// Rows to build a direction from, or to measure it with.
#[derive(Clone, Debug)]
pub(super) struct Rows<'a> {
    pub(super) rows: Vec<&'a [f64]>,
    pub(super) labels: Vec<bool>,
    /// Rows that belong together, positive and negative, if the data are pairs.
    pub(super) pairs: Option<Vec<[usize; 2]>>,
}

impl Rows<'_> {
    /// The indices of the rows of a class.
    pub(super) fn of(&self, class: bool) -> Vec<usize> {
        let labels = self.labels.iter().enumerate();
        let labels = labels.filter(|(_, label)| **label == class);
        labels.map(|(row, _)| row).collect()
    }

    /// Number of positive and of negative rows.
    pub(super) fn counts(&self) -> [usize; 2] {
        [true, false].map(|class| self.of(class).len())
    }

    /// The mean of the rows of a class.
    pub(super) fn mean(&self, class: bool) -> Vec<f64> {
        let chosen = self.of(class);
        mean(&chosen.iter().map(|row| self.rows[*row]).collect::<Vec<_>>())
    }
}

/// The mean of rows.
pub(super) fn mean(rows: &[&[f64]]) -> Vec<f64> {
    let mut sums = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(*row) {
            *sum += value;
        }
    }
    let count = rows.len().max(1) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// The name of a class.
pub(super) fn class_name(class: bool) -> &'static str {
    if class { "positive" } else { "negative" }
}

/// Prompts with numbers from `first` on and without gaps, in the order of those that they have.
fn numbered(prompts: &[usize], first: usize) -> Vec<usize> {
    let known: BTreeSet<usize> = prompts.iter().copied().collect();
    let numbers: BTreeMap<usize, usize> = known.into_iter().zip(first..).collect();
    prompts.iter().map(|prompt| numbers[prompt]).collect()
}

impl DirectionData {
    /// Activations with a label each: `true` for positive ones. Activations of one prompt may have
    /// different labels.
    ///
    /// # Errors
    /// If there is not one label for each activation, or all labels are the same.
    pub fn labelled(activations: &Activations, labels: &[bool]) -> Result<Self, DirectionError> {
        if labels.len() != activations.count() {
            return Err(DirectionError::Count {
                what: "labels",
                expected: activations.count(),
                found: labels.len(),
            });
        }
        for class in [true, false] {
            if !labels.contains(&class) {
                return Err(DirectionError::OneClass {
                    missing: class_name(class),
                });
            }
        }
        Ok(Self {
            width: activations.width(),
            values: activations.values().to_vec(),
            labels: labels.to_vec(),
            prompts: activations.prompts().to_vec(),
            is_paired: false,
        })
    }

    /// Positive and negative activations of different prompts.
    ///
    /// # Errors
    /// If their widths differ.
    pub fn sets(positive: &Activations, negative: &Activations) -> Result<Self, DirectionError> {
        let of_positive = numbered(positive.prompts(), 0);
        let first = of_positive.iter().max().map_or(0, |last| last + 1);
        let of_negative = numbered(negative.prompts(), first);
        let prompts = [of_positive, of_negative].concat();
        Self::both(positive, negative, prompts, false)
    }

    /// Pairs of activations that differ in what the direction should stand for: activation `i` of
    /// each side, from prompts with the same index. Pairs are held out as such.
    ///
    /// # Errors
    /// If their widths or numbers differ, or those of a pair come from different prompts.
    pub fn pairs(positive: &Activations, negative: &Activations) -> Result<Self, DirectionError> {
        if positive.count() != negative.count() {
            return Err(DirectionError::Count {
                what: "negative activations",
                expected: positive.count(),
                found: negative.count(),
            });
        }
        let prompts = positive.prompts().iter().zip(negative.prompts());
        let mut prompts = prompts.enumerate();
        if let Some((pair, (positive, negative))) = prompts.find(|(_, (a, b))| a != b) {
            return Err(DirectionError::Unpaired {
                pair,
                positive: *positive,
                negative: *negative,
            });
        }
        let prompts = [positive.prompts(), negative.prompts()].concat();
        Self::both(positive, negative, prompts, true)
    }

    fn both(
        positive: &Activations,
        negative: &Activations,
        prompts: Vec<usize>,
        is_paired: bool,
    ) -> Result<Self, DirectionError> {
        let width = positive.width();
        if negative.width() != width {
            return Err(DirectionError::Width {
                what: "negative activations".to_owned(),
                expected: width,
                found: negative.width(),
            });
        }
        let labels = [vec![true; positive.count()], vec![false; negative.count()]];
        Ok(Self {
            width,
            values: [positive.values(), negative.values()].concat(),
            labels: labels.concat(),
            prompts,
            is_paired,
        })
    }

    /// Number of features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether the activations are pairs.
    pub fn is_paired(&self) -> bool {
        self.is_paired
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.width)
    }

    /// For each prompt: whether it has negative rows, and positive ones.
    fn classes(&self) -> BTreeMap<usize, [bool; 2]> {
        let mut classes: BTreeMap<usize, [bool; 2]> = BTreeMap::new();
        for (prompt, label) in self.prompts.iter().zip(&self.labels) {
            classes.entry(*prompt).or_default()[usize::from(*label)] = true;
        }
        classes
    }

    /// Whether each prompt is held out. A fraction of them is, rounded to a whole number but at
    /// least one and not all: of those with positive rows, of those with negative ones, and of
    /// those with both.
    pub(super) fn held_out(&self, fraction: f64, rng: &mut ChaCha8Rng) -> BTreeMap<usize, bool> {
        let classes = self.classes();
        let mut is_held_out: BTreeMap<usize, bool> = BTreeMap::new();
        for kind in [[true, false], [false, true], [true, true]] {
            let prompts = classes.iter().filter(|(_, found)| **found == kind);
            let mut prompts: Vec<usize> = prompts.map(|(prompt, _)| *prompt).collect();
            prompts.shuffle(rng);
            let held_out = match prompts.len() {
                0 | 1 => 0,
                count => ((fraction * count as f64).round() as usize).clamp(1, count - 1),
            };
            let prompts = prompts.into_iter().enumerate();
            is_held_out.extend(prompts.map(|(place, prompt)| (prompt, place < held_out)));
        }
        is_held_out
    }

    /// The rows of training and of held-out prompts.
    pub(super) fn split(
        &self,
        is_held_out: &BTreeMap<usize, bool>,
    ) -> Result<[Rows<'_>; 2], DirectionError> {
        let parts = [false, true]
            .map(|held_out| self.chosen(|prompt| is_held_out.get(&prompt) == Some(&held_out)));
        for part in &parts {
            for class in [true, false] {
                if !part.labels.contains(&class) {
                    let has_class = |found: &&[bool; 2]| found[usize::from(class)];
                    return Err(DirectionError::TooFew {
                        class: class_name(class),
                        found: self.classes().values().filter(has_class).count(),
                    });
                }
            }
        }
        Ok(parts)
    }

    fn chosen(&self, is_chosen: impl Fn(usize) -> bool) -> Rows<'_> {
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for (index, row) in self.rows().enumerate() {
            if is_chosen(self.prompts[index]) {
                rows.push(row);
                labels.push(self.labels[index]);
            }
        }
        let half = rows.len() / 2;
        let pairs = self
            .is_paired
            .then(|| (0..half).map(|pair| [pair, half + pair]).collect());
        Rows {
            rows,
            labels,
            pairs,
        }
    }
}
