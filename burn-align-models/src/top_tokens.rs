//! The most probable next tokens.

use std::fmt;

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::tokens::Tokenizer;

/// A possible next token.
#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// Its text, including any space before it: see [`Tokenizer::token_strings`].
    pub text: String,
    /// Its text for display, with invisible characters marked: see [`Tokenizer::token_marks`].
    pub marks: String,
    /// Its probability.
    pub probability: f32,
}

impl fmt::Display for TopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" {:.4}", self.marks, self.probability)
    }
}

impl Tokenizer {
    /// The `k` most probable next tokens for each row of logits, the most probable one first. Of
    /// equally probable ones, the lower id comes first.
    ///
    /// A row with a logit that is NaN or +∞ gives no probabilities, so its list is empty.
    /// `Plan::find_non_finite` of `burn-align` finds where in the model that begins.
    ///
    /// # Shapes
    /// - logits: `[batch, vocab]`, or with any axes before `vocab`, such as `[batch, unit, vocab]`
    /// - output: a list for each row: `batch`, or `batch * unit` of them, examples together
    #[doc(alias = "top_vals")]
    #[doc(alias = "test_prompt")]
    pub fn top_tokens<B: Backend, const D: usize>(
        &self,
        logits: Tensor<B, D>,
        k: usize,
    ) -> Vec<Vec<TopToken>> {
        let rows = top_tokens(logits, k).into_iter();
        let named = |(id, probability)| TopToken {
            id,
            text: self.token_strings(&[id]).remove(0),
            marks: self.token_marks(&[id]).remove(0),
            probability,
        };
        rows.map(|row| row.into_iter().map(named).collect())
            .collect()
    }
}

/// The same as [`Tokenizer::top_tokens`] without a tokenizer: ids with their probabilities. A row
/// whose logits give no probabilities has an empty list.
///
/// # Shapes
/// - logits: `[batch, vocab]`, or with any axes before `vocab`, such as `[batch, unit, vocab]`
/// - output: a list for each row: `batch`, or `batch * unit` of them, examples together
pub fn top_tokens<B: Backend, const D: usize>(
    logits: Tensor<B, D>,
    k: usize,
) -> Vec<Vec<(u32, f32)>> {
    let vocab = logits.dims()[D - 1];
    let logits = logits.cast(DType::F32).into_data();
    let logits: Vec<f32> = logits.iter::<f32>().collect();
    let rows = logits.chunks(vocab.max(1));
    rows.map(|row| best(&probabilities(row), k)).collect()
}

/// Softmax, computed in f64: in f32, a sum over a large vocabulary is off by 1e-4.
fn probabilities(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponential = |logit: &f32| f64::from(logit - highest).exp();
    let sum: f64 = logits.iter().map(exponential).sum();
    let probability = |logit| (exponential(logit) / sum) as f32;
    logits.iter().map(probability).collect()
}

fn best(probabilities: &[f32], k: usize) -> Vec<(u32, f32)> {
    if probabilities.iter().any(|it| it.is_nan()) {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = (0..).zip(probabilities.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < all.len() {
        all.select_nth_unstable_by(k, order);
        all.truncate(k);
    }
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;

    use super::*;

    #[test]
    fn rows_without_probabilities_have_no_most_probable_token() {
        const INFINITY: f32 = f32::INFINITY;
        let rows = [
            [0.0, 2.0, 1.0],
            [0.0, f32::NAN, 1.0],
            [0.0, INFINITY, 1.0],
            // Ruled-out tokens come last.
            [0.0, -INFINITY, 1.0],
        ];
        let logits = Tensor::<Flex, 2>::from_floats(rows, &FlexDevice);
        let ids = top_tokens(logits, 2)
            .into_iter()
            .map(|row| row.into_iter().map(|(id, _)| id).collect());
        let ids: Vec<Vec<u32>> = ids.collect();
        assert_eq!(ids, [vec![1, 2], vec![], vec![], vec![2, 0]]);
    }
}
