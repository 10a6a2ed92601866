//! The plain interchange intervention.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Intervention, Operands};

/// The interchange intervention: the source's activation replaces the base's (Geiger et al. 2021,
/// arXiv 2106.02997).
#[derive(Module, Clone, Debug, Default)]
#[doc(alias = "interchange intervention")]
#[doc(alias = "activation patching")]
pub struct VanillaIntervention;

impl<B: Backend> Intervention<B> for VanillaIntervention {
    fn needs_source(&self) -> bool {
        true
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        operands.within_subspace(base, operands.source())
    }
}
