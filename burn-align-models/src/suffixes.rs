//! Rows of which only the last positions go through a block.

use burn::tensor::{Int, Tensor, backend::Backend};

/// Which positions of which rows a block computes, where the others are known already.
///
/// Under a causal mask a row that differs from another one only from some position on has the
/// same keys and values before it. Then only its *suffix* is computed, and its queries look at the
/// other row's keys in front of its own.
///
/// The block sees all suffixes as one row of *tokens*, `[1, token, d_model]`: class by class, row
/// by row, position by position. Only attention has to know where one ends.
#[derive(Clone, Debug)]
pub struct Suffixes<B: Backend> {
    /// The position of each token, `[token]`.
    pub positions: Tensor<B, 1, Int>,
    /// Rows whose suffixes begin and end at the same positions.
    pub classes: Vec<SuffixClass<B>>,
}

/// Rows whose suffixes begin and end at the same positions.
#[derive(Clone, Debug)]
pub struct SuffixClass<B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// The first position that is computed.
    pub start: usize,
    /// Number of positions of each row, with those before the suffix.
    pub pos: usize,
    /// Where the positions before the suffixes are; `None` where there are none.
    pub prefixes: Option<Prefixes<B>>,
}

/// The positions before suffixes: of some rows, each of which continues in as many suffixes, which
/// lie behind one another.
#[derive(Clone, Debug)]
pub struct Prefixes<B: Backend> {
    /// Number of rows; a divisor of that of the suffixes.
    pub rows: usize,
    /// The tokens with their keys and values, `[rows * start]`, row by row.
    pub tokens: Tensor<B, 1, Int>,
}

impl<B: Backend> SuffixClass<B> {
    /// Number of positions of each suffix.
    pub fn len(&self) -> usize {
        self.pos - self.start
    }

    /// Whether the suffixes are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
