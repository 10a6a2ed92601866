//! An operation whose source is a vector that it stores.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{Change, Features, Operation};
use crate::interventions::parts::{Part, PartError, Reader, Writer};
use crate::saved::SaveInterventionsError;

/// How a source is combined with the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceOperation {
    /// It replaces the base.
    Swap,
    /// It is added to the base.
    Add,
    /// It is subtracted from the base.
    Subtract,
}

/// An operation that stores its own source, the same features for every unit: a steering vector,
/// or a mean for ablation. The vector can be trained.
#[derive(Module, Debug)]
#[doc(alias = "source_representation")]
#[doc(alias = "steering vector")]
#[doc(alias = "mean ablation")]
pub struct ConstantSource<B: Backend> {
    /// The features: of a site, `[d_site]`, or of a featurizer, `[feature]`.
    pub source: Param<Tensor<B, 1>>,
    #[module(skip)]
    operation: SourceOperation,
}

impl<B: Backend> ConstantSource<B> {
    /// An operation with these features.
    ///
    /// # Shapes
    /// - source: `[feature]`
    pub fn new(source: Tensor<B, 1>, operation: SourceOperation) -> Self {
        Self {
            source: Param::from_tensor(source),
            operation,
        }
    }

    /// How the vector is combined with the base.
    pub fn operation(&self) -> SourceOperation {
        self.operation
    }
}

impl<B: Backend> Operation<B> for ConstantSource<B> {
    fn width(&self) -> Option<usize> {
        let [features] = self.source.dims();
        Some(features)
    }

    fn change(&self, features: &Features<'_, B>) -> Change<B> {
        let base = features.base();
        let source = self.source.val().cast(base.dtype());
        let source = source.unsqueeze::<3>().expand(base.dims());
        match self.operation {
            SourceOperation::Swap => Change::Value(source),
            SourceOperation::Add => Change::Difference(source),
            SourceOperation::Subtract => Change::Difference(-source),
        }
    }
}

impl<B: Backend> Part<B> for ConstantSource<B> {
    fn store(&self, out: &mut Writer<'_>) -> Result<(), SaveInterventionsError> {
        out.field("operation", self.operation);
        out.tensor("source", &self.source)
    }

    fn restore(from: &mut Reader<'_, B>) -> Result<Self, PartError> {
        let operation = from.field("operation")?;
        Ok(Self::new(
            from.tensor("source", [from.features])?,
            operation,
        ))
    }
}
