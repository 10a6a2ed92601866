//! What an edit does to an activation.

mod vanilla;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

pub use vanilla::VanillaIntervention;

/// Changes an activation, as a pure function of tensors.
///
/// An intervention is a Burn module: its parameters are trained by Burn's optimizers and saved
/// like those of any module. One type stands for all interventions of a model; to mix several,
/// make it an enum that derives [`Module`], as [`BuiltinIntervention`] is.
pub trait Intervention<B: Backend>: Module<B> {
    /// Whether the intervention takes a source.
    fn needs_source(&self) -> bool;

    /// The activation to go on with.
    ///
    /// # Shapes
    /// - base, `operands.source`, output: `[batch, unit, d_site]`
    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3>;
}

/// What an intervention takes besides the activation it changes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Operands<B: Backend> {
    /// The source's activation, `[batch, unit, d_site]`; `None` for an edit without an operand.
    pub source: Option<Tensor<B, 3>>,
}

impl<B: Backend> Operands<B> {
    pub(crate) fn new(source: Option<Tensor<B, 3>>) -> Self {
        Self { source }
    }
}

/// The interventions that come with this crate.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum BuiltinIntervention<B: Backend> {
    /// Puts the source's activation in the place of the base's.
    Vanilla(VanillaIntervention<B>),
}

impl<B: Backend> Intervention<B> for BuiltinIntervention<B> {
    fn needs_source(&self) -> bool {
        match self {
            Self::Vanilla(vanilla) => vanilla.needs_source(),
        }
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        match self {
            Self::Vanilla(vanilla) => vanilla.apply(base, operands),
        }
    }
}
