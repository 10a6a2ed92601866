//! A boundary after the first features.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Int, Tensor, activation, backend::Backend};

use super::Mask;
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Changes the first features, up to a learned boundary: Boundless DAS (Wu et al. 2023, arXiv
/// 2305.08809, eq. 4).
///
/// The share `σ(i / T) · σ((β - i) / T)` of feature `i` of `d` is changed, with the boundary
/// `β = clamp(b, 0.001, 1) · d` and a temperature `T` that falls during training. As in pyvene, the
/// first factor is ½ at `i = 0`.
#[derive(Module, Debug)]
pub struct Boundary<B: Backend> {
    /// The boundary `b` as a share of the features, `[1]`.
    pub boundary: Param<Tensor<B, 1>>,
    #[module(skip)]
    features: usize,
    #[module(skip)]
    temperature: f64,
}

impl<B: Backend> Boundary<B> {
    /// A boundary, `[1]`, as a share of this many features.
    pub fn new(boundary: Tensor<B, 1>, features: usize, temperature: f64) -> Self {
        Self {
            boundary: Param::from_tensor(boundary),
            features,
            temperature,
        }
    }

    /// How much of each feature is changed, `[1, feature]`.
    pub fn values(&self) -> Tensor<B, 2> {
        let d = self.features;
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
    pub fn within(&self) -> f64 {
        let boundary = self.boundary.val().clamp(1e-3, 1.0).into_data();
        boundary.iter::<f64>().next().unwrap_or(0.0) * self.features as f64
    }
}

impl<B: Backend> Mask<B> for Boundary<B> {
    fn shares(&self) -> Option<Tensor<B, 2>> {
        Some(self.values())
    }

    fn width(&self) -> Option<usize> {
        Some(self.features)
    }

    fn parameters(&self) -> Vec<ParamId> {
        vec![self.boundary.id]
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        Some(self.boundary.val())
    }
}

impl<B: Backend> Part<B> for Boundary<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.number("temperature", self.temperature);
        if out.features.is_none() {
            out.field("features", self.features);
        }
        out.tensor("boundary", &self.boundary)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let features = match from.features {
            Some(features) => features,
            None => from.field("features")?,
        };
        let temperature = from.number("temperature")?;
        let boundary = from.tensor("boundary", [Some(1)])?;
        Ok(Self::new(boundary, features, temperature))
    }
}
