//! One type of all compositions of the crate's parts, so that a model can mix them.

use std::ops::{Deref, DerefMut};

use burn::module::{Module, ParamId};
use burn::tensor::{Tensor, backend::Backend};

use super::featurizers::BuiltinFeaturizer;
use super::masks::BuiltinMask;
use super::operations::BuiltinOperation;
use super::{Composed, Intervention, Misfit, Operands, Orthonormal};

/// Any composition of the featurizers, operations and masks that come with this crate.
///
/// Made from any of them by `into()`:
///
/// ```
/// use burn_align::interventions::{
///     AddNorm, BuiltinIntervention, Composed, Orthonormal, OrthonormalMap, Rotation,
///     VanillaIntervention,
/// };
///
/// # type B = burn::backend::Flex;
/// # let device = Default::default();
/// let rotation = Orthonormal::<B>::random([8, 2], OrthonormalMap::Retraction, 0, &device)?;
/// let both: [BuiltinIntervention<B>; 2] = [
///     VanillaIntervention.into(),
///     Composed::of(Rotation::new(rotation), AddNorm { factor: 0.1 }).into(),
/// ];
/// # let _ = both;
/// # Ok::<(), burn_align::interventions::OrthonormalError>(())
/// ```
///
/// Its parts are enums: match on `it.featurizer`, `it.operation` and `it.mask`.
#[derive(Module, Debug)]
pub struct BuiltinIntervention<B: Backend> {
    composed: Composed<B, BuiltinFeaturizer<B>, BuiltinOperation<B>, BuiltinMask<B>>,
}

impl<B: Backend> Deref for BuiltinIntervention<B> {
    type Target = Composed<B, BuiltinFeaturizer<B>, BuiltinOperation<B>, BuiltinMask<B>>;

    fn deref(&self) -> &Self::Target {
        &self.composed
    }
}

impl<B: Backend> DerefMut for BuiltinIntervention<B> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.composed
    }
}

impl<B, F, O, M> From<Composed<B, F, O, M>> for BuiltinIntervention<B>
where
    B: Backend,
    F: Into<BuiltinFeaturizer<B>>,
    O: Into<BuiltinOperation<B>>,
    M: Into<BuiltinMask<B>>,
{
    fn from(composed: Composed<B, F, O, M>) -> Self {
        Self {
            composed: composed.map_parts(F::into, O::into, M::into),
        }
    }
}

impl<B: Backend> Intervention<B> for BuiltinIntervention<B> {
    fn needs_source(&self) -> bool {
        self.composed.needs_source()
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        self.composed.apply(base, operands)
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        self.composed.features(units, d_site)
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        self.composed.orthonormal()
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        self.composed.mask_parameters()
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.composed.set_temperature(temperature);
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        self.composed.penalty()
    }
}
