//! Matrices with orthonormal columns, and how they stay orthonormal during training.
//!
//! With orthonormal columns, `W Wᵀ` is a projection: swapping inside the subspace leaves everything
//! outside of it untouched. An optimizer step destroys that, so something must restore it. The
//! default works around the step, by projection and retraction; PyTorch's parametrizations are there
//! for parity with pyvene.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::product::product;
use super::random::Seeded;

/// How a matrix keeps its columns orthonormal in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OrthonormalMap {
    /// The matrix itself is trained. The optimizer gets the Riemannian gradient: the part that is
    /// tangent to the Stiefel manifold. Its step is projected onto the tangent space too, because
    /// an optimizer that scales each entry leaves it, and the end point is retracted by the polar
    /// decomposition (Absil, Mahony & Sepulchre 2008, §3.5.7, §3.6.1 and example 4.1.2). This takes
    /// only matrix products, and nothing to differentiate through.
    #[default]
    Retraction,
    /// `B · exp(A)` with `A = tril(X) - tril(X)ᵀ`: square matrices, as in PyTorch's
    /// `parametrizations.orthogonal`.
    MatrixExponential,
    /// `B · (I - A/2)⁻¹ (I + A/2)`, with the same `A`: square matrices.
    Cayley,
    /// `B` times the first columns of a product of Householder reflections, whose vectors are the
    /// columns of `X` below its diagonal: tall matrices, as in PyTorch.
    Householder,
}

/// A matrix `W` of shape `[d, rank]` with `WᵀW = I`, in f32.
///
/// ```
/// use burn_align::interventions::{Orthonormal, OrthonormalMap};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// // 16 of 768 directions, the same ones for the same seed.
/// let matrix = Orthonormal::<B>::random([768, 16], OrthonormalMap::Retraction, 0, &device)?;
/// assert_eq!(matrix.matrix().dims(), [768, 16]);
/// assert!(matrix.deviation() < 1e-5);
/// assert!(Orthonormal::<B>::random([16, 768], OrthonormalMap::Retraction, 0, &device).is_err());
/// # Ok::<(), burn_align::interventions::OrthonormalError>(())
/// ```
#[derive(Module, Debug)]
#[doc(alias = "rotation")]
#[doc(alias = "Stiefel manifold")]
pub struct Orthonormal<B: Backend> {
    /// What is trained, `[d, rank]`: `W` itself, or the `X` of its map.
    pub parameter: Param<Tensor<B, 2>>,
    /// The matrix `B` of the map, `[d, d]`, which is not trained; `None` for a
    /// [`Retraction`](OrthonormalMap::Retraction).
    pub base: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    map: OrthonormalMap,
}

/// Why a matrix cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrthonormalError {
    /// More columns than fit, or none.
    #[error("rank: expected 1 to {d}, the number of features, found {rank}")]
    Rank {
        /// Number of rows.
        d: usize,
        /// Number of columns.
        rank: usize,
    },
    /// A map that needs a square matrix.
    #[error(
        "{map:?} needs as many columns as rows, found [{d}, {rank}]; use Retraction or Householder"
    )]
    NotSquare {
        /// The map.
        map: OrthonormalMap,
        /// Number of rows.
        d: usize,
        /// Number of columns.
        rank: usize,
    },
}

