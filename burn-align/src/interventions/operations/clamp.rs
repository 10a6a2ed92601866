//! Keeping features within limits.

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::{Change, Features, Operation};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// Keeps every feature from `min` to `max`; on a direction, this caps the projection on it.
#[derive(Module, Clone, Debug)]
#[doc(alias = "projection cap")]
pub struct Clamp {
    #[module(skip)]
    min: Option<f64>,
    #[module(skip)]
    max: Option<f64>,
}

impl Clamp {
    /// Between two limits. If they are the wrong way round, everything becomes `max`.
    pub fn between(min: f64, max: f64) -> Self {
        Self {
            min: Some(min),
            max: Some(max),
        }
    }

    /// Nothing below.
    pub fn at_least(min: f64) -> Self {
        Self {
            min: Some(min),
            max: None,
        }
    }

    /// Nothing above.
    pub fn at_most(max: f64) -> Self {
        Self {
            min: None,
            max: Some(max),
        }
    }
}

impl<B: Backend> Operation<B> for Clamp {
    fn is_local(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        let mut new = features.base();
        if let Some(min) = self.min {
            new = new.clamp_min(min);
        }
        if let Some(max) = self.max {
            new = new.clamp_max(max);
        }
        Change::Value(new)
    }
}

impl<B: Backend> Part<B> for Clamp {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        for (name, limit) in [("min", self.min), ("max", self.max)] {
            if let Some(limit) = limit {
                out.number(name, limit);
            }
        }
        Ok(())
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let mut limit = |name| match from.fields.contains_key(name) {
            true => from.number(name).map(Some),
            false => Ok(None),
        };
        let (min, max) = (limit("min")?, limit("max")?);
        Ok(Self { min, max })
    }
}
