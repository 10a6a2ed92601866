use serde::{Deserialize, Serialize};

/// How a hypothesis is scrubbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScrubOptions {
    /// Seed of all draws. Each node of the tree draws from a sequence of its own, so that the
    /// draws of one do not depend on the presence of another.
    pub seed: u64,
    /// How often each example is scrubbed, with new draws. Default: once.
    pub samples: usize,
    /// Whether an example may be drawn for itself.
    pub donors: Donors,
    /// What parts get that do not matter.
    pub unimportant: Unimportant,
    /// Most rows that go through a layer together; the examples are run in as many chunks as that
    /// takes. Default: 4096.
    ///
    /// A tree with `n` nodes has up to `n` rows for each example in the first layers. In f32, a row
    /// of `pos` positions is reckoned to take `4 pos (8 d_model + 2 d_mlp + heads pos)` bytes while
    /// it is in a layer, beside the model. The example `causal_scrubbing` takes 30, 130 and 460 MiB
    /// at its peak with budgets of 512, 4096 and 20,000 rows, where that is 21, 166 and 812 MiB.
    pub max_rows: usize,
}

/// Whether an example may be drawn for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Donors {
    /// It may, with the same probability as every other one that agrees with it, as in the paper.
    #[default]
    WithSelf,
    /// It may not; each must have another one that agrees with it.
    WithoutSelf,
}

/// What the parts of the model get that a hypothesis does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unimportant {
    /// All that one node reads of them is of one random input, as in the paper: they may
    /// work together, but not with what is named.
    #[default]
    Shared,
    /// What one node reads of each of them is of a random input of its own. They are the
    /// embedding, each layer's attention (its heads, if the hypothesis names one for the same
    /// reader) and each MLP, for queries, keys and values apart. This costs a run for each, and
    /// a hypothesis that leaves them out claims more.
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
    /// The same with another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with each example scrubbed so many times.
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// The same with these donors.
    pub fn with_donors(mut self, donors: Donors) -> Self {
        self.donors = donors;
        self
    }

    /// The same with these inputs for what does not matter.
    pub fn with_unimportant(mut self, unimportant: Unimportant) -> Self {
        self.unimportant = unimportant;
        self
    }

    /// The same with at most this many rows at a time.
    pub fn with_max_rows(mut self, max_rows: usize) -> Self {
        self.max_rows = max_rows;
        self
    }
}
