//! Options of causal scrubbing.

use serde::{Deserialize, Serialize};

/// How a hypothesis is scrubbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScrubOptions {
    /// Seed of all draws. Each node of the tree draws from its own sequence, so its draws do not
    /// depend on which other nodes there are.
    pub seed: u64,
    /// How often each example is scrubbed, with new draws. Default: once.
    pub samples: usize,
    /// Whether an example may be drawn for itself.
    pub donors: Donors,
    /// What unimportant parts get.
    pub unimportant: Unimportant,
    /// Most rows that go through a layer together; the examples are run in as many chunks as
    /// needed. Default: 4096.
    ///
    /// A tree with `n` nodes has up to `n` rows for each example in the first layers. In f32, a row
    /// of `pos` positions is estimated at `4 pos (8 d_model + 2 d_mlp + heads pos)` bytes while it
    /// is in a layer, in addition to the model. The example `causal_scrubbing` peaks at 30, 130 and
    /// 460 MiB with budgets of 512, 4096 and 20,000 rows; the estimates are 21, 166 and 812 MiB.
    pub max_rows: usize,
}

/// Whether an example may be drawn for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Donors {
    /// It may, with the same probability as every other donor that agrees with it, as in the paper.
    #[default]
    WithSelf,
    /// It may not; every example needs another one that agrees with it.
    WithoutSelf,
}

/// What parts of the model get if a hypothesis does not name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unimportant {
    /// Everything unimportant that one node reads comes from one random input, as in the paper:
    /// these parts can work together, but not with the named ones.
    #[default]
    Shared,
    /// Each unimportant part that a node reads comes from its own random input. The parts are the
    /// embedding, each layer's attention (its heads, if the hypothesis names one for the same
    /// reader) and each MLP, separately for queries, keys and values. This costs a run for each,
    /// and a hypothesis that leaves parts out claims more.
    Apart,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            samples: 1,
            donors: Donors::default(),
            unimportant: Unimportant::default(),
            max_rows: 4096,
        }
    }
}

impl ScrubOptions {
    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how often each example is scrubbed.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets whether an example may be drawn for itself.
    pub fn with_donors(mut self, donors: Donors) -> Self {
        self.donors = donors;
        self
    }

    /// Sets what unimportant parts get.
    pub fn with_unimportant(mut self, unimportant: Unimportant) -> Self {
        self.unimportant = unimportant;
        self
    }

    /// Sets the most rows that go through a layer together.
    pub fn with_max_rows(mut self, max_rows: usize) -> Self {
        self.max_rows = max_rows;
        self
    }
}