impl<B: Backend> Orthonormal<B> {
    /// A random matrix, uniform among all of its shape: the polar factor of a Gaussian one. Up to
    /// rounding, the same seed gives the same matrix on every backend.
    ///
    /// # Errors
    /// If there is no such matrix.
    pub fn random(
        [d, rank]: [usize; 2],
        map: OrthonormalMap,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, OrthonormalError> {
        check([d, rank], map)?;
        let matrix = Seeded::new(seed, device).normal([d, rank]);
        Self::from_matrix(matrix, map)
    }

    /// The matrix with orthonormal columns that is closest to this one.
    ///
    /// # Shapes
    /// - matrix: `[d, rank]`, of full rank
    ///
    /// # Errors
    /// If the map does not fit the shape.
    pub fn from_matrix(
        matrix: Tensor<B, 2>,
        map: OrthonormalMap,
    ) -> Result<Self, OrthonormalError> {
        let [d, rank] = matrix.dims();
        check([d, rank], map)?;
        let matrix = polar(matrix.detach().cast(DType::F32));
        let device = matrix.device();
        let (parameter, base) = match map {
            OrthonormalMap::Retraction => (matrix, None),
            OrthonormalMap::MatrixExponential | OrthonormalMap::Cayley => {
                (-identity(d, &device), Some(matrix))
            }
            OrthonormalMap::Householder => {
                let start = -identity(d, &device).narrow(1, 0, rank);
                (start, Some(complete(matrix)))
            }
        };
        Ok(Self::from_parameter(parameter, base, map))
    }

    /// Rebuilds a matrix from its saved parts.
    pub(crate) fn from_parameter(
        parameter: Tensor<B, 2>,
        base: Option<Tensor<B, 2>>,
        map: OrthonormalMap,
    ) -> Self {
        Self {
            parameter: Param::from_tensor(parameter),
            base: base.map(Param::from_tensor),
            map,
        }
    }

    /// How the columns stay orthonormal.
    pub fn map(&self) -> OrthonormalMap {
        self.map
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.parameter.dims()
    }

    /// The matrix, `[d, rank]`.
    pub fn matrix(&self) -> Tensor<B, 2> {
        let x = self.parameter.val();
        let turned = match self.map {
            OrthonormalMap::Retraction => return x,
            OrthonormalMap::MatrixExponential => exponential(skew(x)),
            OrthonormalMap::Cayley => cayley(skew(x)),
            OrthonormalMap::Householder => householder(x),
        };
        match &self.base {
            Some(base) => product(base.val().detach(), turned),
            None => turned,
        }
    }

    /// The Riemannian gradient with respect to [the parameter](Self::parameter), for an optimizer
    /// that is followed by [`retracted`](Self::retracted).
    ///
    /// The gradient of a function of a matrix also says how the function would change off the
    /// manifold, where no step may go. This part is removed: Adam would take its size into account
    /// in every entry, and mix it into the rest. Maps that never leave the manifold change nothing.
    ///
    /// # Shapes
    /// - gradient: `[d, rank]`
    /// - output: `[d, rank]`
    pub fn riemannian_gradient(&self, gradient: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.map {
            OrthonormalMap::Retraction => tangent(self.matrix().detach(), gradient),
            _ => gradient,
        }
    }

    /// Returns the matrix to the manifold after an optimizer step that started at `before`. Maps
    /// that never leave it change nothing.
    #[must_use]
    pub fn retracted(self, before: Tensor<B, 2>) -> Self {
        if self.map != OrthonormalMap::Retraction {
            return self;
        }
        let parameter = self.parameter.map(|after| {
            let trained = after.is_require_grad();
            let before = before.clone().detach();
            let step = after.detach() - before.clone();
            let end = before.clone() + tangent(before, step);
            polar(end).detach().set_require_grad(trained)
        });
        Self { parameter, ..self }
    }

    /// `max |WᵀW - I|`.
    pub fn deviation(&self) -> f64 {
        let matrix = self.matrix().detach();
        let gram = product(matrix.clone().transpose(), matrix);
        let [rank, _rank] = gram.dims();
        let one = identity(rank, &gram.device());
        let [deviation] = deviations([&gram], &one);
        deviation
    }
}

/// The projection of a direction onto the tangent space of the Stiefel manifold at a matrix.
fn tangent<B: Backend>(at: Tensor<B, 2>, direction: Tensor<B, 2>) -> Tensor<B, 2> {
    let inner = product(at.clone().transpose(), direction.clone());
    let normal = (inner.clone() + inner.transpose()) * 0.5;
    direction - product(at, normal)
}

fn identity<B: Backend>(d: usize, device: &B::Device) -> Tensor<B, 2> {
    Tensor::<B, 2>::eye(d, device).cast(DType::F32)
}

fn check([d, rank]: [usize; 2], map: OrthonormalMap) -> Result<(), OrthonormalError> {
    if rank == 0 || rank > d {
        return Err(OrthonormalError::Rank { d, rank });
    }
    let square = matches!(
        map,
        OrthonormalMap::MatrixExponential | OrthonormalMap::Cayley
    );
    if square && rank != d {
        return Err(OrthonormalError::NotSquare { map, d, rank });
    }
    Ok(())
}

/// `max |X - I|` of some matrices, which are waited for together.
fn deviations<B: Backend, const N: usize>(
    matrices: [&Tensor<B, 2>; N],
    one: &Tensor<B, 2>,
) -> [f64; N] {
    let largest = matrices.map(|matrix| (matrix.clone() - one.clone()).abs().max());
    let largest = Tensor::cat(Vec::from(largest), 0).into_data();
    let mut largest = largest.iter::<f64>();
    std::array::from_fn(|_| largest.next().unwrap_or(0.0))
}

/// The orthonormal factor of the polar decomposition, by the Newton–Schulz iteration
/// `Y ← Y (3 I - YᵀY) / 2` (Higham 2008, "Functions of Matrices", eq. 8.20).
fn polar<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    // The best that f32 can reach.
    const ENOUGH: f64 = 1e-6;
    let [_d, rank] = matrix.dims();
    let one = identity(rank, &matrix.device());
    let gram = |y: &Tensor<B, 2>| product(y.clone().transpose(), y.clone());
    let step =
        |y: Tensor<B, 2>, square: Tensor<B, 2>| product(y, (one.clone() * 3.0 - square) * 0.5);
    // Rounding is all that is left.
    let is_rounding = |now: f64, last: f64| now >= last && now < 1e-4;
    // In training, the matrix is nearly orthonormal. The first step is made before it is known how
    // far it is from that, so that the device is mostly waited for once.
    let mut y = matrix;
    let mut square = gram(&y);
    let next = step(y.clone(), square.clone());
    let next_square = gram(&next);
    let [mut last, now] = deviations([&square, &next_square], &one);
    if last < ENOUGH {
        return y;
    }
    if last > 0.5 {
        // The iteration needs singular values below √3; the largest row sum bounds their squares.
        let bound = square.clone().abs().sum_dim(1).max();
        let bound = bound.into_data().iter::<f64>().next().unwrap_or(1.0);
        if bound > 0.0 {
            y = y * bound.sqrt().recip();
            square = square * bound.recip();
        }
        last = f64::INFINITY;
    } else {
        if is_rounding(now, last) {
            return next;
        }
        (y, square, last) = (next, next_square, now);
    }
    // Each step grows singular values by half: enough steps for values of 1e-8.
    for _ in 0..80 {
        if last < ENOUGH {
            break;
        }
        y = step(y, square);
        square = gram(&y);
        let [now] = deviations([&square], &one);
        if is_rounding(now, last) {
            break;
        }
        last = now;
    }
    y
}

