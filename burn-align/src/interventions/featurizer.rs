//! Which features of a vector an intervention changes.

use std::cell::OnceCell;
use std::fmt;

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::nn::unfused;

use super::Orthonormal;

/// Gives the features of a vector, and the vector with other features.
///
/// It knows nothing of what is done to the features: any [`Operation`](super::Operation) goes with
/// it, in a [`Composed`](super::Composed). Of the methods, only the first three are needed:
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::{Tensor, activation, backend::Backend};
/// use burn_align::interventions::{Composed, Encoded, Featurizer, Intervention, Operands, Swap};
///
/// /// `softplus(s) ⊙ x`: every feature on its own scale.
/// #[derive(Module, Debug)]
/// struct Scaled<B: Backend> {
///     /// `s`, `[d]`
///     scale: Param<Tensor<B, 1>>,
/// }
///
/// impl<B: Backend> Scaled<B> {
///     fn scales(&self) -> Tensor<B, 2> {
///         activation::softplus(self.scale.val(), 1.0).unsqueeze()
///     }
/// }
///
/// impl<B: Backend> Featurizer<B> for Scaled<B> {
///     fn dims(&self) -> Option<[usize; 2]> {
///         let [d] = self.scale.dims();
///         Some([d, d])
///     }
///
///     fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
///         x * self.scales()
///     }
///
///     fn decode(&self, z: Tensor<B, 2>, _from: &Encoded<'_, B>) -> Tensor<B, 2> {
///         z / self.scales()
///     }
/// }
///
/// # type F = burn::backend::Flex;
/// # let device = Default::default();
/// let scaled = Scaled::<F> { scale: Param::from_tensor(Tensor::zeros([2], &device)) };
/// let it = Composed::of(scaled, Swap).with_changed(vec![1]);
/// let vector = |x: [f32; 2]| Tensor::<F, 3>::from_floats([[x]], &device);
/// let new = it.apply(vector([1.0, 2.0]), Operands::new(Some(vector([3.0, 4.0])), None));
/// # let new: Vec<f32> = new.into_data().iter().collect();
/// # assert!((new[0] - 1.0).abs() < 1e-5 && (new[1] - 4.0).abs() < 1e-5);
/// ```
///
/// Vectors come in f32, one a row: a token, or several that are [grouped](super::TokenGrouping). A
/// row of a result must depend only on the same row of the arguments.
pub trait Featurizer<B: Backend>: Module<B> + ModuleDisplay {
    /// The width of a vector and the number of its features, `[d, feature]`; `None` if the features
    /// are the vector's own, whatever its width.
    fn dims(&self) -> Option<[usize; 2]>;

    /// The features.
    ///
    /// # Shapes
    /// - x: `[row, d]`
    /// - output: `[row, feature]`
    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2>;

    /// The vector with these features instead of those that it was encoded to.
    ///
    /// What the features do not carry, the *rest*, follows from `from`, which has the vector and
    /// its features. To keep it, add `from.vector() - d(from.features())`, where `d` is the decoder
    /// alone; if `d` is linear, `from.vector() + d(z - from.features())` is the same, and exact if
    /// nothing changes.
    ///
    /// # Shapes
    /// - z: `[row, feature]`
    /// - output: `[row, d]`
    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2>;

    /// The directions of the features, if a feature is the coordinate along its direction and the
    /// rest is kept. An intervention then calls neither `encode` nor `decode`, which give the same:
    /// it adds a change of features to the vector along the directions, so that what is not
    /// changed is not rounded.
    fn basis(&self) -> Option<Basis<B>> {
        None
    }

    /// Whether a difference of features depends on the difference of the vectors only. A swap is
    /// then computed from differences.
    fn is_affine(&self) -> bool {
        false
    }

    /// The matrices whose columns training must keep orthonormal.
    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        Vec::new()
    }
}

/// Directions along which features are coordinates.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Basis<B: Backend> {
    /// The axes: `z = x`.
    Axes,
    /// `z = x W`, and a change of `z` adds `Δz Wᵀ`. `W` is `[d, feature]`.
    Columns(Tensor<B, 2>),
}

impl<B: Backend> Basis<B> {
    /// `[row, d]` → `[row, feature]`
    pub(super) fn read(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Axes => x,
            Self::Columns(matrix) => {
                let [_d, features] = matrix.dims();
                let product = x.matmul(matrix.clone());
                match features {
                    1 => unfused(product),
                    _ => product,
                }
            }
        }
    }

    /// What a change of features adds, `[row, feature]` → `[row, d]`.
    pub(super) fn write(&self, change: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Axes => change,
            Self::Columns(matrix) => change.matmul(matrix.clone().transpose()),
        }
    }

    /// The vector with these features; the rest is kept, `[row, feature]` → `[row, d]`.
    pub(super) fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        from.vector() + self.write(z - from.features())
    }
}

/// Vectors and their features, which are computed when they are first asked for.
pub struct Encoded<'a, B: Backend> {
    vector: OnceCell<Tensor<B, 2>>,
    features: OnceCell<Tensor<B, 2>>,
    /// Gives the vectors, unless they are there.
    join: &'a dyn Fn() -> Option<Tensor<B, 2>>,
    encode: &'a dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>,
}

impl<'a, B: Backend> Encoded<'a, B> {
    /// Vectors that this function encodes.
    ///
    /// # Shapes
    /// - vector: `[row, d]`
    pub fn new(vector: Tensor<B, 2>, encode: &'a dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        Self {
            vector: vector.into(),
            ..Self::lazy(&|| None, encode)
        }
    }

    /// The same with vectors that may never be asked for.
    pub(super) fn lazy(
        join: &'a dyn Fn() -> Option<Tensor<B, 2>>,
        encode: &'a dyn Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Self {
        Self {
            vector: OnceCell::new(),
            features: OnceCell::new(),
            join,
            encode,
        }
    }

    /// The vectors, `[row, d]`.
    pub fn vector(&self) -> Tensor<B, 2> {
        let joined = || (self.join)().expect("it is there, or there is what it is joined from");
        self.vector.get_or_init(joined).clone()
    }

    /// Their features, `[row, feature]`.
    pub fn features(&self) -> Tensor<B, 2> {
        let encoded = || (self.encode)(self.vector());
        self.features.get_or_init(encoded).clone()
    }
}

impl<B: Backend> fmt::Debug for Encoded<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").finish_non_exhaustive()
    }
}
