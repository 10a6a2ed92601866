//! Cutting a plan into parts that fit a budget.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::PlanError;
use super::memory::Memory;
use super::needs::Need;
use super::options::RunOptions;
use super::plan::{Operand, Plan, WorldId};
use super::schedule::{Pass, Schedule};

/// Schedules of parts that run one after another, each within the budgets of `options`. An
/// activation that an earlier part has computed is not recomputed.
///
/// There are about as few parts as the budgets allow. They have about as many worlds each, rather
/// than as many as fit and then a few: products of few rows are slow, and every part computes the
/// trunks that its worlds continue.
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
    let mut cutter = Cutter {
        plan,
        whole,
        budget,
        kept: vec![None; plan.worlds.len()],
        most: None,
        is_settled: false,
    };
    let mut chunks: Vec<Cow<'w, Schedule>> = Vec::new();
    let mut rest = &worlds[..];
    while !rest.is_empty() {
        let (count, schedule) = cutter.next(rest, chunks.is_empty())?;
        cutter.keep(&schedule);
        chunks.push(Cow::Owned(schedule));
        rest = &rest[count..];
    }
    Ok(chunks)
}

/// Cuts parts off a plan.
struct Cutter<'a, B: Backend, M> {
    plan: &'a Plan<B>,
    whole: &'a Schedule,
    budget: Budget<'a, B, M>,
    /// For each world: how far earlier parts have run it. What is used of it is kept.
    kept: Vec<Option<Need>>,
    /// The largest number of worlds that was last found to fit.
    most: Option<usize>,
    /// Whether that was in a part after the first, in which sources run as well.
    is_settled: bool,
}

/// A number of worlds, with their schedule.
type Part = (usize, Schedule);

