/// Indices along one axis of an activation, for each example.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Indices {
    /// Every index.
    All,
    /// The same indices in every example.
    Same(Vec<usize>),
    /// `[batch][unit]`: each example its own; all examples have the same number.
    Each(Vec<Vec<usize>>),
}

impl Indices {
    /// The indices of one example, on an axis with `size` entries.
    pub(crate) fn of(&self, example: usize, size: usize) -> Vec<usize> {
        match self {
            Self::All => (0..size).collect(),
            Self::Same(indices) => indices.clone(),
            Self::Each(examples) => examples[example].clone(),
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
/// An intervention sees it as `[batch, unit, d_site]`, where the units are the positions, and the
/// features of the chosen heads stand side by side.
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
        Self::positions(Indices::Same(vec![position]))
    }

    /// All heads at some positions.
    pub fn positions(positions: Indices) -> Self {
        Self {
            heads: Indices::All,
            positions,
        }
    }

    /// One head at all positions.
    pub fn head(head: usize) -> Self {
        Self {
            heads: Indices::Same(vec![head]),
            positions: Indices::All,
        }
    }

    /// The same positions of one head.
    pub fn of_head(mut self, head: usize) -> Self {
        self.heads = Indices::Same(vec![head]);
        self
    }
}
