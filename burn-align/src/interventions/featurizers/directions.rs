//! Fixed directions: those of steering vectors and probes.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{Basis, Encoded, Featurizer};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::interventions::{Orthonormal, OrthonormalError, OrthonormalMap};
use crate::saved::SaveInterventionsError;

/// Coordinates along fixed orthonormal directions: `z = x W`, and a change of them adds `Δz Wᵀ`.
/// Nothing is trained.
///
/// With one direction `v`, the operations are those of steering:
///
/// | operation | `h` becomes |
/// | --- | --- |
/// | [`ConstantSource`](crate::interventions::ConstantSource): add `[c]` | `h + c v`: additive |
/// | [`AddNorm`](crate::interventions::AddNorm) | `h + c ‖h‖ v`: norm-scaled |
/// | [`Fill::ZERO`](crate::interventions::Fill::ZERO) | `(I - v vᵀ) h`: projected out |
/// | [`Scale`](crate::interventions::Scale) | `(I - v vᵀ) h + c v vᵀ h` |
/// | [`Clamp`](crate::interventions::Clamp) | `vᵀ h` within limits: capped |
/// | [`Swap`](crate::interventions::Swap) | `h + v vᵀ (source - h)`: the component swapped |
#[derive(Module, Debug)]
#[doc(alias = "steering vector")]
#[doc(alias = "directional ablation")]
pub struct Directions<B: Backend> {
    /// The directions `W`, `[d, feature]`.
    directions: Param<Tensor<B, 2>>,
}

/// A vector without a direction.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("expected a vector of a finite norm above 0, found the norm {norm}: it has no direction")]
pub struct NoDirection {
    /// The vector's norm.
    pub norm: f64,
}

impl<B: Backend> Directions<B> {
    /// The direction of a vector.
    ///
    /// # Shapes
    /// - vector: `[d]`
    ///
    /// # Errors
    /// If the vector is zero or not finite.
    pub fn along(vector: Tensor<B, 1>) -> Result<Self, NoDirection> {
        let vector = vector.detach().cast(DType::F32);
        let values: Vec<f64> = vector.to_data().iter::<f64>().collect();
        let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !norm.is_finite() || norm <= f64::MIN_POSITIVE {
            return Err(NoDirection { norm });
        }
        // In f64, so that very long and very short vectors keep their direction.
        let unit: Vec<f32> = values.iter().map(|x| (x / norm) as f32).collect();
        let unit = TensorData::new(unit, [values.len(), 1]);
        Ok(Self::fixed(Tensor::from_data(
            unit,
            (&vector.device(), DType::F32),
        )))
    }

    /// Orthonormal directions that span what these columns span: the closest ones.
    ///
    /// # Shapes
    /// - columns: `[d, feature]`, of full rank
    ///
    /// # Errors
    /// If there are none or too many.
    pub fn spanned_by(columns: Tensor<B, 2>) -> Result<Self, OrthonormalError> {
        let matrix = Orthonormal::from_matrix(columns, OrthonormalMap::Retraction)?;
        Ok(Self::fixed(matrix.matrix()))
    }

    fn fixed(directions: Tensor<B, 2>) -> Self {
        Self {
            directions: Param::from_tensor(directions),
        }
        .no_grad()
    }

    /// The directions, `[d, feature]`.
    pub fn matrix(&self) -> Tensor<B, 2> {
        self.directions.val().detach()
    }

    fn columns(&self) -> Basis<B> {
        Basis::Columns(self.matrix())
    }
}

impl<B: Backend> Featurizer<B> for Directions<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.directions.dims())
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.columns().read(x)
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        self.columns().decode(z, from)
    }

    fn basis(&self) -> Option<Basis<B>> {
        Some(self.columns())
    }
}

impl<B: Backend> Part<B> for Directions<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.tensor("directions", &self.directions)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        Ok(Self::fixed(from.directions("directions")?))
    }
}
