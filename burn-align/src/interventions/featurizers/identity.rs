//! The vector's own features.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::{Basis, Encoded, Featurizer};
use crate::interventions::parts::saved_as_numbers;

/// The features of the vector itself, whatever its width: neurons.
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct Identity;

impl<B: Backend> Featurizer<B> for Identity {
    fn dims(&self) -> Option<[usize; 2]> {
        None
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        x
    }

    fn decode(&self, z: Tensor<B, 2>, _from: &Encoded<'_, B>) -> Tensor<B, 2> {
        z
    }

    fn basis(&self) -> Option<Basis<B>> {
        Some(Basis::Axes)
    }
}

saved_as_numbers!(Identity {});
