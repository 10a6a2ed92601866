//! The rotated swap of distributed alignment search.

use burn::module::Module;
use burn::tensor::{Bool, DType, Tensor, backend::Backend};

use super::{Intervention, Misfit, Operands, Orthonormal, TokenGrouping};

/// The rotated interchange intervention of distributed alignment search (Geiger et al. 2023, arXiv
/// 2303.02536, eq. 1): inside a subspace, the source replaces the base,
/// `base + (source W - base W) Wᵀ`.
///
/// The columns of `W` span the subspace. A square `W` spans the whole space; choose subspaces of it
/// with [`Operands::subspace`] or by the number of swapped columns.
///
/// # When it misleads
/// A trained subspace may over-fit: evaluate it on held-out data, next to a random rotation of the
/// same rank ([`evaluate_with_controls`](crate::training::evaluate_with_controls)). A swap along a
/// subspace can also drive a pathway that is dormant in normal runs, so that it changes the answer
/// although the model does not keep the variable there (Makelov et al. 2023, arXiv 2311.17030).
#[derive(Module, Debug)]
#[doc(alias = "LowRankRotatedSpaceIntervention")]
#[doc(alias = "DAS")]
pub struct RotatedSpaceIntervention<B: Backend> {
    /// The directions `W`, `[d, rank]`.
    pub rotation: Orthonormal<B>,
    #[module(skip)]
    tokens: TokenGrouping,
    /// How many of the directions are swapped if no subspace is named.
    #[module(skip)]
    swapped: usize,
}

impl<B: Backend> RotatedSpaceIntervention<B> {
    /// Swaps along all directions.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        let [_d, rank] = rotation.dims();
        Self {
            rotation,
            tokens,
            swapped: rank,
        }
    }

    /// Swaps along the first directions only, if no subspace is named.
    #[doc(alias = "interchange_dim")]
    pub fn with_swapped(mut self, directions: usize) -> Self {
        let [_d, rank] = self.rotation.dims();
        self.swapped = directions.min(rank);
        self
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// How many directions are swapped if no subspace is named.
    pub fn swapped(&self) -> usize {
        self.swapped
    }
}

impl<B: Backend> Intervention<B> for RotatedSpaceIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d, rank] = self.rotation.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(rank)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let mut matrix = self.rotation.matrix();
        let [_d, rank] = matrix.dims();
        if operands.subspace.is_none() && self.swapped < rank {
            matrix = matrix.narrow(1, 0, self.swapped);
        }
        let difference = difference(self.tokens, &base, operands.source());
        let rotated = difference.matmul(matrix.clone());
        let chosen = choose(rotated, operands.subspace, base.dims()[0]);
        self.tokens.add(base, chosen.matmul(matrix.transpose()))
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }
}

/// `source - base`, `[vector, d]`, in f32.
pub(super) fn difference<B: Backend>(
    tokens: TokenGrouping,
    base: &Tensor<B, 3>,
    source: Tensor<B, 3>,
) -> Tensor<B, 2> {
    tokens.join(source.cast(DType::F32) - base.clone().cast(DType::F32))
}

/// Zeroes the change outside of the subspace.
///
/// # Shapes
/// - change, output: `[vector, feature]`, the vectors of an example one after another
/// - subspace: `[batch, 1, feature]`
pub(super) fn choose<B: Backend>(
    change: Tensor<B, 2>,
    subspace: Option<Tensor<B, 3, Bool>>,
    batch: usize,
) -> Tensor<B, 2> {
    let Some(subspace) = subspace else {
        return change;
    };
    let [vectors, feature] = change.dims();
    let shape = [batch, vectors / batch, feature];
    let change = change.reshape(shape);
    let zeros = change.zeros_like();
    zeros
        .mask_where(subspace.expand(shape), change)
        .reshape([vectors, feature])
}
