//! How to run a plan.

use burn_align_models::Tables;

use super::Schedules;

/// How to run a plan.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// Maximum number of rows (examples of worlds) that go through a layer together. A plan with
    /// more is split into parts, which still share their sources. Default: no limit.
    pub max_rows: Option<usize>,
    /// Bytes available for activations at a time, as estimated by [`explain`](super::Plan::explain)
    /// ([`Explanation::peak_bytes`](super::Explanation::peak_bytes)): without the model's weights,
    /// and without activations kept for gradients. A plan that needs more is split into parts as
    /// with [`max_rows`](Self::max_rows). Default: no limit.
    pub memory_budget: Option<u64>,
    /// Masks and rotary tables, kept between runs. Runs with clones of the same options share them;
    /// they matter where many runs are short, as in training. Default: none yet.
    pub tables: Tables,
    /// Schedules of plans that have been run. Runs with clones of the same options share them, so a
    /// plan that has the structure of an earlier one is not laid out again. Default: none yet.
    pub schedules: Schedules,
}

impl RunOptions {
    /// At most this many rows at a time.
    pub fn with_max_rows(mut self, max_rows: usize) -> Self {
        self.max_rows = Some(max_rows);
        self
    }

    /// With these tables, which may be shared with other runs, and may
    /// [keep indices](Tables::keeping_indices).
    pub fn with_tables(mut self, tables: Tables) -> Self {
        self.tables = tables;
        self
    }

    /// At most this many bytes of activations at a time.
    pub fn with_memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = Some(bytes);
        self
    }
}
