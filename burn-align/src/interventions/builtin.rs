//! One enum of all built-in interventions, so that a model can mix them.

use burn::module::{Module, ParamId};
use burn::tensor::{Tensor, backend::Backend};

use super::{
    AdditionIntervention, AutoencoderIntervention, BoundlessRotatedSpaceIntervention,
    ConstantSourceIntervention, FillIntervention, Intervention, JumpReluAutoencoderIntervention,
    LambdaIntervention, Misfit, NoiseIntervention, Operands, Orthonormal, PcaIntervention,
    ReftIntervention, RotatedSpaceIntervention, ScalingIntervention, SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention, SubtractionIntervention, VanillaIntervention,
};

/// The interventions that come with this crate.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum BuiltinIntervention<B: Backend> {
    /// Replaces the base's activation with the source's.
    Vanilla(VanillaIntervention),
    /// Adds the source's activation.
    Addition(AdditionIntervention),
    /// Subtracts the source's activation.
    Subtraction(SubtractionIntervention),
    /// Replaces every feature with a number.
    Fill(FillIntervention),
    /// Multiplies by a number.
    Scaling(ScalingIntervention),
    /// Adds noise.
    Noise(NoiseIntervention),
    /// Swaps in, adds or subtracts a constant vector.
    ConstantSource(ConstantSourceIntervention<B>),
    /// Swaps directions: DAS.
    RotatedSpace(RotatedSpaceIntervention<B>),
    /// Swaps directions up to a learned boundary: Boundless DAS.
    BoundlessRotatedSpace(BoundlessRotatedSpaceIntervention<B>),
    /// Swaps directions under a learned mask.
    SigmoidMaskRotatedSpace(SigmoidMaskRotatedSpaceIntervention<B>),
    /// Swaps features under a learned mask.
    SigmoidMask(SigmoidMaskIntervention<B>),
    /// Swaps principal components.
    Pca(PcaIntervention<B>),
    /// Swaps hidden features of an autoencoder.
    Autoencoder(AutoencoderIntervention<B>),
    /// Swaps hidden features of a JumpReLU autoencoder.
    JumpReluAutoencoder(JumpReluAutoencoderIntervention<B>),
    /// Changes directions without a source: the ReFT family.
    Reft(ReftIntervention<B>),
    /// Applies a closure.
    Lambda(LambdaIntervention<B>),
}

/// The same call on whichever intervention it is.
macro_rules! each {
    ($self:expr, $it:ident => $call:expr) => {
        match $self {
            BuiltinIntervention::Vanilla($it) => $call,
            BuiltinIntervention::Addition($it) => $call,
            BuiltinIntervention::Subtraction($it) => $call,
            BuiltinIntervention::Fill($it) => $call,
            BuiltinIntervention::Scaling($it) => $call,
            BuiltinIntervention::Noise($it) => $call,
            BuiltinIntervention::ConstantSource($it) => $call,
            BuiltinIntervention::RotatedSpace($it) => $call,
            BuiltinIntervention::BoundlessRotatedSpace($it) => $call,
            BuiltinIntervention::SigmoidMaskRotatedSpace($it) => $call,
            BuiltinIntervention::SigmoidMask($it) => $call,
            BuiltinIntervention::Pca($it) => $call,
            BuiltinIntervention::Autoencoder($it) => $call,
            BuiltinIntervention::JumpReluAutoencoder($it) => $call,
            BuiltinIntervention::Reft($it) => $call,
            BuiltinIntervention::Lambda($it) => $call,
        }
    };
}

impl<B: Backend> Intervention<B> for BuiltinIntervention<B> {
    fn needs_source(&self) -> bool {
        each!(self, it => Intervention::<B>::needs_source(it))
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        each!(self, it => it.apply(base, operands))
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        each!(self, it => Intervention::<B>::features(it, units, d_site))
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        each!(self, it => it.orthonormal())
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        each!(self, it => Intervention::<B>::mask_parameters(it))
    }

    fn set_temperature(&mut self, temperature: f64) {
        each!(self, it => Intervention::<B>::set_temperature(it, temperature));
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        each!(self, it => it.penalty())
    }
}

macro_rules! from {
    ($($variant:ident($intervention:ty),)*) => {$(
        impl<B: Backend> From<$intervention> for BuiltinIntervention<B> {
            fn from(intervention: $intervention) -> Self {
                Self::$variant(intervention)
            }
        }
    )*};
}

from! {
    Vanilla(VanillaIntervention),
    Addition(AdditionIntervention),
    Subtraction(SubtractionIntervention),
    Fill(FillIntervention),
    Scaling(ScalingIntervention),
    Noise(NoiseIntervention),
    ConstantSource(ConstantSourceIntervention<B>),
    RotatedSpace(RotatedSpaceIntervention<B>),
    BoundlessRotatedSpace(BoundlessRotatedSpaceIntervention<B>),
    SigmoidMaskRotatedSpace(SigmoidMaskRotatedSpaceIntervention<B>),
    SigmoidMask(SigmoidMaskIntervention<B>),
    Pca(PcaIntervention<B>),
    Autoencoder(AutoencoderIntervention<B>),
    JumpReluAutoencoder(JumpReluAutoencoderIntervention<B>),
    Reft(ReftIntervention<B>),
    Lambda(LambdaIntervention<B>),
}
