use std::any::Any;
use std::fmt;
use std::sync::Arc;

use burn::module::{AutodiffModule, Content, Module, ModuleDisplay, ModuleDisplayDefault};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{Intervention, Operands};

type Function<B> = Arc<dyn Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync>;

/// An intervention of your own, as a closure `f(base, operands)`, with `base` and the result
/// `[batch, unit, d_site]`. Outside of a subspace, what it gives is not used.
///
/// As a [`BuiltinIntervention`](super::BuiltinIntervention) it stands beside any others:
/// `LambdaIntervention::new(…).into()`. It has no parameters, is not trained and cannot be saved;
/// for that, implement [`Intervention`] for a type of your own.
#[derive(Clone)]
pub struct LambdaIntervention<B: Backend> {
    function: Function<B>,
    needs_source: bool,
    /// The function on the backend that differentiates, where this one was taken from it.
    origin: Option<Arc<dyn Any + Send + Sync>>,
}

impl<B: Backend> LambdaIntervention<B> {
    /// A closure that takes no source.
    pub fn new(
        function: impl Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync + 'static,
    ) -> Self {
        Self {
            function: Arc::new(function),
            needs_source: false,
            origin: None,
        }
    }

    /// A closure that takes a source.
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

// A closure has no parameters, and cannot derive what all modules need.
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
    /// If the closure was not made on the backend that differentiates: it has no gradient.
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
