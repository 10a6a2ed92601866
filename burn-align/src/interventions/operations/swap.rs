//! The plain interchange, and part of the way to it.

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::{Change, Features, Operation};
use crate::interventions::parts::saved_as_numbers;

/// The interchange intervention: the source's features replace the base's (Geiger et al. 2021,
/// arXiv 2106.02997).
#[derive(Module, Clone, Debug, Default)]
#[doc(alias = "interchange intervention")]
#[doc(alias = "activation patching")]
pub struct Swap;

impl<B: Backend> Operation<B> for Swap {
    fn is_local(&self) -> bool {
        true
    }

    fn needs_source(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        features.swap()
    }
}

/// Part of the way from the base to the source: `base + share · (source - base)`.
#[derive(Module, Clone, Debug)]
pub struct Interpolate {
    /// The share of the source; beyond 0 to 1 it extrapolates.
    pub share: f64,
}

impl<B: Backend> Operation<B> for Interpolate {
    fn is_local(&self) -> bool {
        true
    }

    fn needs_source(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Difference(features.difference() * self.share)
    }
}

saved_as_numbers! {
    Swap {}
    Interpolate { share }
}
