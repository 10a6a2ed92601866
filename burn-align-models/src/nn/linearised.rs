//! Norms as linear maps of small changes of their input.
//!
//! With `x̂ = (x − mean) / σ` and `σ = √(var + ε)` over `d` features (RMS norms subtract no mean),
//! a norm is `γ ∘ x̂ + β`, and its Jacobian is
//!
//! ```text
//! J = diag(γ) · (C − x̂ x̂ᵀ / d) / σ,    C = I − 1 1ᵀ / d in layer norms, I in RMS norms
//! ```
//!
//! The term in `x̂` is there because the scale depends on the input.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};

use super::Norm;

/// The Jacobian of a norm at the vector of each position, in f32.
#[derive(Clone, Debug)]
pub struct LinearisedNorm<B: Backend> {
    /// The normalised vectors, without gain and bias, `[batch, pos, width]`.
    normed: Tensor<B, 3>,
    /// `γ / σ`, `[batch, pos, width]`.
    scale: Tensor<B, 3>,
    is_centred: bool,
}

impl<B: Backend> LinearisedNorm<B> {
    pub(super) fn new(norm: &Norm<B>, at: Tensor<B, 3>) -> Self {
        let is_centred = norm.is_centred();
        let centred = centred(at.cast(DType::F32), is_centred);
        let mean_square = (centred.clone() * centred.clone()).mean_dim(2); // [batch, pos, 1]
        let inverse = (mean_square + norm.epsilon()).sqrt().recip();
        let gain = norm.gain().expand(centred.dims());
        Self {
            normed: centred * inverse.clone(),
            scale: gain * inverse,
            is_centred,
        }
    }

    /// `J x`: by how much the output changes if the input changes by a small `x`.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, width]`
    pub fn push_forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.tangent(x.cast(DType::F32)) * self.scale.clone()
    }

    /// `Jᵀ g`: the gradient at the input that belongs to a gradient at the output.
    ///
    /// # Shapes
    /// - gradient, output: `[batch, pos, width]`
    pub fn pull_back(&self, gradient: Tensor<B, 3>) -> Tensor<B, 3> {
        // σ is a number for each position, so the projection may as well come last.
        self.tangent(gradient.cast(DType::F32) * self.scale.clone())
    }

    /// `γ ∘ C x / σ`: what a part `x` of the input is of the output if the scale is held. The parts
    /// of a sum sum to the output, but for the bias.
    ///
    /// # Shapes
    /// - x, output: `[batch, pos, width]`
    pub fn part(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        centred(x.cast(DType::F32), self.is_centred) * self.scale.clone()
    }

    /// The same on the backend without gradients.
    pub fn inner(self) -> LinearisedNorm<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        LinearisedNorm {
            normed: self.normed.inner(),
            scale: self.scale.inner(),
            is_centred: self.is_centred,
        }
    }

    /// `(C − x̂ x̂ᵀ / d) x`: `x` without its parts that change nothing once it is normalised.
    fn tangent(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let along = (x.clone() * self.normed.clone()).mean_dim(2); // [batch, pos, 1]
        let without = x.clone() - self.normed.clone() * along;
        match self.is_centred {
            true => without - x.mean_dim(2),
            false => without,
        }
    }
}

fn centred<B: Backend>(x: Tensor<B, 3>, is_centred: bool) -> Tensor<B, 3> {
    match is_centred {
        true => x.clone() - x.mean_dim(2),
        false => x,
    }
}

#[cfg(test)]
mod tests;