impl<B: Backend, M: AlignableTransformer<B>> Cutter<'_, B, M> {
    /// The next part, of the first of these worlds.
    ///
    /// - worlds: those that are left, in order
    fn next(&mut self, worlds: &[WorldId], is_first: bool) -> Result<Part, PlanError> {
        let share = |most: usize| worlds.len().div_ceil(worlds.len().div_ceil(most));
        if let Some(most) = self.most
            && (self.is_settled || most >= worlds.len())
        {
            let count = share(most);
            let schedule = self.part(&worlds[..count]);
            let is_enough = count == worlds.len() || self.budget.is_half_full(&schedule);
            if is_enough && self.budget.exceeded_by(&schedule).is_none() {
                return Ok((count, schedule));
            }
        }
        let (most, largest) = self.largest(worlds)?;
        // A first part of several may hold fewer worlds than the others, because their sources run
        // in it, so it is not made smaller still.
        let count = match is_first && 2 * most < worlds.len() {
            true => most,
            false => share(most),
        };
        (self.most, self.is_settled) = (Some(most), !is_first);
        if count < most {
            let even = self.part(&worlds[..count]);
            if self.budget.exceeded_by(&even).is_none() {
                return Ok((count, even));
            }
        }
        Ok((most, largest))
    }

    /// All worlds, if they fit; else the largest part that does, or nearly so: its size is found by
    /// bisection, to a sixteenth.
    fn largest(&self, worlds: &[WorldId]) -> Result<Part, PlanError> {
        let (mut fits, mut too_many) = (0, worlds.len() + 1);
        let mut best = None;
        while too_many - fits > 1 + fits / 16 || (fits < worlds.len() && worlds.len() < too_many) {
            let count = match too_many - fits > 1 + fits / 16 {
                true => fits.midpoint(too_many),
                false => worlds.len(),
            };
            let schedule = self.part(&worlds[..count]);
            if self.budget.exceeded_by(&schedule).is_none() {
                (fits, best) = (count, Some(schedule));
            } else {
                too_many = count;
            }
        }
        match best {
            Some(schedule) => Ok((fits, schedule)),
            None => {
                let exceeded = self.budget.exceeded_by(&self.part(&worlds[..1]));
                Err(exceeded.expect("a part with one world does not fit"))
            }
        }
    }

    /// What the reads of some worlds need.
    ///
    /// - worlds: in order
    fn part(&self, worlds: &[WorldId]) -> Schedule {
        let own = |world: WorldId| worlds.binary_search(&world).is_ok();
        let reads = self.plan.open_reads().filter(|(_, read)| own(read.world()));
        let reads: Vec<usize> = reads.map(|(index, _)| index).collect();
        let is_kept = |operand: &Operand| match operand {
            Operand::Activation { world, site, .. } => {
                self.kept[world.0].is_some_and(|need| need.reaches(*site))
            }
            Operand::None | Operand::Constant(_) => false,
        };
        self.whole.part(self.plan, &reads, &is_kept)
    }

    /// Remembers how far worlds have run once a part has.
    fn keep(&mut self, part: &Schedule) {
        for (kept, need) in self.kept.iter_mut().zip(part.needs.iter()) {
            *kept = (*kept).max(need);
        }
    }
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

    /// Whether a part uses half of a budget or more.
    fn is_half_full(&self, part: &Schedule) -> bool {
        let of_rows = 2 * part.max_rows() >= self.max_rows;
        let bytes = self.bytes.as_ref();
        of_rows || bytes.is_some_and(|(budget, memory)| 2 * memory.peak(part) >= *budget)
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

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn_align_models::{Component, Decoder, DecoderConfig, Site, TokenBatch};
    use serde_json::json;

    use super::chunks;
    use crate::engine::needs::Need;
    use crate::engine::validate::validate;
    use crate::engine::{Edit, LogitPositions, Plan, RunOptions, Units};
    use crate::interventions::VanillaIntervention;

    /// A sweep of 8 layers and 20 positions, from one source.
    fn sweep() -> (Decoder<Flex>, Plan<Flex>) {
        let config = DecoderConfig::from_json(&json!({
            "model_type": "llama",
            "vocab_size": 20,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "max_position_embeddings": 20,
        }));
        let model = config.expect("valid").init::<Flex>(&Default::default());
        let mut plan = Plan::new();
        let tokens = |id| TokenBatch::new(vec![vec![id; 20]]).expect("not empty");
        let (base, source) = (plan.tokens(&tokens(1)), plan.tokens(&tokens(2)));
        let donor = plan.world(source, []);
        for layer in 0..8 {
            for position in 0..20 {
                let site = Site::Block(layer, Component::BlockOutput);
                let edit = Edit::from_world(donor, site, Units::position(position), 0);
                let world = plan.world(base, [edit]);
                plan.read_logits(world, LogitPositions::Last);
            }
        }
        (model, plan)
    }

    /// The number of swaps in each part.
    fn parts(options: &RunOptions) -> Vec<usize> {
        let (model, plan) = sweep();
        let whole = validate(&plan, &model, &[VanillaIntervention]).expect("valid");
        let parts = chunks(&plan, &whole, &model, options).expect("one world fits");
        let swaps = parts.iter().map(|part| {
            let rows = part.max_rows();
            assert!(options.max_rows.is_none_or(|most| rows <= most), "{rows}");
            let needs = part.needs.iter().flatten();
            needs.filter(|need| *need == Need::Logits).count()
        });
        swaps.collect()
    }

    #[test]
    fn parts_are_about_as_large_as_each_other() {
        let within = |rows| parts(&RunOptions::default().with_max_rows(rows));
        for (rows, expected) in [(1000, 1), (150, 2), (100, 2), (50, 4), (20, 9)] {
            let parts = within(rows);
            assert_eq!(parts.iter().sum::<usize>(), 160);
            assert!(parts.len() <= expected, "{rows} rows: {parts:?}");
            let smallest = parts.iter().min().copied().unwrap_or(0);
            let largest = parts.iter().max().copied().unwrap_or(0);
            assert!(2 * smallest >= largest, "{rows} rows: {parts:?}");
        }
    }

    #[test]
    fn parts_fit_a_memory_budget_and_are_few() {
        let (model, plan) = sweep();
        let whole = plan.explain(&model).expect("valid").peak_bytes;
        let options = RunOptions::default().with_memory_budget(whole / 3);
        let parts = parts(&options);
        assert_eq!(parts.iter().sum::<usize>(), 160);
        assert!((3..=6).contains(&parts.len()), "{parts:?}");
    }
}
