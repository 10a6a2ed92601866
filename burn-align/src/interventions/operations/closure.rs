//! Operations from closures.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use burn::module::{AutodiffModule, Content, Module, ModuleDisplay, ModuleDisplayDefault};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{Change, Features, Operation};
use crate::interventions::Operands;
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

type Function<B> = Arc<dyn Fn(Tensor<B, 3>, &Operands<B>) -> Tensor<B, 3> + Send + Sync>;

/// Your own operation as a closure `f(base, operands)`. `base`, the source and the result are
/// `[batch, unit, d_site]`, or `[batch, vector, feature]` on a featurizer. Outside of the subspace,
/// the result is ignored.
///
/// Convert it to a [`BuiltinIntervention`](crate::interventions::BuiltinIntervention) with
/// `Closure::new(…).into()` to mix it with others. A closure has no parameters, so it cannot be
/// trained or saved; for that, implement [`Operation`] for your own type.
#[derive(Clone)]
pub struct Closure<B: Backend> {
    function: Function<B>,
    needs_source: bool,
    /// The function on the autodiff backend, if this one was derived from it.
    origin: Option<Arc<dyn Any + Send + Sync>>,
}

impl<B: Backend> Closure<B> {
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

impl<B: Backend> fmt::Debug for Closure<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closure")
            .field("needs_source", &self.needs_source)
            .finish_non_exhaustive()
    }
}

// A closure has no parameters and cannot derive what every module needs.
impl<B: Backend> Module<B> for Closure<B> {
    burn::empty!(module);
}

impl<B: Backend> ModuleDisplayDefault for Closure<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"Closure").optional()
    }
}

impl<B: Backend> ModuleDisplay for Closure<B> {}

impl<B: AutodiffBackend> AutodiffModule<B> for Closure<B> {
    type InnerModule = Closure<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        let function = Arc::clone(&self.function);
        Closure {
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

impl<B: Backend> Operation<B> for Closure<B> {
    fn needs_source(&self) -> bool {
        self.needs_source
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Value((self.function)(features.base(), &features.operands()))
    }
}

impl<B: Backend> Part<B> for Closure<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        Err(SaveInterventionsError::Closure {
            intervention: out.index,
        })
    }

    fn restore(_from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let reason = "a closure cannot be saved, and so not be loaded";
        Err(PartError::Description(reason.to_owned()))
    }
}
