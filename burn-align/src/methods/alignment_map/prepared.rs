//! What cells have in common, computed once: everything before their interventions.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;

use super::AlignmentMapError;
use super::cells::{CellPlace, Cells};
use crate::engine::{Plan, PlanError, RunOptions};
use crate::front::AlignableModel;
use crate::interventions::Intervention;
use crate::training::{CleanRuns, InterchangeData, Kept};

/// Share of the memory budget for the logits of the model without a swap.
const FOR_CLEAN: usize = 4;

/// What has been computed for some cells. Cells of rows that differ in their rank alone share it,
/// under the first of these rows.
pub(super) struct Prepared<B: Backend> {
    /// Those of training and those of held-out data, by dataset.
    kept: BTreeMap<CellPlace, [Vec<Kept<B>>; 2]>,
    clean: Option<CleanRuns<B>>,
    /// Bytes of the memory budget that are left for what cells keep while they are trained.
    pub(super) left: usize,
    /// Bytes of them that a cell takes for validation.
    pub(super) validation: usize,
}

impl<B: Backend> Prepared<B> {
    pub(super) fn training(&self, place: CellPlace) -> Option<&[Kept<B>]> {
        self.kept.get(&place).map(|[training, _]| &training[..])
    }

    pub(super) fn held_out(&self, place: CellPlace) -> Option<(&[Kept<B>], &CleanRuns<B>)> {
        let [_, held_out] = self.kept.get(&place)?;
        Some((held_out, self.clean.as_ref()?))
    }
}

/// Cells that share what is prepared.
pub(super) struct Group {
    pub(super) places: Vec<CellPlace>,
    size: Size,
}

/// About how many bytes are kept.
#[derive(Clone, Copy, Default)]
struct Size {
    /// For training and evaluation, of all cells of a group.
    prepared: usize,
    /// For validation, of a cell that is being trained.
    validation: usize,
}

impl Size {
    /// With another cell in the same group.
    fn with(self, other: Self) -> Self {
        Self {
            prepared: self.prepared + other.prepared,
            validation: self.validation.max(other.validation),
        }
    }

    fn total(self) -> usize {
        self.prepared + self.validation
    }

    /// How much of a budget is for validation: a proportional share if not everything fits.
    fn of_validation(self, budget: usize) -> usize {
        match self.total() {
            total if total <= budget => self.validation,
            total => (budget as f64 * (self.validation as f64 / total as f64)) as usize,
        }
    }
}

type Inner<A, M, I> = AlignableModel<
    <A as AutodiffBackend>::InnerBackend,
    <M as AutodiffModule<A>>::InnerModule,
    <I as AutodiffModule<A>>::InnerModule,
>;

