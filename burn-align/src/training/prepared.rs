//! Evaluation from runs that have been prepared: those of the cells of a grid, which have much in
//! common.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::evaluate::{Clean, Tally, controls};
use super::kept::Kept;
use super::{Controlled, InterchangeData, TrainingError};
use crate::engine::{LogitPositions, Plan, ReadId, RunOptions};
use crate::front::AlignableModel;
use crate::interventions::{Intervention, VanillaIntervention};

/// Held-out data of which everything before the interventions has been computed.
pub(crate) struct PreparedData<'a, B: Backend> {
    pub(crate) data: &'a [InterchangeData<B>],
    /// For each dataset, without subspaces.
    pub(crate) kept: &'a [Kept<B>],
    pub(crate) clean: &'a CleanRuns<B>,
}

/// As [`evaluate_with_controls`](super::evaluate_with_controls): the interventions and their
/// controls resume from the same runs.
pub(crate) fn evaluate_prepared<B, M, I>(
    model: &AlignableModel<B, M, I>,
    prepared: &PreparedData<'_, B>,
    batch_size: usize,
    seed: u64,
) -> Result<Controlled, TrainingError>
where
    B: Backend,
    M: AlignableTransformer<B> + Clone,
    I: Intervention<B>,
{
    let [random, whole] = controls(model, seed)?;
    let options = RunOptions::default();
    let mut tallies: [Tally; 4] = Default::default();
    for (index, (dataset, kept)) in prepared.data.iter().zip(prepared.kept).enumerate() {
        let all: Vec<usize> = (0..dataset.len()).collect();
        for (part, chosen) in all.chunks(batch_size.max(1)).enumerate() {
            let clean = prepared.clean.get(model.model(), index, part, chosen)?;
            let clean = Clean::new(clean);
            let mut chosen = chosen.to_vec();
            let freeze = |plan: &Plan<B>| {
                plan.freeze(model.model(), model.interventions(), |_| true, &options)
            };
            let plan = kept.batch(&mut chosen, &freeze)?;
            let own = Judged {
                plan: &plan,
                read: kept.logits,
                clean: &clean,
                dataset,
                examples: &chosen,
            };
            own.add(&mut tallies[0], model)?;
            own.add(&mut tallies[1], &random)?;
            own.add(&mut tallies[2], &whole)?;
            tallies[3].add(clean.logits.clone(), &clean, dataset, &chosen)?;
        }
    }
    if tallies[0].examples == 0 {
        return Err(TrainingError::Nothing {
            expected: "at least one example",
        });
    }
    let [trained, random_rotation, whole_vector, no_swap] = tallies.map(|tally| tally.evaluation());
    Ok(Controlled {
        trained,
        random_rotation,
        whole_vector,
        no_swap,
    })
}

/// Some examples of a dataset that interventions are judged on.
struct Judged<'a, B: Backend> {
    plan: &'a Plan<B>,
    read: ReadId,
    clean: &'a Clean<B>,
    dataset: &'a InterchangeData<B>,
    examples: &'a [usize],
}

impl<B: Backend> Judged<'_, B> {
    fn add<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        tally: &mut Tally,
        model: &AlignableModel<B, M, I>,
    ) -> Result<(), TrainingError> {
        let options = RunOptions::default();
        let (model, interventions) = (model.model(), model.interventions());
        let results = self.plan.run_with(model, interventions, &options)?;
        let logits = results.get(self.read);
        let numbers = tally.add(logits, self.clean, self.dataset, self.examples)?;
        Ok((self.plan).check_finite(&numbers, model, interventions, &options)?)
    }
}

/// What a model predicts for some datasets without interventions, in parts of a fixed size.
pub(crate) struct CleanRuns<B: Backend> {
    plans: Vec<(Plan<B>, ReadId)>,
    /// `[dataset][part]`: logits, `[batch, unit, vocab]`; none if they are too large to be kept.
    logits: Vec<Vec<Tensor<B, 3>>>,
}

impl<B: Backend> CleanRuns<B> {
    /// - size: examples of a part
    /// - budget: bytes for the logits, which are kept if all of them fit
    pub(crate) fn new<M: AlignableTransformer<B>>(
        model: &M,
        data: &[InterchangeData<B>],
        size: usize,
        budget: usize,
    ) -> Result<Self, TrainingError> {
        let plans = data.iter().map(|dataset| {
            let mut plan = Plan::new();
            let input = plan.input(dataset.inputs.base.clone());
            let world = plan.world(input, []);
            let read = plan.read_logits(world, dataset.positions.clone());
            (plan, read)
        });
        let mut found = Self {
            plans: plans.collect(),
            logits: Vec::new(),
        };
        if Self::kept_bytes(data, model.dims().vocab, budget) == 0 {
            return Ok(found);
        }
        let mut logits = Vec::new();
        for (index, dataset) in data.iter().enumerate() {
            let all: Vec<usize> = (0..dataset.len()).collect();
            let parts = all.chunks(size.max(1));
            let parts = parts.map(|chosen| found.run(model, index, chosen));
            logits.push(parts.collect::<Result<Vec<_>, _>>()?);
        }
        found.logits = logits;
        Ok(found)
    }

    /// Bytes of the logits that are kept with this budget, in f32: all of them, or none.
    pub(crate) fn kept_bytes(data: &[InterchangeData<B>], vocab: usize, budget: usize) -> usize {
        let units = data.iter().map(|dataset| match &dataset.positions {
            LogitPositions::All => dataset.len() * dataset.inputs.base.pos(),
            LogitPositions::Last | LogitPositions::Each(_) => {
                dataset.labels.iter().map(Vec::len).sum()
            }
        });
        let bytes = units.sum::<usize>() * vocab * size_of::<f32>();
        if bytes > budget { 0 } else { bytes }
    }

    fn get<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        dataset: usize,
        part: usize,
        examples: &[usize],
    ) -> Result<Tensor<B, 3>, TrainingError> {
        let known = self.logits.get(dataset).and_then(|parts| parts.get(part));
        match known {
            Some(logits) => Ok(logits.clone()),
            None => self.run(model, dataset, examples),
        }
    }

    fn run<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        dataset: usize,
        examples: &[usize],
    ) -> Result<Tensor<B, 3>, TrainingError> {
        let (plan, read) = &self.plans[dataset];
        let plan = plan.examples(examples)?;
        let results = plan.run(model, &[VanillaIntervention; 0])?;
        Ok(results.get(*read))
    }
}
