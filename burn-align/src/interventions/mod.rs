//! What an edit does to an activation.
//!
//! An intervention knows nothing of models, positions or worlds: it is a pure function of tensors,
//! and the engine decides where to call it. That is why the same code works at every site and in
//! every model, with any of Burn's optimizers.
//!
//! | intervention | new activation | source |
//! | --- | --- | --- |
//! | [`VanillaIntervention`] | `source` | yes |
//! | [`AdditionIntervention`] | `base + source` | yes |
//! | [`SubtractionIntervention`] | `base - source` | yes |
//! | [`FillIntervention`] | a number | no |
//! | [`ScalingIntervention`] | `factor · base` | no |
//! | [`NoiseIntervention`] | `base + noise` | no |
//! | [`ConstantSourceIntervention`] | a vector of its own swapped in, added or subtracted | no |
//! | [`LambdaIntervention`] | `f(base, source)` | as you say |
//!
//! With parameters that are trained or fitted:
//!
//! | intervention | new activation | source |
//! | --- | --- | --- |
//! | [`RotatedSpaceIntervention`] | `base + (source - base) W Wᵀ`: DAS, of any rank | yes |
//! | [`BoundlessRotatedSpaceIntervention`] | the same up to a learned boundary | yes |
//! | [`SigmoidMaskRotatedSpaceIntervention`] | the same under a learned mask | yes |
//! | [`SigmoidMaskIntervention`] | a learned mask without a rotation | yes |
//! | [`PcaIntervention`] | principal components swapped | yes |
//! | [`AutoencoderIntervention`], [`JumpReluAutoencoderIntervention`] | hidden features swapped | yes |
//! | [`ReftIntervention`] | the ReFT family | no |
//!
//! Rotations and masks are f32 whatever the model's dtype. Activations are cast on the way in; the
//! change, or the new activation, is cast back on the way out.
//!
//! Other operations are these with the right source: *skip* swaps in the component's own input,
//! *mean ablation* a mean over a dataset, *resample ablation* another example (see
//! [`ablate`](crate::methods::ablate)); *noise* adds a constant, and *attention knock-out* fills
//! attention scores with [`FillIntervention::KNOCK_OUT`].
//!
//! Every intervention acts on the whole activation or on a subspace of its features.

mod arithmetic;
mod autoencoder;
mod builtin;
mod constant_source;
mod fill;
mod grouping;
mod lambda;
mod masked;
mod noise;
mod orthonormal;
mod pca;
pub(crate) mod random;
mod reft;
mod rotated;
mod vanilla;

use burn::module::{Module, ParamId};
use burn::tensor::{Bool, Tensor, backend::Backend};

pub use arithmetic::{AdditionIntervention, ScalingIntervention, SubtractionIntervention};
pub use autoencoder::{AutoencoderIntervention, JumpReluAutoencoderIntervention};
pub use builtin::BuiltinIntervention;
pub use constant_source::{ConstantSourceIntervention, SourceOperation};
pub use fill::FillIntervention;
pub(crate) use grouping::counted;
pub use grouping::{Misfit, TokenGrouping};
pub use lambda::LambdaIntervention;
pub use masked::{
    BoundlessRotatedSpaceIntervention, SigmoidMaskIntervention, SigmoidMaskRotatedSpaceIntervention,
};
pub use noise::NoiseIntervention;
pub use orthonormal::{Orthonormal, OrthonormalError, OrthonormalMap};
pub use pca::{PcaError, PcaIntervention};
pub(crate) use reft::ReftParts;
pub use reft::{ReftIntervention, ReftKind};
pub use rotated::RotatedSpaceIntervention;
pub use vanilla::VanillaIntervention;

/// Changes an activation, as a pure function of tensors.
///
/// An intervention is a Burn module: Burn's optimizers train its parameters, and they are saved
/// like those of any module. One type stands for all interventions of a model. To mix several,
/// write an enum that derives [`Module`], as [`BuiltinIntervention`] does.
///
/// The edits of many worlds are made in one call, stacked along the batch axis. A row of the result
/// must therefore depend only on the same row of the arguments.
pub trait Intervention<B: Backend>: Module<B> {
    /// Whether the intervention takes a source.
    fn needs_source(&self) -> bool;

    /// The new activation.
    ///
    /// # Shapes
    /// - base, output: `[batch, unit, d_site]`
    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3>;

    /// The number of features that subspaces index, if `units` units of `d_site` features are
    /// changed. The engine asks before it computes anything.
    ///
    /// # Errors
    /// If the intervention cannot act on these units.
    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let _any = units;
        Ok(d_site)
    }

    /// The matrices whose columns training must keep orthonormal.
    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        Vec::new()
    }

    /// The parameters of masks, which have their own learning rate.
    fn mask_parameters(&self) -> Vec<ParamId> {
        Vec::new()
    }

    /// Sets the temperature of masks.
    fn set_temperature(&mut self, temperature: f64) {
        let _without = temperature;
    }

    /// What training adds to the loss to swap less, `[1]`: a boundary, or the mean of a mask.
    fn penalty(&self) -> Option<Tensor<B, 1>> {
        None
    }
}

/// What an intervention gets besides the activation it changes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Operands<B: Backend> {
    /// The source's activation, `[batch, unit, d_site]`; present if and only if the intervention
    /// [needs](Intervention::needs_source) one.
    pub source: Option<Tensor<B, 3>>,
    /// Which features to change, `[batch, 1, feature]`; `None` for all. [`Intervention::features`]
    /// gives their number: features of the site, or rotated or hidden ones.
    pub subspace: Option<Tensor<B, 3, Bool>>,
}

impl<B: Backend> Operands<B> {
    /// A source, and the features to change.
    ///
    /// # Shapes
    /// - source: `[batch, unit, d_site]`
    /// - subspace: `[batch, 1, feature]`
    pub fn new(source: Option<Tensor<B, 3>>, subspace: Option<Tensor<B, 3, Bool>>) -> Self {
        Self { source, subspace }
    }

    /// The source's activation.
    ///
    /// # Panics
    /// If there is none. This cannot happen in an edit by an intervention that needs one.
    pub fn source(&self) -> Tensor<B, 3> {
        self.source
            .clone()
            .expect("an intervention that needs a source gets one")
    }

    /// `changed` in the subspace, `base` outside of it.
    ///
    /// # Shapes
    /// - base, changed, output: `[batch, unit, d_site]`
    pub fn within_subspace(&self, base: Tensor<B, 3>, changed: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.subspace {
            None => changed,
            Some(subspace) => {
                let shape = base.shape();
                base.mask_where(subspace.clone().expand(shape), changed)
            }
        }
    }
}
