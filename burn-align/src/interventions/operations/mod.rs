//! What is done to features, one operation a file.
//!
//! To add an operation: a file, its `mod` line, and a row of the table. It is then an intervention
//! by itself, goes with every featurizer and mask, and is saved.

mod arithmetic;
mod clamp;
mod closure;
mod constant_source;
mod fill;
mod noise;
mod reft;
mod swap;

use burn::tensor::{Tensor, backend::Backend};

use super::composed::{apply_alone, features_alone};
use super::operation::{Change, Features, Operation};
use super::{BuiltinIntervention, Composed, Identity, Intervention, Misfit, Operands, Orthonormal};

pub use self::constant_source::SourceOperation;
pub use self::reft::ReftKind;
pub(crate) use self::reft::ReftParts;

macro_rules! operations {
    ($($module:ident::$part:ident $(<$b:ident>)? => $kind:literal,)*) => {
        super::parts::table! {
            ($)
            /// The operations that come with this crate.
            BuiltinOperation "operation" {
                $($module::$part $(<$b>)? => $kind,)*
            }
        }

        // An operation by itself acts on the site's own features.
        $(
            impl<B: Backend> Intervention<B> for $part $(<$b>)? {
                fn needs_source(&self) -> bool {
                    Operation::<B>::needs_source(self)
                }

                fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
                    features_alone::<B>(self, units, d_site)
                }

                fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
                    apply_alone(self, base, operands)
                }

                fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
                    Operation::orthonormal(self)
                }
            }

            impl<B: Backend> From<$part $(<$b>)?> for BuiltinIntervention<B> {
                fn from(operation: $part $(<$b>)?) -> Self {
                    Composed::of(Identity, operation).into()
                }
            }
        )*
    };
}

operations! {
    swap::Swap => "vanilla",
    swap::Interpolate => "interpolate",
    arithmetic::Add => "addition",
    arithmetic::Subtract => "subtraction",
    arithmetic::Scale => "scaling",
    arithmetic::AddNorm => "add_norm",
    fill::Fill => "fill",
    clamp::Clamp => "clamp",
    noise::Noise => "noise",
    constant_source::ConstantSource<B> => "constant_source",
    reft::Reft<B> => "reft",
    closure::Closure<B> => "closure",
}

impl<B: Backend> Operation<B> for BuiltinOperation<B> {
    fn needs_source(&self) -> bool {
        each!(self, it => Operation::<B>::needs_source(it))
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        each!(self, it => it.change(features))
    }

    fn width(&self) -> Option<usize> {
        each!(self, it => Operation::<B>::width(it))
    }

    fn is_local(&self) -> bool {
        each!(self, it => Operation::<B>::is_local(it))
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        each!(self, it => Operation::<B>::orthonormal(it))
    }
}
