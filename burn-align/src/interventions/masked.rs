//! Interventions that learn how much of each feature they swap.
//!
//! DAS needs the size of the subspace in advance. A mask that is trained with the rotation finds
//! the size instead. While the temperature is high, the mask is soft and the swap mixes base and
//! source; results count only at the low temperature that training ends with.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};

use super::rotated::difference;
use super::{Intervention, Misfit, Operands, Orthonormal, TokenGrouping};

/// Boundless DAS (Wu et al. 2023, arXiv 2305.08809, eq. 4): swaps the first rotated features, up to
/// a learned boundary.
///
/// The share `σ(i / T) · σ((β - i) / T)` of feature `i` of `d` is swapped, with the boundary
/// `β = clamp(b, 0.001, 1) · d` and a temperature `T` that falls during training. As in pyvene, the
/// first factor is ½ at `i = 0`.
#[derive(Module, Debug)]
pub struct BoundlessRotatedSpaceIntervention<B: Backend> {
    /// The rotation, `[d, d]`.
    pub rotation: Orthonormal<B>,
    /// The boundary `b` as a share of the features, `[1]`.
    pub boundary: Param<Tensor<B, 1>>,
    #[module(skip)]
    temperature: f64,
    #[module(skip)]
    tokens: TokenGrouping,
}

impl<B: Backend> BoundlessRotatedSpaceIntervention<B> {
    /// Starts with the boundary in the middle, at temperature 50.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        let device = rotation.parameter.device();
        Self {
            rotation,
            boundary: Param::from_tensor(Tensor::full([1], 0.5, (&device, DType::F32))),
            temperature: 50.0,
            tokens,
        }
    }

    /// Sets the temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// How much of each rotated feature is swapped, `[1, d]`.
    pub fn mask(&self) -> Tensor<B, 2> {
        let [d, _d] = self.rotation.dims();
        let device = self.boundary.device();
        let index = Tensor::<B, 1, Int>::arange(0..d as i64, &device)
            .float()
            .cast(DType::F32);
        let boundary = self.boundary.val().clamp(1e-3, 1.0) * d as f64;
        let steepness = self.temperature.recip();
        let above = activation::sigmoid(index.clone() * steepness);
        let below = activation::sigmoid((boundary - index) * steepness);
        (above * below).unsqueeze()
    }

    /// The number of features within the boundary.
    pub fn width(&self) -> f64 {
        let [d, _d] = self.rotation.dims();
        let boundary = self.boundary.val().clamp(1e-3, 1.0).into_data();
        boundary.iter::<f64>().next().unwrap_or(0.0) * d as f64
    }
}

impl<B: Backend> Intervention<B> for BoundlessRotatedSpaceIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d, _d] = self.rotation.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(d)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        swap_rotated(&self.rotation, self.mask(), self.tokens, base, operands)
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        vec![self.boundary.id]
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        Some(self.boundary.val())
    }
}

/// A rotation with a learned mask: the share `σ(mᵢ / T)` of rotated feature `i` is swapped.
#[derive(Module, Debug)]
pub struct SigmoidMaskRotatedSpaceIntervention<B: Backend> {
    /// The rotation, `[d, d]`.
    pub rotation: Orthonormal<B>,
    /// The mask's logits, `[d]`.
    pub masks: Param<Tensor<B, 1>>,
    #[module(skip)]
    temperature: f64,
    #[module(skip)]
    tokens: TokenGrouping,
}

impl<B: Backend> SigmoidMaskRotatedSpaceIntervention<B> {
    /// Starts with logits of 100 at temperature 50, which swaps 0.88 of each feature.
    pub fn new(rotation: Orthonormal<B>, tokens: TokenGrouping) -> Self {
        let [d, _d] = rotation.dims();
        let device = rotation.parameter.device();
        Self {
            rotation,
            masks: Param::from_tensor(Tensor::full([d], 100.0, (&device, DType::F32))),
            temperature: 50.0,
            tokens,
        }
    }

    /// Sets the temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// How much of each rotated feature is swapped, `[1, d]`.
    pub fn mask(&self) -> Tensor<B, 2> {
        activation::sigmoid(self.masks.val() * self.temperature.recip()).unsqueeze()
    }
}

impl<B: Backend> Intervention<B> for SigmoidMaskRotatedSpaceIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d, _d] = self.rotation.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(d)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        swap_rotated(&self.rotation, self.mask(), self.tokens, base, operands)
    }

    fn orthonormal(&mut self) -> Vec<&mut Orthonormal<B>> {
        vec![&mut self.rotation]
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        vec![self.masks.id]
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        Some(self.mask().mean())
    }
}

/// A learned mask without a rotation: the share `σ(mᵢ / T)` of feature `i` is swapped (differential
/// binary masking; Davies et al. 2023, arXiv 2307.03637).
#[derive(Module, Debug)]
#[doc(alias = "DBM")]
pub struct SigmoidMaskIntervention<B: Backend> {
    /// The mask's logits, `[d]`.
    pub mask: Param<Tensor<B, 1>>,
    #[module(skip)]
    temperature: f64,
    #[module(skip)]
    tokens: TokenGrouping,
}

impl<B: Backend> SigmoidMaskIntervention<B> {
    /// Starts with logits of 0 for `d` features, at temperature 0.01.
    pub fn new(d: usize, tokens: TokenGrouping, device: &B::Device) -> Self {
        Self {
            mask: Param::from_tensor(Tensor::zeros([d], (device, DType::F32))),
            temperature: 0.01,
            tokens,
        }
    }

    /// Sets the temperature.
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// How tokens are grouped into vectors.
    pub fn tokens(&self) -> TokenGrouping {
        self.tokens
    }

    /// How much of each feature is swapped, `[1, d]`.
    pub fn shares(&self) -> Tensor<B, 2> {
        activation::sigmoid(self.mask.val() * self.temperature.recip()).unsqueeze()
    }
}

impl<B: Backend> Intervention<B> for SigmoidMaskIntervention<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn features(&self, units: usize, d_site: usize) -> Result<usize, Misfit> {
        let [d] = self.mask.dims();
        self.tokens.check(d, units, d_site)?;
        Ok(d)
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let change = difference(self.tokens, &base, operands.source()) * self.shares();
        let change = super::rotated::choose(change, operands.subspace, base.dims()[0]);
        self.tokens.add(base, change)
    }

    fn mask_parameters(&self) -> Vec<ParamId> {
        vec![self.mask.id]
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        Some(self.shares().mean())
    }
}

/// `base + (m ⊙ (source - base) W) Wᵀ`.
fn swap_rotated<B: Backend>(
    rotation: &Orthonormal<B>,
    mask: Tensor<B, 2>,
    tokens: TokenGrouping,
    base: Tensor<B, 3>,
    operands: Operands<B>,
) -> Tensor<B, 3> {
    let matrix = rotation.matrix();
    let rotated = difference(tokens, &base, operands.source()).matmul(matrix.clone());
    let change = super::rotated::choose(rotated * mask, operands.subspace, base.dims()[0]);
    tokens.add(base, change.matmul(matrix.transpose()))
}
