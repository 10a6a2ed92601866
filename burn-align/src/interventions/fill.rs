//! Replacing every feature with a number: zero ablation and attention knock-out.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Intervention, Operands};

/// Replaces every feature with a number.
///
/// Zeros are usually off-distribution. See [`Ablation`](crate::methods::Ablation) for the
/// alternatives.
#[derive(Module, Clone, Debug)]
#[doc(alias = "zero ablation")]
pub struct FillIntervention {
    /// The number.
    pub value: f64,
}

impl FillIntervention {
    /// Zero ablation.
    pub const ZERO: Self = Self { value: 0.0 };

    /// Attention knock-out (Geva et al. 2023, arXiv 2304.14767): an attention score so low that no
    /// weight is left after the softmax. It is within the range of f16, so a query that loses all
    /// of its keys attends to them evenly, and not to nothing.
    pub const KNOCK_OUT: Self = Self { value: -3e4 };
}

impl<B: Backend> Intervention<B> for FillIntervention {
    fn needs_source(&self) -> bool {
        false
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let filled = base.full_like(self.value);
        operands.within_subspace(base, filled)
    }
}
