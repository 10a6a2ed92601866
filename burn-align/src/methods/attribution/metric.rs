//! What effects are measured on.

use std::collections::BTreeSet;

use burn::tensor::{Tensor, backend::Backend};

use super::AttributionError;
use crate::engine::LogitPositions;
use crate::methods::logit_differences;

/// One number for each example, computed from its logits, on any backend: an estimate needs it with
/// gradients, exact patching without.
///
/// The metric of an example must depend on this example alone: examples are run in parts.
///
/// ```
/// use burn::tensor::{Tensor, backend::Backend};
/// use burn_align::methods::attribution::Metric;
/// use burn_align::methods::cross_entropies;
///
/// /// The surprisal of one token for each example.
/// struct Surprisal(Vec<u32>);
///
/// impl Metric for Surprisal {
///     fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
///         let tokens: Vec<u32> = examples.iter().map(|example| self.0[*example]).collect();
///         cross_entropies(logits.squeeze_dim(1), &tokens)
///     }
/// }
/// ```
///
/// # When it misleads
/// A probability saturates, and its gradient vanishes there. A divergence from the base's own
/// prediction has a minimum at the base, so its gradient is zero, and so is every estimate from it:
/// use [`integrated_gradients`](super::integrated_gradients), or another metric.
pub trait Metric {
    /// The positions whose logits it reads. Default: the last token of each example.
    fn positions(&self) -> LogitPositions {
        LogitPositions::Last
    }

    /// Checks that the metric fits this many examples and tokens. Default: it fits.
    ///
    /// # Errors
    /// [`AttributionError::Metric`] if it does not.
    fn check(&self, batch: usize, vocab: usize) -> Result<(), AttributionError> {
        let _any = (batch, vocab);
        Ok(())
    }

    /// The metric of some examples.
    ///
    /// - examples: their indices among all examples
    ///
    /// # Shapes
    /// - logits: `[batch, unit, vocab]`, with a unit for each of the [positions](Self::positions)
    /// - output: `[batch]`
    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1>;

    /// The same metric of the logits of a few tokens: their ids, and a metric of
    /// `[batch, unit, token]`, in which the place of a token among them takes the place of its id.
    /// Exact patching of edges and the evaluation of circuits then compute no other logits, which
    /// changes values by no more than rounding. It is called with a metric that fits
    /// ([`check`](Self::check)). Default: `None`, all logits are read.
    fn narrowed(&self) -> Option<(Vec<u32>, Self)>
    where
        Self: Sized,
    {
        None
    }
}

/// By how much the logit of one token exceeds that of another after the last token of each example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogitDifference {
    tokens: Vec<u32>,
    others: Vec<u32>,
}

impl LogitDifference {
    /// `logit(token) − logit(other)`, with two tokens for each example, or one pair for all.
    pub fn new(tokens: impl Into<Vec<u32>>, others: impl Into<Vec<u32>>) -> Self {
        Self {
            tokens: tokens.into(),
            others: others.into(),
        }
    }

    /// The token of each of these examples.
    fn chosen(tokens: &[u32], examples: &[usize]) -> Vec<u32> {
        match tokens {
            [token] => vec![*token; examples.len()],
            _ => examples.iter().map(|example| tokens[*example]).collect(),
        }
    }
}

impl Metric for LogitDifference {
    fn check(&self, batch: usize, vocab: usize) -> Result<(), AttributionError> {
        for (what, tokens) in [("tokens", &self.tokens), ("other tokens", &self.others)] {
            if tokens.len() != batch && tokens.len() != 1 {
                return Err(AttributionError::Metric {
                    what,
                    expected: format!("one for each of {batch} examples, or one for all"),
                    found: tokens.len().to_string(),
                });
            }
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
                return Err(AttributionError::Metric {
                    what,
                    expected: format!("ids below {vocab}"),
                    found: token.to_string(),
                });
            }
        }
        Ok(())
    }

    fn values<B: Backend>(&self, logits: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 1> {
        let tokens = Self::chosen(&self.tokens, examples);
        let others = Self::chosen(&self.others, examples);
        logit_differences(logits.squeeze_dim(1), &tokens, &others)
    }

    fn narrowed(&self) -> Option<(Vec<u32>, Self)> {
        let all: BTreeSet<u32> = self.tokens.iter().chain(&self.others).copied().collect();
        let all: Vec<u32> = all.into_iter().collect();
        let places = |tokens: &[u32]| -> Vec<u32> {
            let before = |token: &u32| all.partition_point(|other| other < token) as u32;
            tokens.iter().map(before).collect()
        };
        let narrowed = Self::new(places(&self.tokens), places(&self.others));
        Some((all, narrowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_tokens_take_the_place_of_their_ids() {
        let metric = LogitDifference::new([7, 3, 7], [900]);
        let (tokens, narrowed) = metric.narrowed().expect("a few tokens");
        assert_eq!(tokens, [3, 7, 900]);
        assert_eq!(narrowed, LogitDifference::new([1, 0, 1], [2]));
    }
}
