//! What a model says next.

use anyhow::{Context, Result};
use burn::tensor::{DType, Tensor, activation, backend::Backend};
use burn_align_models::Tokenizer;
use serde::Serialize;

/// A possible next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Its id.
    pub id: u32,
    /// Its text, where there is a tokenizer.
    pub token: Option<String>,
    /// Its probability.
    pub probability: f32,
}

/// Probabilities of all next tokens, for each row of logits.
///
/// # Shapes
/// - logits: `[row, vocab]`
pub fn probabilities<B: Backend>(logits: Tensor<B, 2>) -> Result<Vec<Vec<f32>>> {
    let [_rows, vocab] = logits.dims();
    let probabilities = activation::softmax(logits.cast(DType::F32), 1).into_data();
    let values = probabilities
        .as_slice::<f32>()
        .ok()
        .context("probabilities are f32")?;
    Ok(values.chunks(vocab).map(<[f32]>::to_vec).collect())
}

/// The most probable tokens, the first one first.
pub fn top_k(probabilities: &[f32], k: usize, tokenizer: Option<&Tokenizer>) -> Vec<Prediction> {
    let mut ids: Vec<u32> = (0..probabilities.len() as u32).collect();
    ids.sort_by(|a, b| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]));
    ids.truncate(k);
    ids.into_iter()
        .map(|id| Prediction {
            id,
            token: tokenizer.and_then(|t| t.token_strings(&[id]).pop()),
            probability: probabilities[id as usize],
        })
        .collect()
}