/// A square orthonormal matrix that starts with these columns.
fn complete<B: Backend>(columns: Tensor<B, 2>) -> Tensor<B, 2> {
    let [d, rank] = columns.dims();
    if rank == d {
        return columns;
    }
    let device = columns.device();
    let random = Seeded::<B>::new(0, &device).normal([d, d - rank]);
    let orthogonal = |x: Tensor<B, 2>| {
        let inside = product(columns.clone().transpose(), x.clone());
        x - product(columns.clone(), inside)
    };
    // Twice: rounding leaves a part of the columns in the first result.
    let rest = polar(orthogonal(polar(orthogonal(random))));
    Tensor::cat(vec![columns, rest], 1)
}

/// `tril(X) - tril(X)ᵀ`.
fn skew<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let lower = x.tril(0);
    lower.clone() - lower.transpose()
}

/// `exp(A)`, by scaling and squaring a Taylor polynomial of degree 8.
fn exponential<B: Backend>(a: Tensor<B, 2>) -> Tensor<B, 2> {
    let [d, _d] = a.dims();
    let one = identity(d, &a.device());
    let norm = a.clone().detach().abs().sum_dim(1).max();
    let norm: f64 = norm.into_data().iter::<f64>().next().unwrap_or(0.0);
    // The remainder is below norm⁹ / 9!, here 5e-9.
    let halvings = if norm > 0.5 {
        (norm / 0.5).log2().ceil() as u32
    } else {
        0
    };
    let a = a * 0.5_f64.powi(halvings as i32);
    let a2 = product(a.clone(), a.clone());
    let a3 = product(a2.clone(), a.clone());
    let a4 = product(a2.clone(), a2.clone());
    let low = one.clone() + a.clone() + a2.clone() * 0.5 + a3.clone() * (1.0 / 6.0);
    let high = one * (1.0 / 24.0)
        + a * (1.0 / 120.0)
        + a2 * (1.0 / 720.0)
        + a3 * (1.0 / 5040.0)
        + a4.clone() * (1.0 / 40320.0);
    let mut power = low + product(a4, high);
    for _ in 0..halvings {
        power = product(power.clone(), power);
    }
    power
}

