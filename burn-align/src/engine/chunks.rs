//! Cutting a plan into parts that fit a budget.

use std::borrow::Cow;
use std::collections::HashSet;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::PlanError;
use super::memory::Memory;
use super::options::RunOptions;
use super::plan::{Operand, OperandKey, Plan, WorldId};
use super::schedule::{Pass, Schedule};

/// Schedules of parts that run one after another, each within the budgets of `options`. An
/// activation that an earlier part has computed is not recomputed.
pub(super) fn chunks<'w, B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    whole: &'w Schedule,
    model: &M,
    options: &RunOptions,
) -> Result<Vec<Cow<'w, Schedule>>, PlanError> {
    let budget = Budget::new(plan, whole, model, options);
    if budget.exceeded_by(whole).is_none() {
        return Ok(vec![Cow::Borrowed(whole)]);
    }
    let mut worlds: Vec<WorldId> = plan.open_reads().map(|(_, read)| read.world()).collect();
    worlds.sort();
    worlds.dedup();
    let mut kept: HashSet<OperandKey> = HashSet::new();
    let mut chunks = Vec::new();
    let mut rest = &worlds[..];
    while !rest.is_empty() {
        let part = |count: usize| {
            // The worlds are sorted.
            let reads: Vec<usize> = plan
                .open_reads()
                .filter(|(_, read)| rest[..count].binary_search(&read.world()).is_ok())
                .map(|(index, _)| index)
                .collect();
            let is_kept = |operand: &Operand| operand.key().is_some_and(|key| kept.contains(&key));
            Schedule::new(plan, &whole.stages, &reads, &is_kept)
                .expect("a part of a plan without circles has none")
        };
        // The largest part that fits, by bisection: `fits` worlds fit, `too_many` do not.
        let (mut fits, mut too_many) = (0, rest.len() + 1);
        let mut best = None;
        while too_many - fits > 1 {
            let count = fits.midpoint(too_many);
            let schedule = part(count);
            if budget.exceeded_by(&schedule).is_none() {
                (fits, best) = (count, Some(schedule));
            } else {
                too_many = count;
            }
        }
        let Some(schedule) = best else {
            let exceeded = budget.exceeded_by(&part(1));
            return Err(exceeded.expect("a part with one world does not fit"));
        };
        for taker in plan.world_ids() {
            let edits = whole.needs.edits(plan, taker);
            let keys = edits.filter_map(|(_, edit)| edit.operand.key());
            kept.extend(keys.filter(|(world, site, _)| schedule.reaches(*world, *site)));
        }
        chunks.push(Cow::Owned(schedule));
        rest = &rest[fits..];
    }
    Ok(chunks)
}

/// The budgets that each part of a plan must fit.
struct Budget<'a, B: Backend, M> {
    max_rows: usize,
    bytes: Option<(u64, Memory<'a, B, M>)>,
}

impl<'a, B: Backend, M: AlignableTransformer<B>> Budget<'a, B, M> {
    fn new(plan: &'a Plan<B>, whole: &Schedule, model: &'a M, options: &RunOptions) -> Self {
        let budget = options.memory_budget;
        Self {
            max_rows: options.max_rows.unwrap_or(usize::MAX),
            bytes: budget.map(|bytes| (bytes, Memory::new(plan, model, whole))),
        }
    }

    /// The budget that a part exceeds, if any.
    fn exceeded_by(&self, part: &Schedule) -> Option<PlanError> {
        let needed = part.max_rows();
        if needed > self.max_rows {
            return Some(PlanError::RowBudget {
                needed,
                max_rows: self.max_rows,
            });
        }
        let (budget, memory) = self.bytes.as_ref()?;
        let needed = memory.peak(part);
        (needed > *budget).then_some(PlanError::MemoryBudget {
            needed,
            budget: *budget,
        })
    }
}

impl Schedule {
    /// The largest number of rows that go through a stage together.
    pub(super) fn max_rows(&self) -> usize {
        let stages = self.passes.iter().flat_map(|pass: &Pass| &pass.stages);
        let rows = stages.map(|stage| stage.layout.rows());
        rows.max().unwrap_or(0)
    }
}
