//! Token ids of several examples, as a model reads them.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::TokensError;
use crate::dims::ModelDims;

/// Token ids of a batch of examples, each with its own length.
///
/// As a tensor the batch is padded on the right. Under a causal mask the padding cannot reach the
/// real positions, so it changes nothing there; what a model computes *at* padding is meaningless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<Vec<u32>>,
}

impl TokenBatch {
    /// A batch of examples.
    ///
    /// # Errors
    /// If there is no example, or an example has no token.
    pub fn new(ids: Vec<Vec<u32>>) -> Result<Self, TokensError> {
        if ids.is_empty() {
            return Err(TokensError::EmptyBatch);
        }
        if let Some(example) = ids.iter().position(Vec::is_empty) {
            return Err(TokensError::EmptyExample { example });
        }
        Ok(Self { ids })
    }

    /// Token ids of each example.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// Number of examples.
    pub fn batch(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions of the longest example.
    pub fn pos(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Number of real tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.ids.iter().map(Vec::len).collect()
    }

    /// The position of the last token of each example.
    pub fn last_positions(&self) -> Vec<usize> {
        self.ids.iter().map(|ids| ids.len() - 1).collect()
    }

    /// Some of the examples, in this order; one may be named several times.
    ///
    /// # Errors
    /// If none is named, or one is out of range.
    pub fn select(&self, examples: &[usize]) -> Result<Self, TokensError> {
        let batch = self.batch();
        let ids = examples.iter().map(|example| {
            let ids = self.ids.get(*example).cloned();
            ids.ok_or(TokensError::NoSuchExample {
                found: *example,
                batch,
            })
        });
        Self::new(ids.collect::<Result<_, _>>()?)
    }

    /// Checks that a model of these sizes can read the batch.
    ///
    /// # Errors
    /// If a token is unknown to the model or an example is too long for it.
    pub fn check(&self, dims: &ModelDims) -> Result<(), TokensError> {
        for (example, ids) in self.ids.iter().enumerate() {
            if let Some(max_positions) = dims.max_positions.filter(|max| ids.len() > *max) {
                return Err(TokensError::TooLong {
                    example,
                    found: ids.len(),
                    max_positions,
                });
            }
            if let Some(pos) = ids.iter().position(|id| *id as usize >= dims.vocab) {
                return Err(TokensError::UnknownToken {
                    example,
                    pos,
                    found: ids[pos],
                    vocab: dims.vocab,
                });
            }
        }
        Ok(())
    }

    /// The ids, padded on the right with 0.
    ///
    /// # Shapes
    /// - output: `[batch, pos]`
    pub fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2, Int> {
        let (batch, pos) = (self.batch(), self.pos());
        let mut padded = vec![0_i64; batch * pos];
        for (row, ids) in padded.chunks_mut(pos).zip(&self.ids) {
            for (slot, id) in row.iter_mut().zip(ids) {
                *slot = i64::from(*id);
            }
        }
        Tensor::from_data(TensorData::new(padded, [batch, pos]), device)
    }
}
