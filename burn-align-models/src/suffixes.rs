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
    /// The tokens that ask; `None` where all do.
    pub queries: Option<Queries<B>>,
}

/// Tokens for which attention is computed, where nobody wants it of the others: of these, only keys
/// and values are.
#[derive(Clone, Debug)]
pub struct Queries<B: Backend> {
    /// Which tokens, `[query]`, in the order in which these stand.
    pub tokens: Tensor<B, 1, Int>,
    /// The position of each, `[query]`.
    pub positions: Tensor<B, 1, Int>,
}

/// Rows whose suffixes begin and end at the same positions.
#[derive(Clone, Debug)]
pub struct SuffixClass<B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// The first position that is computed.
    pub start: usize,
    /// The first position that asks: [`start`](Self::start), or a later one.
    pub queries: usize,
    /// Number of positions of each row, with those before the suffix.
    pub pos: usize,
    /// Where the positions before the suffixes are; `None` where there are none.
    pub prefixes: Option<Prefixes<B>>,
}

/// Where the keys and values before suffixes are.
#[derive(Clone, Debug)]
pub enum Prefixes<B: Backend> {
    /// In the same batch, in some rows, each of which continues in as many suffixes, which lie
    /// behind one another.
    Here {
        /// Number of rows; a divisor of that of the suffixes.
        rows: usize,
        /// The tokens with the keys and values, `[rows * start]`, row by row.
        tokens: Tensor<B, 1, Int>,
    },
    /// Kept from an earlier pass: one prefix for each suffix.
    Kept(Vec<KeysValues<B>>),
}

/// What one layer's attention has computed for some positions.
#[derive(Clone, Debug)]
pub struct KeysValues<B: Backend> {
    /// The layer.
    pub layer: usize,
    /// Keys as queries meet them, after any rotary embedding, `[row, kv_head, start, d_head]`.
    pub keys: Tensor<B, 4>,
    /// Values, `[row, kv_head, start, d_head]`.
    pub values: Tensor<B, 4>,
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
