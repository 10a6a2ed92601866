//! Rows of which only the last positions are computed.

use burn::tensor::{Int, Tensor, backend::Backend};

/// Which positions of which rows a sublayer computes, when the others are already known.
///
/// Under a causal mask, a row that differs from another one only from some position on has the same
/// keys and values before that position. Then only its *suffix* is computed, and its queries attend
/// to the other row's keys before its own.
///
/// A sublayer sees all suffixes as one row of *tokens*, `[1, token, d_model]`: class by class, row
/// by row, position by position. Only attention needs to know where one ends.
#[derive(Clone, Debug)]
pub struct Suffixes<B: Backend> {
    /// The position of each token, `[token]`.
    pub positions: Tensor<B, 1, Int>,
    /// Rows whose suffixes begin and end at the same positions.
    pub classes: Vec<SuffixClass<B>>,
    /// The tokens with a query; `None` if all have one.
    pub queries: Option<Queries<B>>,
}

/// Tokens for which attention is computed. The others are not read later, so only their keys and
/// values are computed.
#[derive(Clone, Debug)]
pub struct Queries<B: Backend> {
    /// Indices of the tokens, `[query]`, in token order.
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
    /// The first position with a query: [`start`](Self::start), or a later one.
    pub queries: usize,
    /// Number of positions of each row, including those before the suffix.
    pub pos: usize,
    /// Where the positions before the suffixes are; `None` where there are none.
    pub prefixes: Option<Prefixes<B>>,
}

/// Where the keys and values before suffixes are.
#[derive(Clone, Debug)]
pub enum Prefixes<B: Backend> {
    /// In some rows of the same batch, each continued by the same number of suffixes, which are
    /// adjacent.
    Here {
        /// Number of rows; divides the number of suffixes.
        rows: usize,
        /// The tokens with the keys and values, `[rows * start]`, row by row.
        tokens: Tensor<B, 1, Int>,
    },
    /// Kept from earlier passes, for each layer that is run: one part or more, in the order of
    /// their positions. The rows of a part divide the suffixes, and each is continued by the same
    /// number of them, which are adjacent. Positions further back than a layer's window may be left
    /// out.
    Kept(Vec<KeysValues<B>>),
}

/// Keys and values that one layer's attention has computed for some positions.
#[derive(Clone, Debug)]
pub struct KeysValues<B: Backend> {
    /// The layer.
    pub layer: usize,
    /// Keys as used in the products with queries, after any rotary embedding, `[row, kv_head,
    /// pos, d_head]`.
    pub keys: Tensor<B, 4>,
    /// Values, `[row, kv_head, pos, d_head]`.
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
