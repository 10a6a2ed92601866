//! What is done to features.

use std::fmt;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Bool, Tensor, backend::Backend};

use super::featurizer::Encoded;
use super::{Operands, Orthonormal};

/// Changes features, whatever they are: those of a site, or of a [`Featurizer`](super::Featurizer).
///
/// Subspaces and masks are not its business: it changes all features, and what is outside of them
/// is put back.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::{Tensor, backend::Backend};
/// use burn_align::interventions::{
///     Change, Composed, Directions, Features, Intervention, Operands, Operation,
/// };
///
/// /// The features' signs are flipped.
/// #[derive(Module, Clone, Debug)]
/// struct Flip;
///
/// impl<B: Backend> Operation<B> for Flip {
///     fn change(&self, features: &Features<'_, B>) -> Change<B> {
///         Change::Value(-features.base())
///     }
/// }
///
/// # type F = burn::backend::Flex;
/// # let device = Default::default();
/// // Along one direction: a reflection.
/// let diagonal = Directions::along(Tensor::<F, 1>::from_floats([1.0, 1.0], &device))?;
/// let it = Composed::of(diagonal, Flip);
/// let x = Tensor::<F, 3>::from_floats([[[3.0, 1.0]]], &device);
/// let new = it.apply(x, Operands::new(None, None));
/// # let new: Vec<f32> = new.into_data().iter().collect();
/// # assert!((new[0] + 1.0).abs() < 1e-5 && (new[1] + 3.0).abs() < 1e-5);
/// # Ok::<(), burn_align::interventions::NoDirection>(())
/// ```
pub trait Operation<B: Backend>: Module<B> + ModuleDisplay {
    /// Whether it takes a source.
    fn needs_source(&self) -> bool {
        false
    }

    /// The new features, or by how much they change.
    fn change(&self, features: &Features<'_, B>) -> Change<B>;

    /// The number of features that it fits; `None` for any.
    fn width(&self) -> Option<usize> {
        None
    }

    /// Whether each feature changes by itself, whatever the others are. If so, features that stay
    /// as they are need not be computed. Default: no.
    fn is_local(&self) -> bool {
        false
    }

    /// The matrices whose columns training must keep orthonormal.
    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        Vec::new()
    }
}

/// What an operation does. All tensors are `[batch, vector, feature]`.
///
/// The two are the same but for rounding. Give a difference if it is what you have: if features are
/// coordinates along directions, it is added as it is.
#[derive(Clone, Debug)]
pub enum Change<B: Backend> {
    /// The features become these.
    Value(Tensor<B, 3>),
    /// This is added to the features.
    Difference(Tensor<B, 3>),
}

impl<B: Backend> Change<B> {
    /// The difference from these features.
    pub(super) fn difference(self, base: impl FnOnce() -> Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Value(new) => new - base(),
            Self::Difference(difference) => difference,
        }
    }
}

/// The features that an operation changes, and those of its source. They are computed when they are
/// first asked for.
///
/// Features of a site have the model's dtype, those of a featurizer are in f32.
#[derive(Debug)]
pub struct Features<'a, B: Backend>(Kind<'a, B>);

#[derive(Debug)]
enum Kind<'a, B: Backend> {
    /// The site's own, `[batch, unit, d_site]`.
    Own(Tensor<B, 3>, Operands<B>),
    Encoded(EncodedFeatures<'a, B>),
}

/// Those of a featurizer.
pub(super) struct EncodedFeatures<'a, B: Backend> {
    /// `[batch, vector]`
    pub(super) shape: [usize; 2],
    pub(super) base: &'a Encoded<'a, B>,
    pub(super) source: Option<Encoded<'a, B>>,
    /// The features of the difference of the vectors, if features are linear, `[row, feature]`.
    pub(super) difference: Option<&'a dyn Fn() -> Tensor<B, 2>>,
    pub(super) affine: bool,
    pub(super) subspace: Option<Tensor<B, 3, Bool>>,
}

impl<B: Backend> fmt::Debug for EncodedFeatures<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedFeatures")
            .field("shape", &self.shape)
            .field("base", &self.base)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl<'a, B: Backend> Features<'a, B> {
    /// The features of a site.
    ///
    /// # Shapes
    /// - base: `[batch, unit, d_site]`
    pub(super) fn own(base: Tensor<B, 3>, operands: Operands<B>) -> Self {
        Self(Kind::Own(base, operands))
    }

    pub(super) fn encoded(features: EncodedFeatures<'a, B>) -> Self {
        Self(Kind::Encoded(features))
    }

    /// The base's features, `[batch, vector, feature]`.
    pub fn base(&self) -> Tensor<B, 3> {
        match &self.0 {
            Kind::Own(base, _) => base.clone(),
            Kind::Encoded(it) => by_example(it.base.features(), it.shape),
        }
    }

    /// The source's features, `[batch, vector, feature]`.
    ///
    /// # Panics
    /// If there is no source, which an operation that needs one always has.
    pub fn source(&self) -> Tensor<B, 3> {
        let source = self.operands().source;
        source.expect("an operation that needs a source gets one")
    }

    /// The source's features and the subspace, as [`Intervention`](super::Intervention)s get them.
    pub(super) fn operands(&self) -> Operands<B> {
        match &self.0 {
            Kind::Own(_, operands) => operands.clone(),
            Kind::Encoded(it) => {
                let source = it.source.as_ref();
                let source = source.map(|source| by_example(source.features(), it.shape));
                Operands::new(source, it.subspace.clone())
            }
        }
    }

    /// The source's features minus the base's, `[batch, vector, feature]`.
    ///
    /// # Panics
    /// As [`source`](Self::source).
    pub fn difference(&self) -> Tensor<B, 3> {
        match &self.0 {
            Kind::Encoded(EncodedFeatures {
                shape,
                difference: Some(difference),
                ..
            }) => by_example(difference(), *shape),
            _ => self.source() - self.base(),
        }
    }

    /// The base becomes the source.
    ///
    /// # Panics
    /// As [`source`](Self::source).
    pub fn swap(&self) -> Change<B> {
        match &self.0 {
            Kind::Encoded(it) if it.affine => Change::Difference(self.difference()),
            _ => Change::Value(self.source()),
        }
    }

    /// The vectors that the base's features are of, `[batch, vector, d]`.
    pub fn vectors(&self) -> Tensor<B, 3> {
        match &self.0 {
            Kind::Own(base, _) => base.clone(),
            Kind::Encoded(it) => by_example(it.base.vector(), it.shape),
        }
    }

    /// Which features will change, `[batch, 1, feature]`; `None` for all. What is outside of them
    /// is put back.
    pub fn subspace(&self) -> Option<Tensor<B, 3, Bool>> {
        match &self.0 {
            Kind::Own(_, operands) => operands.subspace.clone(),
            Kind::Encoded(it) => it.subspace.clone(),
        }
    }
}

/// `[row, feature]` → `[batch, vector, feature]`
pub(super) fn by_example<B: Backend>(
    x: Tensor<B, 2>,
    [batch, vectors]: [usize; 2],
) -> Tensor<B, 3> {
    let [_row, features] = x.dims();
    x.reshape([batch, vectors, features])
}
