//! Where queries, keys and values lie.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;

/// Vectors of heads: those of a token are features, which lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub(super) elements: &'a [f32],
    /// The first element.
    pub(super) start: usize,
    /// Strides of rows, heads and tokens.
    pub(super) strides: [usize; 3],
}

impl<'a> Vectors<'a> {
    /// Those of `[row, head, token, d_head]`, [in vectors](crate::strided::in_vectors).
    pub(super) fn of(x: &'a FlexTensor) -> Self {
        let layout = x.layout();
        Self {
            elements: x.storage(),
            start: layout.start_offset(),
            strides: [0, 1, 2].map(|axis| layout.strides()[axis] as usize),
        }
    }

    /// Of the tokens of a single row, rows of this many each, one after the other from `first` on.
    pub(super) fn in_rows(self, first: usize, len: usize) -> Self {
        let [_of_row, of_head, of_token] = self.strides;
        Self {
            start: self.start + first * of_token,
            strides: [len * of_token, of_head, of_token],
            ..self
        }
    }

    /// A vector of this many features.
    #[inline(always)]
    pub(super) fn at(&self, [row, head, token]: [usize; 3], width: usize) -> &'a [f32] {
        let [of_row, of_head, of_token] = self.strides;
        let first = self.start + row * of_row + head * of_head + token * of_token;
        &self.elements[first..][..width]
    }
}

/// Keys and values of some rows at some of their positions.
pub(super) struct Part<'a> {
    /// Number of rows. It divides that of the rows that attend: adjacent ones share a row.
    pub(super) rows: usize,
    /// Number of positions.
    pub(super) count: usize,
    pub(super) keys: Vectors<'a>,
    pub(super) values: Vectors<'a>,
    /// The token of each position, row by row, if they are not in order.
    pub(super) tokens: Option<&'a [usize]>,
}

impl<'a> Part<'a> {
    /// All positions of some rows, in order.
    pub(super) fn of([keys, values]: [&'a FlexTensor; 2]) -> Self {
        let [rows, _kv_head, count, _d_head] = keys.shape().dims();
        Self {
            rows,
            count,
            keys: Vectors::of(keys),
            values: Vectors::of(values),
            tokens: None,
        }
    }

    /// Where a position of a row is: row and token.
    #[inline(always)]
    pub(super) fn place(&self, row: usize, position: usize) -> [usize; 2] {
        match self.tokens {
            Some(tokens) => [0, tokens[row * self.count + position]],
            None => [row, position],
        }
    }
}

/// Rows with the same numbers of keys and queries.
pub(super) struct Rows<'a> {
    pub(super) rows: usize,
    /// Queries of a row: those of its last positions.
    pub(super) queries: usize,
    pub(super) q: Vectors<'a>,
    /// In the order of their positions; the last one has the rows' own keys, at least one for each
    /// query.
    pub(super) parts: Vec<Part<'a>>,
}

impl Rows<'_> {
    /// Number of keys of a row.
    pub(super) fn count(&self) -> usize {
        self.parts.iter().map(|part| part.count).sum()
    }

    /// Number of keys of a row's own.
    pub(super) fn own(&self) -> usize {
        self.parts.last().map_or(0, |part| part.count)
    }

    /// The parts of a row that are not those of the row before it in a task: each with its row, and
    /// with the place of its first key among all.
    #[inline(always)]
    pub(super) fn other_parts(
        &self,
        row: usize,
        last: Option<usize>,
    ) -> impl Iterator<Item = (&Part<'_>, usize, usize)> {
        let mut next = 0;
        self.parts.iter().filter_map(move |part| {
            let first = next;
            next += part.count;
            // Rows that share one are adjacent.
            let place = |row: usize| row / (self.rows / part.rows);
            (last.map(place) != Some(place(row))).then(|| (part, place(row), first))
        })
    }

    /// Multiplications for one row.
    pub(super) fn cost(&self, [heads, _kv_heads, d_head]: [usize; 3]) -> usize {
        2 * self.queries * self.count() * heads * d_head
    }
}
