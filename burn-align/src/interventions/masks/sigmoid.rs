//! A logit for each feature.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Tensor, activation, backend::Backend};

use super::Mask;
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// The share `σ(mᵢ / T)` of feature `i` is changed (differential binary masking; Davies et al.
/// 2023, arXiv 2307.03637).
#[derive(Module, Debug)]
#[doc(alias = "DBM")]
pub struct SigmoidMask<B: Backend> {
    /// The logits `m`, `[feature]`.
    pub logits: Param<Tensor<B, 1>>,
    #[module(skip)]
    temperature: f64,
}

impl<B: Backend> SigmoidMask<B> {
    /// A mask with these logits, `[feature]`.
    pub fn new(logits: Tensor<B, 1>, temperature: f64) -> Self {
        Self {
            logits: Param::from_tensor(logits),
            temperature,
        }
    }

    /// The same logit for every feature.
    pub fn uniform(logit: f64, features: usize, temperature: f64, device: &B::Device) -> Self {
        Self::new(
            Tensor::full([features], logit, (device, DType::F32)),
            temperature,
        )
    }

    /// How much of each feature is changed, `[1, feature]`.
    pub fn values(&self) -> Tensor<B, 2> {
        activation::sigmoid(self.logits.val() * self.temperature.recip()).unsqueeze()
    }
}

impl<B: Backend> Mask<B> for SigmoidMask<B> {
    fn shares(&self) -> Option<Tensor<B, 2>> {
        Some(self.values())
    }

    fn width(&self) -> Option<usize> {
        let [features] = self.logits.dims();
        Some(features)
    }

    fn parameters(&self) -> Vec<ParamId> {
        vec![self.logits.id]
    }

    fn temperature(&self) -> f64 {
        self.temperature
    }

    fn set_temperature(&mut self, temperature: f64) {
        self.temperature = temperature;
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        Some(self.values().mean())
    }
}

impl<B: Backend> Part<B> for SigmoidMask<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.number("temperature", self.temperature);
        out.tensor("mask", &self.logits)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let temperature = from.number("temperature")?;
        Ok(Self::new(
            from.tensor("mask", [from.features])?,
            temperature,
        ))
    }
}
