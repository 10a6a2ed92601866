//! The rotated features of distributed alignment search.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Basis, Encoded, Featurizer};
use crate::interventions::Orthonormal;
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Coordinates along the orthonormal columns of a matrix `W`, which can be trained: `z = x W`. A
/// change of them leaves everything else untouched: `x + Δz Wᵀ`.
///
/// The columns span a subspace; those of a square `W` span the whole space.
#[derive(Module, Debug)]
pub struct Rotation<B: Backend> {
    /// The directions `W`, `[d, feature]`.
    pub rotation: Orthonormal<B>,
}

impl<B: Backend> Rotation<B> {
    /// Coordinates along these columns.
    pub fn new(rotation: Orthonormal<B>) -> Self {
        Self { rotation }
    }

    fn columns(&self) -> Basis<B> {
        Basis::Columns(self.rotation.matrix())
    }
}

impl<B: Backend> Featurizer<B> for Rotation<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        Some(self.rotation.dims())
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

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }
}

impl<B: Backend> Part<B> for Rotation<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.rotation(&self.rotation)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        Ok(Self::new(from.rotation()?))
    }
}
