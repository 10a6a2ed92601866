//! Interventions from closures.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use burn::module::{AutodiffModule, Content, Module, ModuleDisplay, ModuleDisplayDefault};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{Intervention, Operands};

type Function<B> = Arc<dyn Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync>;

/// Your own intervention as a closure `f(base, operands)`. `base` and the result are
/// `[batch, unit, d_site]`. Outside of the subspace, the result is ignored.
///
/// Convert it to a [`BuiltinIntervention`](super::BuiltinIntervention) with
/// `LambdaIntervention::new(…).into()` to mix it with others. A closure has no parameters, so it
/// cannot be trained or saved; for that, implement [`Intervention`] for your own type.
#[derive(Clone)]
pub struct LambdaIntervention<B: Backend> {
    function: Function<B>,
    needs_source: bool,
    /// The function on the autodiff backend, if this one was derived from it.
    origin: Option<Arc<dyn Any + Send + Sync>>,
}

impl<B: Backend> LambdaIntervention<B> {
    /// A closure without a source.
    pub fn new(
        function: impl Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync + 'static,
    ) -> Self {
        Self {
            function: Arc::new(function),
            needs_source: false,
            origin: None,
        }
    }

    /// A closure with a source.
    pub fn with_source(
        function: impl Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync + 'static,
    ) -> Self {
        Self {
            needs_source: true,
            ..Self::new(function)
        }
    }
}

impl<B: Backend> fmt::Debug for LambdaIntervention<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LambdaIntervention")
            .field("needs_source", &self.needs_source)
            .finish_non_exhaustive()
    }
}

// A closure has no parameters and cannot derive what every module needs.
impl<B: Backend> Module<B> for LambdaIntervention<B> {
    burn::empty!(module);
}

impl<B: Backend> ModuleDisplayDefault for LambdaIntervention<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"LambdaIntervention").optional()
    }
}

impl<B: Backend> ModuleDisplay for LambdaIntervention<B> {}

impl<B: AutodiffBackend> AutodiffModule<B> for LambdaIntervention<B> {
    type InnerModule = LambdaIntervention<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        let function = Arc::clone(&self.function);
        LambdaIntervention {
            function: Arc::new(move |base, operands: &Operands<_>| {
                let operands = Operands {
                    source: operands.source.clone().map(Tensor::from_inner),
                    subspace: operands.subspace.clone().map(Tensor::from_inner),
                };
                function(Tensor::from_inner(base), &operands).inner()
            }),
            needs_source: self.needs_source,
            origin: Some(Arc::new(Arc::clone(&self.function))),
        }
    }

    /// # Panics
    /// If the closure was not created on the autodiff backend: it has no gradient.
    fn from_inner(module: Self::InnerModule) -> Self {
        let origin = module.origin.as_deref();
        let function = origin.and_then(<dyn Any + Send + Sync>::downcast_ref::<Function<B>>);
        let function = function.expect("a closure made on the backend that differentiates");
        Self {
            function: Arc::clone(function),
            needs_source: module.needs_source,
            origin: None,
        }
    }
}

impl<B: Backend> Intervention<B> for LambdaIntervention<B> {
    fn needs_source(&self) -> bool {
        self.needs_source
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let changed = (self.function)(base.clone(), &operands);
        operands.within_subspace(base, changed)
    }
}
