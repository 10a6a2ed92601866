//! What an edit does to an activation.
//!
//! An intervention knows nothing of models, positions or worlds: it is a pure function of tensors,
//! and the engine decides where to call it. That is why the same code works at every site and in
//! every model, with any of Burn's optimizers.
//!
//! Three things make an intervention, and any of them goes with any other:
//!
//! | what is changed: [`Featurizer`] | how: [`Operation`] | how much of it: [`Mask`] |
//! | --- | --- | --- |
//! | [`Identity`]: the site's own features | [`Swap`]: the source's | [`Unmasked`]: all |
//! | [`Rotation`]: trained ones | [`Add`], [`Subtract`]: the source's | [`SigmoidMask`]: learned |
//! | [`Directions`]: fixed ones | [`Interpolate`]: part of the way | [`Boundary`]: the first few |
//! | [`Pca`]: principal components | [`Fill`]: a number; zero projects out | |
//! | [`Autoencoder`], [`JumpReluAutoencoder`] | [`Scale`], [`Clamp`] | |
//! | [`DictionaryFeatures`]: published, error kept | [`ConstantSource`]: a vector of its own | |
//! | | [`AddNorm`], [`Noise`] | |
//! | | [`Reft`]: the ReFT family | |
//! | | [`Closure`]: your function | |
//!
//! An operation by itself is an intervention on the site's own features; [`Composed::of`] puts it
//! on a featurizer. The names of pyvene and the literature are compositions:
//!
//! | name | featurizer × operation × mask |
//! | --- | --- |
//! | [`VanillaIntervention`] | [`Swap`] |
//! | [`AdditionIntervention`], [`SubtractionIntervention`] | [`Add`], [`Subtract`] |
//! | [`FillIntervention`], [`ScalingIntervention`] | [`Fill`], [`Scale`] |
//! | [`NoiseIntervention`], [`LambdaIntervention`] | [`Noise`], [`Closure`] |
//! | [`ConstantSourceIntervention`], [`ReftIntervention`] | [`ConstantSource`], [`Reft`] |
//! | [`RotatedSpaceIntervention`]: DAS, of any rank | [`Rotation`] × [`Swap`] |
//! | [`BoundlessRotatedSpaceIntervention`] | [`Rotation`] × [`Swap`] × [`Boundary`] |
//! | [`SigmoidMaskRotatedSpaceIntervention`] | [`Rotation`] × [`Swap`] × [`SigmoidMask`] |
//! | [`SigmoidMaskIntervention`] | [`Identity`] × [`Swap`] × [`SigmoidMask`] |
//! | [`PcaIntervention`] | [`Pca`] × [`Swap`] |
//! | [`AutoencoderIntervention`] | [`Autoencoder`] × [`Swap`] |
//! | [`JumpReluAutoencoderIntervention`] | [`JumpReluAutoencoder`] × [`Swap`] |
//!
//! Subspaces, the grouping of tokens into vectors, masks and saving are the composition's: parts
//! know nothing of them.
//!
//! Rotations and masks are f32 whatever the model's dtype. Activations are cast on the way in; the
//! change, or the new activation, is cast back on the way out.
//!
//! Other operations are these with the right source: *skip* swaps in the component's own input,
//! *mean ablation* a mean over a dataset, *resample ablation* another example (see
//! [`ablate`](crate::methods::ablate)); *noise* adds a constant, and *attention knock-out* fills
//! attention scores with [`Fill::KNOCK_OUT`].

mod builtin;
mod composed;
mod featurizer;
#[allow(
    clippy::large_enum_variant,
    reason = "parts are few, and matched rarely"
)]
mod featurizers;
mod grouping;
mod masks;
mod names;
mod operation;
#[allow(
    clippy::large_enum_variant,
    reason = "parts are few, and matched rarely"
)]
mod operations;
mod orthonormal;
pub(crate) mod parts;
mod product;
pub(crate) mod random;
#[cfg(test)]
mod tests;

use burn::module::{Module, ParamId};
use burn::tensor::{Bool, Tensor, backend::Backend};

pub use builtin::BuiltinIntervention;
pub use composed::Composed;
pub use featurizer::{Basis, Encoded, Featurizer};
pub use featurizers::*;
pub(crate) use grouping::counted;
pub use grouping::{Misfit, TokenGrouping};
pub use masks::*;
pub use names::*;
pub use operation::{Change, Features, Operation};
pub(crate) use operations::ReftParts;
pub use operations::*;
pub use orthonormal::{Orthonormal, OrthonormalError, OrthonormalMap};

/// Changes an activation, as a pure function of tensors.
///
/// An intervention is a Burn module: Burn's optimizers train its parameters, and they are saved
/// like those of any module. One type stands for all interventions of a model. To mix those of the
/// crate, convert them to [`BuiltinIntervention`]; to mix in your own, write an enum that derives
/// [`Module`].
///
/// Most interventions need only one new part, a [`Featurizer`] or an [`Operation`]; this trait is
/// for what is neither.
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
