//! Adding, subtracting and scaling.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{Change, Features, Operation};
use crate::interventions::parts::saved_as_numbers;

/// `base + source`: steering, or noise if the source is a constant.
///
/// A large sum leaves the range of natural activations, and the model's reaction then says little
/// about how it works. Compare the norm of what is added with the norm of the base.
#[derive(Module, Clone, Debug, Default)]
#[doc(alias = "steering")]
pub struct Add;

impl<B: Backend> Operation<B> for Add {
    fn is_local(&self) -> bool {
        true
    }

    fn needs_source(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Difference(features.source())
    }
}

/// `base - source`.
#[derive(Module, Clone, Debug, Default)]
pub struct Subtract;

impl<B: Backend> Operation<B> for Subtract {
    fn is_local(&self) -> bool {
        true
    }

    fn needs_source(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Difference(-features.source())
    }
}

/// `factor · base`. Along a direction, `(I - P) x + factor · P x`.
#[derive(Module, Clone, Debug)]
pub struct Scale {
    /// What the features are multiplied by.
    pub factor: f64,
}

impl<B: Backend> Operation<B> for Scale {
    fn is_local(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        Change::Value(features.base() * self.factor)
    }
}

/// Adds a multiple of the vector's norm to each feature: `base + factor · ‖x‖`. On a direction `v`
/// of norm 1 this adds `factor · ‖x‖ · v`, so that one factor suits layers whose activations differ
/// in size.
///
/// The norm is that of the token. The first position of a text is often an attention sink, with an
/// activation up to a hundred times larger than others: leave it out.
#[derive(Module, Clone, Debug)]
#[doc(alias = "norm-scaled add")]
pub struct AddNorm {
    /// What the norm is multiplied by.
    pub factor: f64,
}

impl<B: Backend> Operation<B> for AddNorm {
    fn is_local(&self) -> bool {
        true
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        // In f32: in f16, squares overflow from a norm of 256 on.
        let x = features.vectors().cast(DType::F32);
        let norm = (x.clone() * x).sum_dim(2).sqrt(); // [batch, vector, 1]
        let base = features.base();
        let change: Tensor<B, 3> = norm * self.factor;
        Change::Difference(change.cast(base.dtype()).expand(base.shape()))
    }
}

saved_as_numbers! {
    Add {}
    Subtract {}
    Scale { factor }
    AddNorm { factor }
}