impl<A, M, I> Cells<'_, A, M, I>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend> + Clone,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    /// The cells in groups that fit the memory budget. Those that share what is computed follow one
    /// another.
    pub(super) fn groups(&self) -> Result<Vec<Group>, AlignmentMapError> {
        let shared = |[row, column]: CellPlace| [self.same[row], column];
        let mut places: Vec<CellPlace> = self.located.keys().copied().collect();
        places.sort_by_key(|place| (shared(*place), *place));
        let sizes = self.sizes(&self.missing(&places))?;
        let mut groups: Vec<Group> = Vec::new();
        let mut last = None;
        for place in places {
            let of = shared(place);
            // A row of another rank needs what is there already.
            let is_there = last.replace(of) == Some(of);
            let own = sizes.get(&of).copied().unwrap_or_default();
            let fits = groups.last().is_some_and(|group| {
                self.has_same_model(&group.places, place)
                    && group.size.with(own).total() <= self.budget(place)
            });
            match groups.last_mut().filter(|_| is_there || fits) {
                Some(group) => {
                    group.places.push(place);
                    if !is_there {
                        group.size = group.size.with(own);
                    }
                }
                None => groups.push(Group {
                    places: vec![place],
                    size: own,
                }),
            }
        }
        Ok(groups)
    }

    /// The memory budget without the logits of the model without a swap.
    fn budget(&self, place: CellPlace) -> usize {
        let held_out = Part::HeldOut.data(self, place);
        let vocab = self.models[place[0]].model().dims().vocab;
        let budget = self.config.memory_budget;
        budget - CleanRuns::kept_bytes(held_out, vocab, budget / FOR_CLEAN)
    }

    /// Computes what the cells of a group have in common.
    pub(super) fn prepare(
        &self,
        group: &Group,
    ) -> Result<Prepared<A::InnerBackend>, AlignmentMapError> {
        let config = self.config;
        let missing = self.missing(&group.places);
        let mut prepared = Prepared {
            kept: missing
                .iter()
                .map(|place| (*place, Default::default()))
                .collect(),
            clean: None,
            left: config.memory_budget,
            validation: group.size.validation,
        };
        let (Some(first), models) = (missing.first(), self.inner(&missing)) else {
            return Ok(prepared);
        };
        let held_out = Part::HeldOut.data(self, *first);
        let for_clean = config.memory_budget / FOR_CLEAN;
        let clean = CleanRuns::new(models[0].model(), held_out, config.batch_size, for_clean);
        prepared.clean = Some(clean.map_err(self.failed(*first))?);
        let budget = self.budget(*first);
        let of_validation = group.size.of_validation(budget);
        let mut left = budget - of_validation;
        for (part, of) in Part::ALL.into_iter().enumerate() {
            for index in 0..of.data(self, *first).len() {
                let mut all = Vec::new();
                for (place, model) in missing.iter().zip(&models) {
                    let plan = of.data(self, *place)[index].plan(model);
                    all.push(Kept::new(plan.map_err(self.failed(*place))?));
                }
                let examples = of.data(self, *first)[index].len();
                let freeze = |plans: &[Plan<A::InnerBackend>]| freeze(plans, &models);
                let size = config.batch_size.max(1);
                Kept::fill_together(&mut all, examples, size, &mut left, &freeze, |_| {})
                    .map_err(|error| self.failed(*first)(error.into()))?;
                for (place, kept) in missing.iter().zip(all) {
                    if let Some(parts) = prepared.kept.get_mut(place) {
                        parts[part].push(kept);
                    }
                }
            }
        }
        prepared.left = left + of_validation;
        Ok(prepared)
    }

    /// The places, each once, under which cells that have not been saved share what is computed.
    fn missing(&self, places: &[CellPlace]) -> Vec<CellPlace> {
        let open = places
            .iter()
            .filter(|place| !self.saved.contains_key(*place));
        let mut missing: Vec<CellPlace> = open
            .map(|[row, column]| [self.same[*row], *column])
            .collect();
        missing.dedup();
        missing
    }

    /// Whether a cell has the model of a group.
    fn has_same_model(&self, group: &[CellPlace], [row, _]: CellPlace) -> bool {
        let first = group.first().map_or(row, |[first, _]| *first);
        self.model_of[first] == self.model_of[row]
    }

    fn inner(&self, places: &[CellPlace]) -> Vec<Inner<A, M, I>> {
        let models = places
            .iter()
            .map(|[row, _column]| self.models[*row].valid());
        models.collect()
    }

    /// About how many bytes are kept for each place, from the first examples.
    fn sizes(&self, places: &[CellPlace]) -> Result<BTreeMap<CellPlace, Size>, AlignmentMapError> {
        let mut sizes = BTreeMap::new();
        for some in places.chunk_by(|a, b| self.model_of[a[0]] == self.model_of[b[0]]) {
            let models = self.inner(some);
            let first = Part::Training.data(self, some[0]);
            let Some(dataset) = first.iter().position(|dataset| !dataset.is_empty()) else {
                continue;
            };
            let count = first[dataset].len().min(self.config.batch_size.max(1));
            let chosen: Vec<usize> = (0..count).collect();
            let mut plans = Vec::new();
            for (place, model) in some.iter().zip(&models) {
                let plan = Part::Training.data(self, *place)[dataset].plan(model);
                let plan = plan.and_then(|(plan, _)| Ok(plan.examples(&chosen)?));
                plans.push(plan.map_err(self.failed(*place))?);
            }
            let frozen = freeze(&plans, &models);
            let frozen = frozen.map_err(|error| self.failed(some[0])(error.into()))?;
            let examples = |data: &[InterchangeData<A::InnerBackend>]| -> usize {
                data.iter().map(InterchangeData::len).sum()
            };
            let all = Part::ALL.map(|part| examples(part.data(self, some[0])));
            let prepared: usize = all.into_iter().sum();
            let validation = examples(&self.located[&some[0]].validation);
            for (place, frozen) in some.iter().zip(&frozen) {
                let bytes = frozen.held_bytes();
                let size = Size {
                    prepared: bytes * prepared / count,
                    validation: bytes * validation / count,
                };
                sizes.insert(*place, size);
            }
        }
        Ok(sizes)
    }
}

/// The data that are prepared.
#[derive(Clone, Copy)]
enum Part {
    Training,
    HeldOut,
}

impl Part {
    const ALL: [Self; 2] = [Self::Training, Self::HeldOut];

    fn data<'c, A: AutodiffBackend, M, I>(
        self,
        cells: &'c Cells<'_, A, M, I>,
        place: CellPlace,
    ) -> &'c [InterchangeData<A::InnerBackend>] {
        match (self, cells.located.get(&place)) {
            (Self::Training, Some(located)) => &located.training,
            (Self::HeldOut, Some(located)) => &located.held_out,
            (_, None) => &[],
        }
    }
}

/// Freezes plans of the same examples, each with the interventions of its model.
fn freeze<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    plans: &[Plan<B>],
    models: &[AlignableModel<B, M, I>],
) -> Result<Vec<Plan<B>>, PlanError> {
    let Some(first) = models.first() else {
        return Ok(Vec::new());
    };
    let all = plans.iter().zip(models);
    let all: Vec<(&Plan<B>, &[I])> = all
        .map(|(plan, model)| (plan, model.interventions()))
        .collect();
    Plan::freeze_together(&all, first.model(), &RunOptions::default())
}
