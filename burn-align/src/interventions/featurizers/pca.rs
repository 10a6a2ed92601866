//! Principal components, and computing them.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{Encoded, Featurizer};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Principal components: `z = ((x - μ) / σ) Cᵀ`, and the vector `(z C) ⊙ σ + μ`.
///
/// The part outside of the components is lost, as in pyvene; with as many components as features
/// nothing is lost. Nothing is trained: [`fit`](Self::fit) computes everything from activations.
///
/// Components are ordered by variance, not by their effect on the prediction: a variable may be in
/// a direction of small variance.
#[derive(Module, Debug)]
#[doc(alias = "PCARotatedSpaceIntervention")]
pub struct Pca<B: Backend> {
    /// The components, `[component, d]`, in order of decreasing variance.
    pub components: Param<Tensor<B, 2>>,
    /// The mean `μ`, `[d]`.
    pub mean: Param<Tensor<B, 1>>,
    /// The standard deviation `σ`, `[d]`.
    pub std: Param<Tensor<B, 1>>,
}

/// Why principal components cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "principal components: expected 1 to {most} of them, from at least 2 vectors, found \
     {components} from {vectors}"
)]
pub struct PcaError {
    /// Number of components.
    pub components: usize,
    /// Number of vectors.
    pub vectors: usize,
    /// Features of a vector.
    pub most: usize,
}

impl<B: Backend> Pca<B> {
    /// Components with these parameters.
    ///
    /// # Shapes
    /// - components: `[component, d]`
    /// - mean, std: `[d]`
    pub fn new(components: Tensor<B, 2>, mean: Tensor<B, 1>, std: Tensor<B, 1>) -> Self {
        Self {
            components: Param::from_tensor(components.cast(DType::F32)),
            mean: Param::from_tensor(mean.cast(DType::F32)),
            std: Param::from_tensor(std.cast(DType::F32)),
        }
        .no_grad()
    }

    /// Computes the principal components of standardised vectors. Features that do not vary are not
    /// scaled.
    ///
    /// # Shapes
    /// - vectors: `[vector, d]`, for example collected activations
    ///
    /// # Errors
    /// If there are too few vectors for this many components.
    pub fn fit(vectors: Tensor<B, 2>, components: usize) -> Result<Self, PcaError> {
        let [count, d] = vectors.dims();
        if components == 0 || components > d || count < 2 {
            return Err(PcaError {
                components,
                vectors: count,
                most: d,
            });
        }
        let vectors = vectors.detach().cast(DType::F32);
        let device = vectors.device();
        let mean = vectors.clone().mean_dim(0); // [1, d]
        let centred = vectors - mean.clone();
        let variance = centred.clone().powi_scalar(2).mean_dim(0);
        let still = variance.clone().lower_elem(1e-12);
        let std = variance.sqrt().mask_fill(still, 1.0);
        let standard = centred / std.clone();
        let covariance = standard.clone().transpose().matmul(standard) / count as f64;
        let covariance: Vec<f64> = covariance.into_data().iter::<f64>().collect();
        let directions = eigenvectors(covariance, d, components);
        let directions: Vec<f32> = directions.into_iter().map(|x| x as f32).collect();
        let data = burn::tensor::TensorData::new(directions, [components, d]);
        Ok(Self::new(
            Tensor::from_data(data, (&device, DType::F32)),
            mean.squeeze_dim(0),
            std.squeeze_dim(0),
        ))
    }
}

impl<B: Backend> Featurizer<B> for Pca<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        let [components, d] = self.components.dims();
        Some([d, components])
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let mean = self.mean.val().detach().unsqueeze();
        let std = self.std.val().detach().unsqueeze();
        let components = self.components.val().detach();
        ((x - mean) / std).matmul(components.transpose())
    }

    fn decode(&self, z: Tensor<B, 2>, _from: &Encoded<'_, B>) -> Tensor<B, 2> {
        let mean = self.mean.val().detach().unsqueeze();
        let std = self.std.val().detach().unsqueeze();
        z.matmul(self.components.val().detach()) * std + mean
    }

    fn is_affine(&self) -> bool {
        true
    }
}

impl<B: Backend> Part<B> for Pca<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.tensor("components", &self.components)?;
        out.tensor("mean", &self.mean)?;
        out.tensor("std", &self.std)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let components = from.tensor("components", [None, None])?;
        let [_component, d] = components.dims();
        let mean = from.tensor("mean", [Some(d)])?;
        Ok(Self::new(components, mean, from.tensor("std", [Some(d)])?))
    }
}

/// The eigenvectors with the largest eigenvalues of a symmetric matrix, one after another, by
/// Jacobi rotations (Golub & Van Loan 2013, "Matrix Computations", algorithm 8.5.3).
///
/// Each has the sign that makes its largest entry positive.
fn eigenvectors(mut a: Vec<f64>, d: usize, count: usize) -> Vec<f64> {
    const MOST_SWEEPS: usize = 60;
    let mut v = vec![0.0; d * d]; // Row i: eigenvector i.
    for i in 0..d {
        v[i * d + i] = 1.0;
    }
    let scale: f64 = a.iter().map(|x| x * x).sum::<f64>().max(f64::MIN_POSITIVE);
    for _ in 0..MOST_SWEEPS {
        let off: f64 = (0..d)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i * d + j] * a[i * d + j])
            .sum();
        if off <= 1e-26 * scale {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                let apq = a[p * d + q];
                if apq.abs() < 1e-300 {
                    continue;
                }
                let tau = (a[q * d + q] - a[p * d + p]) / (2.0 * apq);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = (1.0 + t * t).sqrt().recip();
                let s = t * c;
                for k in 0..d {
                    let (kp, kq) = (a[k * d + p], a[k * d + q]);
                    a[k * d + p] = c * kp - s * kq;
                    a[k * d + q] = s * kp + c * kq;
                }
                for k in 0..d {
                    let (pk, qk) = (a[p * d + k], a[q * d + k]);
                    a[p * d + k] = c * pk - s * qk;
                    a[q * d + k] = s * pk + c * qk;
                    let (vp, vq) = (v[p * d + k], v[q * d + k]);
                    v[p * d + k] = c * vp - s * vq;
                    v[q * d + k] = s * vp + c * vq;
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|i, j| a[j * d + j].total_cmp(&a[i * d + i]));
    let mut result = Vec::with_capacity(count * d);
    for index in order.into_iter().take(count) {
        let vector = &v[index * d..(index + 1) * d];
        let largest = vector
            .iter()
            .copied()
            .max_by(|x, y| x.abs().total_cmp(&y.abs()))
            .unwrap_or(1.0);
        result.extend(vector.iter().map(|x| x * largest.signum()));
    }
    result
}
