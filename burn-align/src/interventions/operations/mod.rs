//! What is done to features, one operation a file.
//!
//! To add an operation: a file, its `mod` line, and a row of the table. It is then an intervention by
//! itself, goes with every featurizer and mask, and is saved.

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

pub use self::arithmetic::{Add, AddNorm, Scale, Subtract};
pub use self::clamp::Clamp;
pub use self::closure::Closure;
pub use self::constant_source::{ConstantSource, SourceOperation};
pub use self::fill::Fill;
pub use self::noise::Noise;
pub(crate) use self::reft::ReftParts;
pub use self::reft::{Reft, ReftKind};
pub use self::swap::{Interpolate, Swap};

macro_rules! operations {
    ($($(#[$row:meta])* $variant:ident($type:ty) $kind:literal,)*) => {
        super::parts::table! {
            ($)
            /// The operations that come with this crate.
            BuiltinOperation "operation" {
                $($(#[$row])* $variant($type) $kind,)*
            }
        }

        // An operation by itself acts on the site's own features.
        $(
            impl<B: Backend> Intervention<B> for $type {
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

            impl<B: Backend> From<$type> for BuiltinIntervention<B> {
                fn from(operation: $type) -> Self {
                    Composed::of(Identity, operation).into()
                }
            }
        )*
    };
}

operations! {
    /// The source's features.
    Swap(Swap) "vanilla",
    /// Adds the source's features.
    Add(Add) "addition",
    /// Subtracts the source's features.
    Subtract(Subtract) "subtraction",
    /// Part of the way to the source's features.
    Interpolate(Interpolate) "interpolate",
    /// A number for every feature.
    Fill(Fill) "fill",
    /// Multiplies by a number.
    Scale(Scale) "scaling",
    /// Keeps features within limits.
    Clamp(Clamp) "clamp",
    /// Adds a multiple of the vector's norm.
    AddNorm(AddNorm) "add_norm",
    /// Adds noise.
    Noise(Noise) "noise",
    /// Swaps in, adds or subtracts constant features.
    ConstantSource(ConstantSource<B>) "constant_source",
    /// Changes directions without a source: the ReFT family.
    Reft(Reft<B>) "reft",
    /// Applies a closure.
    Closure(Closure<B>) "closure",
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

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        each!(self, it => Operation::<B>::orthonormal(it))
    }
}
