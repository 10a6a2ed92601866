//! No mask.

use burn::module::{Module, ParamId};
use burn::tensor::{Tensor, backend::Backend};

use super::Mask;
use crate::interventions::parts::saved_as_numbers;

/// No mask: everything is changed.
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct Unmasked;

impl<B: Backend> Mask<B> for Unmasked {
    fn shares(&self) -> Option<Tensor<B, 2>> {
        None
    }

    fn width(&self) -> Option<usize> {
        None
    }

    fn parameters(&self) -> Vec<ParamId> {
        Vec::new()
    }
}

saved_as_numbers!(Unmasked {});
