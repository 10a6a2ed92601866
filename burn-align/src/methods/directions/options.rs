//! How a direction is measured and described.

use super::PromptPositions;

/// How a direction is measured and described.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DirectionOptions {
    /// The fraction of prompts held out to measure the direction; it is built from the others.
    /// Default: 0.25.
    pub held_out: f64,
    /// Seed of the split, of random pairs and of random directions. Default: 0.
    pub seed: u64,
    /// The model's name, for the record. Default: empty.
    pub model: String,
    /// The positions of the activations, for the record. Default: empty.
    pub positions: String,
    /// What positive and negative activations stand for, for the record. Default: `positive` and
    /// `negative`.
    pub labels: [String; 2],
}

impl Default for DirectionOptions {
    fn default() -> Self {
        Self {
            held_out: 0.25,
            seed: 0,
            model: String::new(),
            positions: String::new(),
            labels: ["positive", "negative"].map(str::to_owned),
        }
    }
}

impl DirectionOptions {
    /// Holds out this fraction of the prompts.
    pub fn with_held_out(mut self, fraction: f64) -> Self {
        self.held_out = fraction;
        self
    }

    /// Draws with this seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Records the model's name.
    pub fn with_model(mut self, model: impl Into<String>) -> Self {
        self.model = model.into();
        self
    }

    /// Records the positions of the activations.
    pub fn with_positions(mut self, positions: &PromptPositions) -> Self {
        self.positions = positions.to_string();
        self
    }

    /// Records what positive and negative activations stand for.
    pub fn with_labels(mut self, positive: impl Into<String>, negative: impl Into<String>) -> Self {
        self.labels = [positive.into(), negative.into()];
        self
    }
}
