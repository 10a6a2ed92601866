//! Directions as a control vector of llama.cpp.

use burn_align_models::{Component, Site};

use super::Direction;
use crate::saved::{ControlVector, ControlVectorError};

impl ControlVector {
    /// Directions after blocks, each times `strength`. At strength 1 they are as long as the median
    /// activation, which is more than a model bears when it is added after every layer.
    ///
    /// # Errors
    /// As [`new`](Self::new), or if a direction is not from a block's output.
    pub fn from_directions<'a>(
        model_hint: impl Into<String>,
        directions: impl IntoIterator<Item = &'a Direction>,
        strength: f32,
    ) -> Result<Self, ControlVectorError> {
        let mut by_layer: Vec<(usize, Vec<f32>)> = Vec::new();
        for direction in directions {
            let Site::Block(layer, Component::BlockOutput) = direction.site else {
                return Err(ControlVectorError::WrongSite {
                    found: direction.site,
                });
            };
            let vector = direction.vector.iter().map(|value| strength * value);
            by_layer.push((layer, vector.collect()));
        }
        Self::new(model_hint, by_layer)
    }
}
