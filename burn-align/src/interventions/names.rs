//! The names that pyvene and the literature have for some compositions.

use burn::tensor::DType::F32;
use burn::tensor::{Tensor, backend::Backend};

use super::{
    Autoencoder, Boundary, Composed, Identity, JumpReluAutoencoder, Orthonormal, Pca, PcaError,
    Rotation, SigmoidMask, Swap, TokenGrouping,
};

pub use super::operations::{
    Add as AdditionIntervention, Closure as LambdaIntervention,
    ConstantSource as ConstantSourceIntervention, Fill as FillIntervention,
    Noise as NoiseIntervention, Reft as ReftIntervention, Scale as ScalingIntervention,
    Subtract as SubtractionIntervention, Swap as VanillaIntervention,
};

/// The rotated interchange intervention of distributed alignment search (Geiger et al. 2023, arXiv
/// 2303.02536, eq. 1): inside a subspace, the source replaces the base,
/// `base + (source W - base W) Wᵀ`.
///
/// The columns of `W` span the subspace. A square `W` spans the whole space; choose subspaces of it
/// with [`Operands::subspace`](super::Operands::subspace) or by the number of swapped columns.
///
/// # When it misleads
/// A trained subspace may over-fit: evaluate it on held-out data, next to a random rotation of the
/// same rank ([`evaluate_with_controls`](crate::training::evaluate_with_controls)). A swap along a
/// subspace can also drive a pathway that is dormant in normal runs, so that it changes the answer
/// although the model does not keep the variable there (Makelov et al. 2023, arXiv 2311.17030).
#[doc(alias = "LowRankRotatedSpaceIntervention")]
#[doc(alias = "DAS")]
pub type RotatedSpaceIntervention<B> = Composed<B, Rotation<B>, Swap>;

impl<B: Backend> Composed<B, Rotation<B>, Swap> {
    /// Swaps along all directions.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        Self::of(Rotation::new(rotation), Swap).with_tokens(tokens)
    }

    /// Swaps along the first directions only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(self, directions: usize) -> Self {
        let [_d, rank] = self.featurizer.rotation.dims();
        match directions < rank {
            true => self.with_changed((0..directions).collect()),
            false => self,
        }
    }

    /// How many directions are swapped if no subspace is named.
    pub fn swapped(&self) -> usize {
        let [_d, rank] = self.featurizer.rotation.dims();
        self.changed().map_or(rank, <[usize]>::len)
    }
}

/// Boundless DAS (Wu et al. 2023, arXiv 2305.08809, eq. 4): swaps the first rotated features, up to
/// a learned [`Boundary`].
pub type BoundlessRotatedSpaceIntervention<B> = Composed<B, Rotation<B>, Swap, Boundary<B>>;

impl<B: Backend> Composed<B, Rotation<B>, Swap, Boundary<B>> {
    /// Starts with the boundary in the middle, at temperature 50.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        let [_d, features] = rotation.dims();
        let middle = Tensor::full([1], 0.5, (&rotation.parameter.device(), F32));
        Composed::of(Rotation::new(rotation), Swap)
            .with_tokens(tokens)
            .with_mask(Boundary::new(middle, features, 50.0))
    }
}

/// A rotation with a learned mask: the share `σ(mᵢ / T)` of rotated feature `i` is swapped.
pub type SigmoidMaskRotatedSpaceIntervention<B> = Composed<B, Rotation<B>, Swap, SigmoidMask<B>>;

impl<B: Backend> Composed<B, Rotation<B>, Swap, SigmoidMask<B>> {
    /// Starts with logits of 100 at temperature 50, which swaps 0.88 of each feature.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        let [_d, features] = rotation.dims();
        let mask = SigmoidMask::uniform(100.0, features, 50.0, &rotation.parameter.device());
        Composed::of(Rotation::new(rotation), Swap)
            .with_tokens(tokens)
            .with_mask(mask)
    }
}

/// A learned mask without a rotation: the share `σ(mᵢ / T)` of feature `i` is swapped (differential
/// binary masking; Davies et al. 2023, arXiv 2307.03637).
#[doc(alias = "DBM")]
pub type SigmoidMaskIntervention<B> = Composed<B, Identity, Swap, SigmoidMask<B>>;

