use std::fmt;

use burn::module::{AutodiffModule, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{Intervention, Operands};

/// An intervention of your own, as a closure `f(base, operands)`, with `base` and the result
/// `[batch, unit, d_site]`.
///
/// For one with parameters, or to mix closures with other interventions, implement
/// [`Intervention`] for a type of your own.
#[derive(Clone)]
pub struct LambdaIntervention<F> {
    function: F,
    needs_source: bool,
}

impl<F> LambdaIntervention<F> {
    /// A closure that takes no source.
    pub fn new(function: F) -> Self {
        Self {
            function,
            needs_source: false,
        }
    }

    /// A closure that takes a source.
    pub fn with_source(function: F) -> Self {
        Self {
            function,
            needs_source: true,
        }
    }
}

impl<F> fmt::Debug for LambdaIntervention<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LambdaIntervention")
            .field("needs_source", &self.needs_source)
            .finish_non_exhaustive()
    }
}

// A closure has no parameters, and cannot derive what all modules need.
impl<B: Backend, F: Clone + Send> Module<B> for LambdaIntervention<F> {
    burn::empty!(module);
}

impl<B: AutodiffBackend, F: Clone + Send> AutodiffModule<B> for LambdaIntervention<F> {
    burn::empty!(ad_module, Self);
}

impl<B, F> Intervention<B> for LambdaIntervention<F>
where
    B: Backend,
    F: Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Clone + Send,
{
    fn needs_source(&self) -> bool {
        self.needs_source
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let changed = (self.function)(base.clone(), &operands);
        operands.within_subspace(base, changed)
    }
}
