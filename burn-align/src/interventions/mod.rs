//! What an edit does to an activation.
//!
//! | intervention | new activation | source |
//! | --- | --- | --- |
//! | [`VanillaIntervention`] | `source` | yes |
//! | [`AdditionIntervention`] | `base + source` | yes |
//! | [`SubtractionIntervention`] | `base - source` | yes |
//! | [`FillIntervention`] | a number | no |
//! | [`ScalingIntervention`] | `factor · base` | no |
//! | [`LambdaIntervention`] | `f(base, source)` | as you say |
//!
//! Other operations are these with the right source: *skip* swaps in the component's own input,
//! *mean ablation* a mean over a dataset, *resample ablation* another example, *noise* adds a
//! constant, and *attention knock-out* fills attention scores with
//! [`FillIntervention::KNOCK_OUT`].
//!
//! Every one acts on the whole activation or on a subspace of its features.

mod arithmetic;
mod fill;
mod lambda;
mod vanilla;

use burn::module::Module;
use burn::tensor::{Bool, Tensor, backend::Backend};

pub use arithmetic::{AdditionIntervention, ScalingIntervention, SubtractionIntervention};
pub use fill::FillIntervention;
pub use lambda::LambdaIntervention;
pub use vanilla::VanillaIntervention;

/// Changes an activation, as a pure function of tensors.
///
/// An intervention is a Burn module: its parameters are trained by Burn's optimizers and saved
/// like those of any module. One type stands for all interventions of a model; to mix several,
/// make it an enum that derives [`Module`], as [`BuiltinIntervention`] is.
///
/// Edits of many worlds are made in one call, under one another along the batch axis. So a row of
/// the result must depend on the same row of the arguments only.
pub trait Intervention<B: Backend>: Module<B> {
    /// Whether the intervention takes a source.
    fn needs_source(&self) -> bool;

    /// The activation to go on with.
    ///
    /// # Shapes
    /// - base, output: `[batch, unit, d_site]`
    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3>;
}

/// What an intervention takes besides the activation it changes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Operands<B: Backend> {
    /// The source's activation, `[batch, unit, d_site]`; there if and only if the intervention
    /// [needs](Intervention::needs_source) one.
    pub source: Option<Tensor<B, 3>>,
    /// Which features are to be changed, `[batch, 1, d_site]`; `None` for all. Of an intervention
    /// that works in a rotated space, these are rotated features.
    pub subspace: Option<Tensor<B, 3, Bool>>,
}

impl<B: Backend> Operands<B> {
    pub(crate) fn new(source: Option<Tensor<B, 3>>, subspace: Option<Tensor<B, 3, Bool>>) -> Self {
        Self { source, subspace }
    }

    /// The source's activation.
    ///
    /// # Panics
    /// If there is none, which an edit by an intervention that needs one never lets happen.
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

/// The interventions that come with this crate.
#[derive(Module, Clone, Debug)]
#[non_exhaustive]
pub enum BuiltinIntervention {
    /// Puts the source's activation in the place of the base's.
    Vanilla(VanillaIntervention),
    /// Adds the source's activation.
    Addition(AdditionIntervention),
    /// Subtracts the source's activation.
    Subtraction(SubtractionIntervention),
    /// Puts a number in the place of every feature.
    Fill(FillIntervention),
    /// Multiplies by a number.
    Scaling(ScalingIntervention),
}

impl<B: Backend> Intervention<B> for BuiltinIntervention {
    fn needs_source(&self) -> bool {
        match self {
            Self::Vanilla(it) => Intervention::<B>::needs_source(it),
            Self::Addition(it) => Intervention::<B>::needs_source(it),
            Self::Subtraction(it) => Intervention::<B>::needs_source(it),
            Self::Fill(it) => Intervention::<B>::needs_source(it),
            Self::Scaling(it) => Intervention::<B>::needs_source(it),
        }
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        match self {
            Self::Vanilla(it) => it.apply(base, operands),
            Self::Addition(it) => it.apply(base, operands),
            Self::Subtraction(it) => it.apply(base, operands),
            Self::Fill(it) => it.apply(base, operands),
            Self::Scaling(it) => it.apply(base, operands),
        }
    }
}
