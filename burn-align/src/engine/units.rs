//! Which part of an activation is read or changed: heads and positions, per example.

use std::ops::Range;

/// Indices along one axis of an activation, for each example.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Indices {
    /// Every index.
    All,
    /// The same indices in every example.
    Same(Vec<usize>),
    /// `[batch][unit]`: separate indices for each example; all examples have the same number of
    /// them.
    Each(Vec<Vec<usize>>),
}

impl From<usize> for Indices {
    fn from(index: usize) -> Self {
        Self::same([index])
    }
}

impl From<Range<usize>> for Indices {
    fn from(range: Range<usize>) -> Self {
        Self::same(range)
    }
}

impl Indices {
    /// The same indices in every example: `Indices::same([1, 3])`. A single index or a range also
    /// converts: `1.into()`, `(1..4).into()`.
    pub fn same(indices: impl IntoIterator<Item = usize>) -> Self {
        Self::Same(indices.into_iter().collect())
    }

    /// One index for each example: `Indices::one_each([4, 2])` is 4 in the first example and 2 in
    /// the second.
    pub fn one_each(indices: impl IntoIterator<Item = usize>) -> Self {
        Self::each(indices.into_iter().map(|index| [index]))
    }

    /// The same number of indices for each example: `Indices::each([[0, 4], [0, 2]])`, or ranges.
    pub fn each(examples: impl IntoIterator<Item = impl IntoIterator<Item = usize>>) -> Self {
        let examples = examples.into_iter().map(|it| it.into_iter().collect());
        Self::Each(examples.collect())
    }

    /// The indices of one example, on an axis with `size` entries.
    pub(crate) fn of(&self, example: usize, size: usize) -> Vec<usize> {
        match self {
            Self::All => (0..size).collect(),
            Self::Same(indices) => indices.clone(),
            Self::Each(examples) => examples[example].clone(),
        }
    }

    /// The indices of one example; `None` if these are all.
    pub(crate) fn listed(&self, example: usize) -> Option<&[usize]> {
        match self {
            Self::All => None,
            Self::Same(indices) => Some(indices),
            Self::Each(examples) => Some(&examples[example]),
        }
    }

    /// Number of indices per example, on an axis with `size` entries.
    pub(crate) fn count(&self, size: usize) -> usize {
        match self {
            Self::All => size,
            Self::Same(indices) => indices.len(),
            Self::Each(examples) => examples.first().map_or(0, Vec::len),
        }
    }
}

/// A part of an activation: some heads at some positions.
///
/// An intervention sees it as `[batch, unit, d_site]`: the units are the positions, and the
/// features of the chosen heads are concatenated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "unit location")]
pub struct Units {
    /// Which heads, at sites that have heads.
    pub heads: Indices,
    /// Which positions.
    pub positions: Indices,
}

impl Units {
    /// The whole activation.
    pub const ALL: Self = Self {
        heads: Indices::All,
        positions: Indices::All,
    };

    /// All heads at one position, the same in every example.
    pub fn position(position: usize) -> Self {
        Self::positions(position)
    }

    /// All heads at some positions.
    pub fn positions(positions: impl Into<Indices>) -> Self {
        Self {
            heads: Indices::All,
            positions: positions.into(),
        }
    }

    /// One head at all positions.
    pub fn head(head: usize) -> Self {
        Self {
            heads: Indices::Same(vec![head]),
            positions: Indices::All,
        }
    }

    /// Restricts the units to one head.
    pub fn of_head(mut self, head: usize) -> Self {
        self.heads = Indices::Same(vec![head]);
        self
    }
}
