//! Replacing every feature with a number: zero ablation and attention knock-out.

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::{Change, Features, Operation};
use crate::interventions::parts::saved_as_numbers;

/// Replaces every feature with a number.
///
/// Zeros are usually off-distribution. See [`Ablation`](crate::methods::Ablation) for the
/// alternatives.
#[derive(Module, Clone, Debug)]
#[doc(alias = "zero ablation")]
pub struct Fill {
    /// The number.
    pub value: f64,
}

impl Fill {
    /// Zero ablation; on directions, this projects them out.
    #[doc(alias = "project out")]
    pub const ZERO: Self = Self { value: 0.0 };

    /// Attention knock-out (Geva et al. 2023, arXiv 2304.14767): an attention score so low that no
    /// weight is left after the softmax. It is within the range of f16, so a query that loses all
    /// of its keys attends to them evenly, and not to nothing.
    pub const KNOCK_OUT: Self = Self { value: -3e4 };
}

impl<B: Backend> Operation<B> for Fill {
    fn is_local(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Value(features.base().full_like(self.value))
    }
}

saved_as_numbers!(Fill { value });
