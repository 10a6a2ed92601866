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
}

impl<B: Backend> Prepared<B> {
    pub(super) fn training(&self, place: CellPlace) -> Option<Vec<Kept<B>>> {
        self.kept.get(&place).map(|[training, _]| training.clone())
    }

    pub(super) fn held_out(&self, place: CellPlace) -> Option<(&[Kept<B>], &CleanRuns<B>)> {
        let [_, held_out] = self.kept.get(&place)?;
        Some((held_out, self.clean.as_ref()?))
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
    pub(super) fn groups(&self) -> Result<Vec<Vec<CellPlace>>, AlignmentMapError> {
        let shared = |[row, column]: CellPlace| [self.same[row], column];
        let mut places: Vec<CellPlace> = self.located.keys().copied().collect();
        places.sort_by_key(|place| (shared(*place), *place));
        let sizes = self.sizes(&self.missing(&places))?;
        let mut groups: Vec<Vec<CellPlace>> = Vec::new();
        let (mut last, mut bytes) = (None, 0);
        for place in places {
            let of = shared(place);
            let is_new = last.replace(of) != Some(of);
            let more = sizes.get(&of).copied().filter(|_| is_new).unwrap_or(0);
            let is_same_model = groups
                .last()
                .is_none_or(|group| self.has_same_model(group, place));
            let fits = is_same_model && bytes + more <= self.config.memory_budget;
            match groups.last_mut().filter(|_| fits) {
                Some(group) => {
                    group.push(place);
                    bytes += more;
                }
                None => {
                    groups.push(vec![place]);
                    bytes = more;
                }
            }
        }
        Ok(groups)
    }

    /// Computes what the cells of a group have in common.
    pub(super) fn prepare(
        &self,
        group: &[CellPlace],
    ) -> Result<Prepared<A::InnerBackend>, AlignmentMapError> {
        let missing = self.missing(group);
        let mut prepared = Prepared {
            kept: missing
                .iter()
                .map(|place| (*place, Default::default()))
                .collect(),
            clean: None,
        };
        let (Some(first), models) = (missing.first(), self.inner(&missing)) else {
            return Ok(prepared);
        };
        let config = self.config;
        let mut left = config.memory_budget;
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
        let held_out = Part::HeldOut.data(self, *first);
        let budget = config.memory_budget / FOR_CLEAN;
        let clean = CleanRuns::new(models[0].model(), held_out, config.batch_size, budget);
        prepared.clean = Some(clean.map_err(self.failed(*first))?);
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
    fn sizes(&self, places: &[CellPlace]) -> Result<BTreeMap<CellPlace, usize>, AlignmentMapError> {
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
            let all = Part::ALL
                .into_iter()
                .flat_map(|part| part.data(self, some[0]));
            let examples: usize = all.map(InterchangeData::len).sum();
            for (place, frozen) in some.iter().zip(&frozen) {
                sizes.insert(*place, frozen.held_bytes() / count * examples);
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