impl<B: Backend> Composed<B, Identity, Swap, SigmoidMask<B>> {
    /// Starts with logits of 0 for `d` features, at temperature 0.01.
    pub fn new(d: usize, tokens: TokenGrouping, device: &B::Device) -> Self {
        Composed::of(Identity, Swap)
            .with_tokens(tokens)
            .with_mask(SigmoidMask::uniform(0.0, d, 0.01, device))
    }
}

/// Swaps [principal components](Pca). The part outside of them is lost, as in pyvene; with as many
/// components as features nothing is lost.
#[doc(alias = "PCARotatedSpaceIntervention")]
pub type PcaIntervention<B> = Composed<B, Pca<B>, Swap>;

impl<B: Backend> Composed<B, Pca<B>, Swap> {
    /// An intervention with these parameters.
    ///
    /// # Shapes
    /// - components: `[component, d]`
    /// - mean, std: `[d]`
    pub fn new(
        components: Tensor<B, 2>,
        mean: Tensor<B, 1>,
        std: Tensor<B, 1>,
        tokens: TokenGrouping,
    ) -> Self {
        Self::of(Pca::new(components, mean, std), Swap).with_tokens(tokens)
    }

    /// Computes the components; see [`Pca::fit`].
    ///
    /// # Shapes
    /// - vectors: `[vector, d]`, for example collected activations
    ///
    /// # Errors
    /// If there are too few vectors for this many components.
    pub fn fit(
        vectors: Tensor<B, 2>,
        components: usize,
        tokens: TokenGrouping,
    ) -> Result<Self, PcaError> {
        let pca = Pca::fit(vectors, components)?;
        Ok(Self::of(pca, Swap).with_tokens(tokens))
    }
}

/// Swaps hidden features of an [`Autoencoder`]. As in pyvene, the reconstruction error is lost.
#[doc(alias = "SAE")]
pub type AutoencoderIntervention<B> = Composed<B, Autoencoder<B>, Swap>;

impl<B: Backend> Composed<B, Autoencoder<B>, Swap> {
    /// An autoencoder with these parameters.
    ///
    /// # Shapes
    /// - encoder: weight `[d, latent]`, bias `[latent]`
    /// - decoder: weight `[latent, d]`, bias `[d]`
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
        tokens: TokenGrouping,
    ) -> Self {
        Self::of(Autoencoder::new(encoder, decoder), Swap).with_tokens(tokens)
    }

    /// Swaps these hidden features only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(self, features: Vec<usize>) -> Self {
        self.with_changed(features)
    }

    /// Which hidden features are swapped if no subspace is named; `None` for all.
    pub fn swapped(&self) -> Option<&[usize]> {
        self.changed()
    }
}

/// Swaps hidden features of a [`JumpReluAutoencoder`]. As in pyvene, the reconstruction error is
/// lost.
#[doc(alias = "JumpReLUAutoencoderIntervention")]
#[doc(alias = "SAE")]
pub type JumpReluAutoencoderIntervention<B> = Composed<B, JumpReluAutoencoder<B>, Swap>;

impl<B: Backend> Composed<B, JumpReluAutoencoder<B>, Swap> {
    /// An autoencoder with these parameters.
    ///
    /// # Shapes
    /// - encoder: weight `[d, latent]`, bias `[latent]`
    /// - threshold: `[latent]`
    /// - decoder: weight `[latent, d]`, bias `[d]`
    pub fn new(
        encoder: (Tensor<B, 2>, Tensor<B, 1>),
        threshold: Tensor<B, 1>,
        decoder: (Tensor<B, 2>, Tensor<B, 1>),
        tokens: TokenGrouping,
    ) -> Self {
        Self::of(JumpReluAutoencoder::new(encoder, threshold, decoder), Swap).with_tokens(tokens)
    }

    /// Swaps these hidden features only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(self, features: Vec<usize>) -> Self {
        self.with_changed(features)
    }

    /// Which hidden features are swapped if no subspace is named; `None` for all.
    pub fn swapped(&self) -> Option<&[usize]> {
        self.changed()
    }
}
