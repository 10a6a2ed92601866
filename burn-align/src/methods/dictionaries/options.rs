//! How a dictionary is run over a text.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Site, TokenBatch};

use super::DictionaryTextError;
use crate::dictionaries::Dictionary;
use crate::engine::RunOptions;
use crate::training::dictionary::{activation_rows, is_vector};

/// How a dictionary is run over a text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DictionaryTextOptions {
    /// Positions at the beginning of each example that are left out, as in
    /// [training](crate::training::dictionary::DictionaryTrainingConfig::skip_positions). Default:
    /// 1.
    pub skip_positions: usize,
    /// Number of tokens whose features are in memory at a time, 4 bytes for each; changes no
    /// result but rounding. Default: 1024.
    pub tokens_at_once: usize,
    /// Number of batches, from the first on, whose losses
    /// [`evaluate_dictionary`](super::evaluate_dictionary) measures: four passes through all
    /// layers, with all logits, take much longer than what else it finds. Default: all of them.
    pub loss_batches: usize,
    /// Budgets for the model's own passes.
    pub run: RunOptions,
}

impl Default for DictionaryTextOptions {
    fn default() -> Self {
        Self {
            skip_positions: 1,
            tokens_at_once: 1024,
            loss_batches: usize::MAX,
            run: RunOptions::default(),
        }
    }
}

impl DictionaryTextOptions {
    /// Sets the number of positions at the beginning of each example that are left out.
    pub fn with_skipped_positions(mut self, positions: usize) -> Self {
        self.skip_positions = positions;
        self
    }

    /// Sets the number of tokens whose features are in memory at a time.
    pub fn with_tokens_at_once(mut self, tokens: usize) -> Self {
        self.tokens_at_once = tokens;
        self
    }

    /// Sets the number of batches, from the first on, whose losses are measured.
    pub fn with_loss_batches(mut self, batches: usize) -> Self {
        self.loss_batches = batches;
        self
    }

    /// Sets the budgets for the model's own passes.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }

    /// The activations of a batch, some rows at a time: by example, and then by position.
    pub(super) fn rows<B: Backend, M: AlignableTransformer<B>>(
        &self,
        model: &M,
        batch: &TokenBatch,
        site: Site,
        dictionary: &Dictionary<B>,
    ) -> Result<Vec<Tensor<B, 2>>, DictionaryTextError> {
        if !is_vector::<B, M>(model, site) {
            return Err(DictionaryTextError::NoVector { site });
        }
        let x = activation_rows(model, batch, site, self.skip_positions, &self.run)?;
        let Some(x) = x else {
            return Ok(Vec::new());
        };
        let [rows, width] = x.dims();
        if width != dictionary.width() {
            return Err(DictionaryTextError::Width {
                site,
                expected: dictionary.width(),
                found: width,
            });
        }
        let size = self.tokens_at_once.max(1);
        let starts = (0..rows).step_by(size);
        let some = starts.map(|start| x.clone().narrow(0, start, size.min(rows - start)));
        Ok(some.collect())
    }
}
