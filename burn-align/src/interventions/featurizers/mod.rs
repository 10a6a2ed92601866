//! Which features are changed, one featurizer a file.
//!
//! To add a featurizer: a file, its `mod` line, and a row of the table. It then goes with every
//! operation and mask, and is saved.

mod autoencoder;
mod dictionary;
mod directions;
mod identity;
mod pca;
mod rotation;

use burn::tensor::{Tensor, backend::Backend};

use super::Orthonormal;
use super::featurizer::{Basis, Encoded, Featurizer};

pub use self::directions::NoDirection;
pub use self::pca::PcaError;

super::parts::table! {
    ($)
    /// The featurizers that come with this crate.
    BuiltinFeaturizer "featurizer" {
        identity::Identity => "identity",
        rotation::Rotation<B> => "rotation",
        directions::Directions<B> => "directions",
        pca::Pca<B> => "pca",
        autoencoder::Autoencoder<B> => "autoencoder",
        autoencoder::JumpReluAutoencoder<B> => "jump_relu_autoencoder",
        dictionary::DictionaryFeatures<B> => "dictionary",
    }
}

impl<B: Backend> Featurizer<B> for BuiltinFeaturizer<B> {
    fn dims(&self) -> Option<[usize; 2]> {
        each!(self, it => Featurizer::<B>::dims(it))
    }

    fn encode(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        each!(self, it => Featurizer::encode(it, x))
    }

    fn decode(&self, z: Tensor<B, 2>, from: &Encoded<'_, B>) -> Tensor<B, 2> {
        each!(self, it => Featurizer::decode(it, z, from))
    }

    fn basis(&self) -> Option<Basis<B>> {
        each!(self, it => it.basis())
    }

    fn is_affine(&self) -> bool {
        each!(self, it => Featurizer::<B>::is_affine(it))
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        each!(self, it => it.orthonormal())
    }
}
