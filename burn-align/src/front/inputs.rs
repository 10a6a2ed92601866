//! The inputs of one forward pass under interventions.

use super::{Subspaces, UnitLocations};
use crate::engine::{LogitPositions, WorldInput};
use burn::tensor::{Tensor, backend::Backend};

/// Where the activations of one group of representations come from.
#[derive(Clone, Debug)]
pub enum Source<B: Backend> {
    /// A run of the model on these examples, as many as the base has.
    Run(WorldInput<B>),
    /// Given values, `[batch, unit, d_site]`; batch and unit may be 1, for the same everywhere.
    /// They need no location of their own.
    #[doc(alias = "source_representations")]
    Values(Tensor<B, 3>),
    /// Nowhere: no intervention of the group takes a source.
    Absent,
}

impl<B: Backend, T: Into<WorldInput<B>>> From<T> for Source<B> {
    fn from(input: T) -> Self {
        Self::Run(input.into())
    }
}

/// What one forward pass under interventions reads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AlignableInputs<B: Backend> {
    /// The examples that are changed.
    pub base: WorldInput<B>,
    /// One source for each group of representations (without group keys, for each
    /// representation), or one for all, or none if no intervention takes one.
    pub sources: Vec<Source<B>>,
    /// Which units of the sources go where in the base.
    pub locations: UnitLocations,
    /// Which subspaces are changed.
    pub subspaces: Subspaces,
    /// Whether to run the base without interventions, too.
    pub output_original_output: bool,
    /// Where logits are wanted. Elsewhere, none are computed.
    pub logits: LogitPositions,
}

impl<B: Backend> AlignableInputs<B> {
    /// Whole representations of the base, without sources; logits at all positions.
    pub fn new(base: impl Into<WorldInput<B>>) -> Self {
        Self {
            base: base.into(),
            sources: Vec::new(),
            locations: UnitLocations::Whole,
            subspaces: Subspaces::Whole,
            output_original_output: false,
            logits: LogitPositions::All,
        }
    }

    /// The same with these sources.
    pub fn with_sources<S: Into<Source<B>>>(
        mut self,
        sources: impl IntoIterator<Item = S>,
    ) -> Self {
        self.sources = sources.into_iter().map(Into::into).collect();
        self
    }

    /// The same at these locations.
    pub fn with_locations(mut self, locations: impl Into<UnitLocations>) -> Self {
        self.locations = locations.into();
        self
    }

    /// The same in these subspaces.
    pub fn with_subspaces(mut self, subspaces: Subspaces) -> Self {
        self.subspaces = subspaces;
        self
    }

    /// The same, and the base without interventions beside it.
    pub fn with_original_output(mut self) -> Self {
        self.output_original_output = true;
        self
    }

    /// The same with logits at these positions only.
    pub fn with_logits(mut self, positions: LogitPositions) -> Self {
        self.logits = positions;
        self
    }
}
