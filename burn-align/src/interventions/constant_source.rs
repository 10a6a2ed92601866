//! An intervention whose source is a vector that it stores.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::{Intervention, Misfit, Operands};

/// How a source is combined with the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceOperation {
    /// It replaces the base.
    Swap,
    /// It is added to the base.
    Add,
    /// It is subtracted from the base.
    Subtract,
}

/// An intervention that stores its own source, the same vector for every unit: a steering vector,
/// or a mean for ablation. The vector can be trained.
#[derive(Module, Debug)]
#[doc(alias = "source_representation")]
#[doc(alias = "steering vector")]
#[doc(alias = "mean ablation")]
pub struct ConstantSourceIntervention<B: Backend> {
    /// The vector, `[d_site]`.
    pub source: Param<Tensor<B, 1>>,
    #[module(skip)]
    operation: SourceOperation,
}

impl<B: Backend> ConstantSourceIntervention<B> {
    /// An intervention with this vector.
    ///
    /// # Shapes
    /// - source: `[d_site]`
    pub fn new(source: Tensor<B, 1>, operation: SourceOperation) -> Self {
        Self {
            source: Param::from_tensor(source),
            operation,
        }
    }

    /// How the vector is combined with the base.
    pub fn operation(&self) -> SourceOperation {
        self.operation
    }
}

impl<B: Backend> Intervention<B> for ConstantSourceIntervention<B> {
    fn needs_source(&self) -> bool {
        false
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d] = self.source.dims();
        super::TokenGrouping::Each.check(d, units, d_site)?;
        Ok(d)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let source = self.source.val().cast(base.dtype());
        let source = source.unsqueeze::<3>().expand(base.dims());
        let changed = match self.operation {
            SourceOperation::Swap => source,
            SourceOperation::Add => base.clone() + source,
            SourceOperation::Subtract => base.clone() - source,
        };
        operands.within_subspace(base, changed)
    }
}
