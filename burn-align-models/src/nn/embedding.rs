//! Vectors of tokens.

use burn::module::{Module, Param};
use burn::tensor::module::embedding;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::projection;
use super::weight::{Orientation, Weight};
use crate::model::ModelInput;

/// A vector for each token; also turns the residual stream into logits in models without a separate
/// head.
#[derive(Module, Debug)]
pub struct TokenEmbedding<B: Backend> {
    /// `[vocab, d_model]`.
    pub weight: Weight<B>,
}

impl<B: Backend> TokenEmbedding<B> {
    /// # Shapes
    /// - weight: `[vocab, d_model]`
    pub fn new(weight: Param<Tensor<B, 2>>) -> Self {
        Self {
            weight: Weight::new(weight, Orientation::Same),
        }
    }

    /// The vectors of tokens.
    ///
    /// # Shapes
    /// - tokens: `[batch, pos]`
    /// - output: `[batch, pos, d_model]`
    ///
    /// # Panics
    /// If a token is not in the vocabulary and the backend checks indices, as those on CPUs do.
    /// Nothing is read back from the device to check them here: token ids are checked on the host,
    /// by [`TokenBatch::check`](crate::TokenBatch::check), before they become a tensor.
    pub fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let Some(matrix) = self.weight.quantized() else {
            return looked_up(self.weight.parts(), tokens);
        };
        let [batch, pos] = tokens.dims();
        let [_vocab, d_model] = matrix.dims();
        let device = tokens.device();
        let mut vectors = vec![0.0; batch * pos * d_model];
        let ids = tokens.into_data();
        for (id, vector) in ids.iter::<u64>().zip(vectors.chunks_mut(d_model)) {
            matrix.read_row(id as usize, vector);
        }
        let vectors = TensorData::new(vectors, [batch, pos, d_model]);
        Tensor::from_data(vectors, (&device, DType::F32))
    }

    /// The vectors of tokens, or those that are given in their place.
    ///
    /// # Shapes
    /// - output: `[batch, pos, d_model]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn embed(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        match input {
            ModelInput::Tokens(tokens) => self.forward(tokens),
            ModelInput::Features(vectors) => vectors,
        }
    }

    /// `x Eᵀ`: logits, where the head is tied to the embedding.
    ///
    /// # Shapes
    /// - x: `[batch, pos, d_model]`
    /// - output: `[batch, pos, vocab]`
    pub fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, pos, d_model] = x.dims();
        let [vocab, _d_model] = self.weight.dims();
        let x = x.reshape([batch * pos, d_model]);
        let logits = match self.weight.quantized() {
            Some(matrix) => projection::affine_quantized(x, matrix, None),
            None => {
                let parts = self.weight.parts().into_iter();
                let parts = parts.map(Tensor::transpose); // [d_model, part]
                projection::affine_in_parts(x, parts.collect(), None)
            }
        };
        logits.reshape([batch, pos, vocab])
    }
}

/// The vectors of tokens, from a table in parts. What the backend does about a token that is not in
/// the table, it does with one in parts as well.
///
/// # Shapes
/// - parts: `[part, d_model]` each
/// - tokens: `[batch, pos]`
/// - output: `[batch, pos, d_model]`
fn looked_up<B: Backend>(mut parts: Vec<Tensor<B, 2>>, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    if parts.len() == 1 {
        return embedding(parts.remove(0), tokens);
    }
    let mut first: i64 = 0;
    let mut vectors: Option<Tensor<B, 3>> = None;
    let last_part = parts.len() - 1;
    for (index, part) in parts.into_iter().enumerate() {
        let [count, _d_model] = part.dims();
        let last = count as i64 - 1;
        let own = tokens.clone() - first;
        // Tokens of other parts get some vector, which is replaced or not taken. Those before the
        // first part and after the last one are in none, and stay out of range.
        let own = match index {
            0 => own.clamp_max(last),
            _ if index == last_part => own.clamp_min(0),
            _ => own.clamp(0, last),
        };
        let own = embedding(part, own);
        vectors = Some(match vectors {
            None => own,
            Some(before) => {
                let here = tokens.clone().greater_equal_elem(first);
                let here = here.unsqueeze_dim::<3>(2).expand(own.shape());
                before.mask_where(here, own)
            }
        });
        first += count as i64;
    }
    vectors.expect("a split weight has parts")
}
