//! Interventions without parameters that add, subtract or scale.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Intervention, Operands};

/// `base + source`: steering, or noise if the source is a constant.
///
/// A large sum leaves the range of natural activations, and the model's reaction then says little
/// about how it works. Compare the norm of what is added with the norm of the base.
#[derive(Module, Clone, Debug, Default)]
#[doc(alias = "steering")]
pub struct AdditionIntervention;

impl<B: Backend> Intervention<B> for AdditionIntervention {
    fn needs_source(&self) -> bool {
        true
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        operands.within_subspace(base.clone(), base + operands.source())
    }
}

/// `base - source`.
#[derive(Module, Clone, Debug, Default)]
pub struct SubtractionIntervention;

impl<B: Backend> Intervention<B> for SubtractionIntervention {
    fn needs_source(&self) -> bool {
        true
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        operands.within_subspace(base.clone(), base - operands.source())
    }
}

/// `factor · base`.
#[derive(Module, Clone, Debug)]
pub struct ScalingIntervention {
    /// What the activation is multiplied by.
    pub factor: f64,
}

impl<B: Backend> Intervention<B> for ScalingIntervention {
    fn needs_source(&self) -> bool {
        false
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        operands.within_subspace(base.clone(), base * self.factor)
    }
}
