//! Where the values of a step stop being finite.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::{Generator, Row};
use crate::engine::{CachedRow, NonFinite, PlanError};
use crate::generate::{GenerateError, SamplingError};
use crate::interventions::Intervention;

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> Generator<'_, B, M, I> {
    /// The error of a token that could not be chosen. If a step computed logits that are not
    /// finite, it says where that begins; in the prompts,
    /// [`Plan::find_non_finite`](crate::engine::Plan::find_non_finite) does.
    ///
    /// - step: the number of tokens that rows had
    pub(super) fn with_place(
        &self,
        error: GenerateError,
        step: usize,
        rows: &[Row<B>],
        going: &BTreeSet<usize>,
    ) -> GenerateError {
        let is_not_finite = matches!(
            error,
            GenerateError::Sampling {
                cause: SamplingError::NotFinite { .. },
                ..
            }
        );
        if !is_not_finite {
            return error;
        }
        match self.find_non_finite(step, rows, going) {
            Ok(Some(found)) => PlanError::NonFinite(Box::new(found)).into(),
            _ => error,
        }
    }

    /// Computes the last step again.
    fn find_non_finite(
        &self,
        step: usize,
        rows: &[Row<B>],
        going: &BTreeSet<usize>,
    ) -> Result<Option<NonFinite>, PlanError> {
        // As the caches were before it. A sliding window may have dropped what it saw.
        let past = |row: &Row<B>| row.cached.as_ref()?.first(row.pos.checked_sub(1)?);
        let pasts = going.iter().map(|index| past(&rows[*index]));
        let pasts: Option<Vec<CachedRow<B>>> = pasts.collect();
        let (Some(last), Some(pasts)) = (step.checked_sub(1), pasts) else {
            return Ok(None);
        };
        let plan = self.plan_of_step(last, rows, going, &pasts).plan;
        let run = &self.options.run;
        let Some(found) = plan.find_non_finite(self.model, self.interventions, run)? else {
            return Ok(None);
        };
        let Some(index) = going.iter().nth(found.world) else {
            return Ok(None);
        };
        // Its world has one example of one position.
        Ok(Some(NonFinite {
            example: rows[*index].example,
            position: pasts[found.world].pos(),
            ..found.with_run(format!("row {index}, token {step}"))
        }))
    }
}
