//! When two configurations are equivalent.

use std::fmt;

use super::{AlignableConfig, AlignableRepresentationConfig, InterventionType, Mode, Unit};

/// Where two configurations differ in meaning; see [`AlignableConfig::difference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigDifference {
    /// Index of the representation; `None` if it is about all of them.
    pub representation: Option<usize>,
    /// What differs.
    pub what: &'static str,
}

impl fmt::Display for ConfigDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.representation {
            Some(index) => write!(f, "representation {index}: {}", self.what),
            None => f.write_str(self.what),
        }
    }
}

impl AlignableConfig {
    /// Where this configuration differs in meaning from another one, if it does. Equivalent
    /// configurations may be written differently, as in align-transformers and pyvene: fields
    /// without effect are not compared ([`model_type`](Self::model_type), a rank where it is not
    /// used), a group key equal to the representation's own index is the same as no group keys, and
    /// parts of partitions are equal if their features are.
    ///
    /// A rank or latent dimension that only one of them gives is not a difference: it is then
    /// determined by the parameters.
    pub fn difference(&self, other: &Self) -> Option<ConfigDifference> {
        let at = |representation, what| {
            Some(ConfigDifference {
                representation,
                what,
            })
        };
        if self.representations.len() != other.representations.len() {
            return at(None, "the number of representations");
        }
        if self.mode != other.mode {
            return at(None, "mode");
        }
        let pairs = self.representations.iter().zip(&other.representations);
        for (index, (one, two)) in pairs.enumerate() {
            if let Some(what) = one.difference(two) {
                return at(Some(index), what);
            }
            let group = |it: &AlignableRepresentationConfig| it.group_key.unwrap_or(index);
            if self.mode == Mode::Parallel && group(one) != group(two) {
                return at(Some(index), "group_key");
            }
            // Sharing nothing is the same as not sharing.
            if one.intervention.has_parameters() && self.first(index) != other.first(index) {
                return at(Some(index), "intervention_link_key");
            }
        }
        None
    }

    /// The first representation that shares the intervention of this one.
    fn first(&self, index: usize) -> usize {
        let key = self.representations[index].intervention_link_key;
        let mut all = self.representations.iter();
        let first = all.position(|other| key.is_some() && other.intervention_link_key == key);
        first.unwrap_or(index)
    }
}

impl AlignableRepresentationConfig {
    /// What differs in meaning from another one, except for groups and links.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let kind = self.intervention;
        let given =
            |one: Option<usize>, two: Option<usize>| one.zip(two).is_some_and(|(a, b)| a != b);
        let heads = |it: &Self| {
            let heads = matches!(it.unit, Unit::Head | Unit::HeadPos);
            heads.then_some(it.max_number_of_units)
        };
        let differences = [
            ("the site", self.place() != other.place()),
            ("alignable_unit", self.unit != other.unit),
            ("the intervention", kind != other.intervention),
            (
                "max_number_of_units, or keep_last_dim",
                kind.has_parameters()
                    && !kind.treats_units_alike()
                    && (self.tokens() != other.tokens() || heads(self) != heads(other)),
            ),
            (
                "alignable_low_rank_dimension",
                kind.has_rank() && given(self.low_rank_dimension, other.low_rank_dimension),
            ),
            (
                "alignable_latent_dimension",
                kind == InterventionType::Autoencoder
                    && given(self.latent_dimension, other.latent_dimension),
            ),
            ("subspace_partition", self.parts() != other.parts()),
        ];
        let found = differences.into_iter().find(|(_, differ)| *differ);
        found.map(|(what, _)| what)
    }

    /// The features of each part, as ranges in order.
    fn parts(&self) -> Option<Vec<Vec<[usize; 2]>>> {
        let parts = self.subspace_partition.as_ref()?.iter();
        Some(parts.map(|part| ranges(part)).collect())
    }
}

/// The features of a part as ranges in order, each as long as can be.
fn ranges(part: &[usize]) -> Vec<[usize; 2]> {
    if let [from, to] = part {
        return if from < to {
            vec![[*from, *to]]
        } else {
            Vec::new()
        };
    }
    let mut features = part.to_vec();
    features.sort_unstable();
    features.dedup();
    let mut ranges: Vec<[usize; 2]> = Vec::new();
    for feature in features {
        match ranges.last_mut() {
            Some([_, end]) if *end == feature => *end = feature.saturating_add(1),
            _ => ranges.push([feature, feature.saturating_add(1)]),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_same_if_their_features_are() {
        assert_eq!(ranges(&[2, 5]), [[2, 5]]);
        assert_eq!(ranges(&[4, 2, 3, 2]), [[2, 5]]);
        assert_eq!(ranges(&[7]), [[7, 8]]);
        assert_eq!(ranges(&[0, 1, 5]), [[0, 2], [5, 6]]);
        assert_eq!(ranges(&[3, 3]), ranges(&[]));
    }
}
