//! The inputs of one forward pass under interventions.

use super::{Subspaces, UnitLocations};
use crate::engine::{LogitPositions, WorldInput};
use burn::tensor::{Tensor, backend::Backend};

/// Where the activations of one group of representations come from.
#[derive(Clone, Debug)]
pub enum Source<B: Backend> {
    /// A run of the model on these examples, as many as the base has.
    Run(WorldInput<B>),
    /// Given values, `[batch, unit, d_site]`; batch and unit may be 1, for the same values
    /// everywhere. They need no source location.
    #[doc(alias = "source_representations")]
    Values(Tensor<B, 3>),
    /// No source: no intervention of the group takes one.
    Absent,
}

impl<B: Backend, T: Into<WorldInput<B>>> From<T> for Source<B> {
    fn from(input: T) -> Self {
        Self::Run(input.into())
    }
}

/// The inputs of one forward pass under interventions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AlignableInputs<B: Backend> {
    /// The examples that are changed.
    pub base: WorldInput<B>,
    /// One source for each group of representations (without group keys, for each
    /// representation), or one for all, or none if no intervention uses one.
    pub sources: Vec<Source<B>>,
    /// Which units of the sources replace which units of the base.
    pub locations: UnitLocations,
    /// Which subspaces are changed.
    pub subspaces: Subspaces,
    /// Whether to also run the base without interventions.
    pub output_original_output: bool,
    /// Positions at which logits are computed.
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

    /// Sets the sources.
    pub fn with_sources<S: Into<Source<B>>>(
        mut self,
        sources: impl IntoIterator<Item = S>,
    ) -> Self {
        self.sources = sources.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the unit locations.
    pub fn with_locations(mut self, locations: impl Into<UnitLocations>) -> Self {
        self.locations = locations.into();
        self
    }

    /// Sets the subspaces.
    pub fn with_subspaces(mut self, subspaces: Subspaces) -> Self {
        self.subspaces = subspaces;
        self
    }

    /// Also runs the base without interventions.
    pub fn with_original_output(mut self) -> Self {
        self.output_original_output = true;
        self
    }

    /// Restricts the logits to these positions.
    pub fn with_logits(mut self, positions: LogitPositions) -> Self {
        self.logits = positions;
        self
    }
}