/// `(I - A/2)⁻¹ (I + A/2)`.
fn cayley<B: Backend>(a: Tensor<B, 2>) -> Tensor<B, 2> {
    let [d, _d] = a.dims();
    let one: Tensor<B, 2> = identity(d, &a.device());
    let half = a * 0.5;
    let matrix = one.clone() - half.clone();
    product(inverse(matrix), one + half)
}

/// The inverse, by Newton's iteration `Y ← Y (2 I - M Y)`. Only its last step is differentiated.
/// That gives the whole derivative, since the step's derivative with respect to `Y` vanishes at the
/// inverse.
fn inverse<B: Backend>(matrix: Tensor<B, 2>) -> Tensor<B, 2> {
    let [d, _d] = matrix.dims();
    let one: Tensor<B, 2> = identity(d, &matrix.device());
    let fixed = matrix.clone().detach();
    let largest = |axis| {
        let sums = fixed.clone().abs().sum_dim(axis).max().into_data();
        sums.iter::<f64>().next().unwrap_or(1.0)
    };
    let mut y = fixed.clone().transpose() * (largest(0) * largest(1)).recip();
    let step = |matrix: Tensor<B, 2>, y: Tensor<B, 2>| {
        let inner = product(matrix, y.clone());
        product(y, one.clone() * 2.0 - inner)
    };
    let mut last = f64::INFINITY;
    for _ in 0..80 {
        let near_one = product(fixed.clone(), y.clone());
        let [now] = deviations([&near_one], &one);
        if now < 1e-6 || (now >= last && now < 1e-3) {
            break;
        }
        last = now;
        y = step(fixed.clone(), y);
    }
    step(matrix, y.detach())
}

/// The first columns of the product of reflections `I - τ v vᵀ`, times the signs on the diagonal,
/// which are not trained.
fn householder<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [d, rank] = x.dims();
    let unit = identity(d, &x.device()).narrow(1, 0, rank);
    let signs = (x.clone().detach() * unit.clone()).sum_dim(0); // [1, rank]
    // PyTorch truncates them to whole numbers.
    let signs = signs.clone().sign() * signs.abs().floor();
    let vectors = x.tril(-1) + unit.clone();
    let squares = vectors.clone().powi_scalar(2).sum_dim(0); // [1, rank], 1 + Σ a²
    let mut turned = unit;
    for column in (0..rank).rev() {
        let v = vectors.clone().narrow(1, column, 1); // [d, 1]
        let tau = squares.clone().narrow(1, column, 1).recip() * 2.0; // [1, 1]
        let inner = product(v.clone().transpose(), turned.clone()); // [1, rank]
        turned = turned - product(v, inner * tau);
    }
    turned * signs
}
