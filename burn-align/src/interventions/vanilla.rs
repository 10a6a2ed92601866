use std::marker::PhantomData;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Intervention, Operands};

/// The interchange intervention: the source's activation takes the place of the base's
/// (Geiger et al. 2021, arXiv 2106.02997).
#[derive(Module, Debug)]
#[doc(alias = "interchange intervention")]
#[doc(alias = "activation patching")]
pub struct VanillaIntervention<B: Backend> {
    _backend: PhantomData<B>,
}

impl<B: Backend> VanillaIntervention<B> {
    /// The intervention; it has no parameters.
    pub fn new() -> Self {
        Self {
            _backend: PhantomData,
        }
    }
}

impl<B: Backend> Default for VanillaIntervention<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> Intervention<B> for VanillaIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        operands.source.unwrap_or(base)
    }
}
