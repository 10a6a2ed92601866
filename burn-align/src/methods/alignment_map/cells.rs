//! The cells of a grid: what is trained in each, on which data, and what has been saved of it.

use std::collections::BTreeMap;

use burn::module::{AutodiffModule, ParamId, list_param_ids};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;

use super::prepared::Prepared;
use super::{AlignmentData, AlignmentGrid, AlignmentMapError};
use crate::engine::RunOptions;
use crate::front::{AlignError, AlignableConfig, AlignableModel, Subspaces, UnitLocations};
use crate::interventions::Intervention;
use crate::training::{
    CellFile, Checkpoints, Controlled, InterchangeData, PreparedData, Run, Targets, Trained,
    TrainingConfig, TrainingError, TrainingEvent, evaluate_prepared, evaluate_with_controls,
    own_penalties, train_together,
};

/// Tokens of a step of several cells, at most: so many that products of weights are at their best
/// on a CPU, and no more, because what gradients need of all of them is in memory.
const TOKENS: usize = 512;

/// Their logits, at most: 128 MiB in f32.
const LOGITS: usize = 32 << 20;

/// A row and a column.
pub(super) type CellPlace = [usize; 2];

/// The data of a cell, at its units.
pub(super) struct Located<B: Backend> {
    pub(super) training: Vec<InterchangeData<B>>,
    pub(super) validation: Vec<InterchangeData<B>>,
    pub(super) held_out: Vec<InterchangeData<B>>,
}

/// All cells of a grid.
pub(super) struct Cells<'a, A: AutodiffBackend, M, I> {
    grid: &'a AlignmentGrid,
    pub(super) config: &'a TrainingConfig,
    /// For each row.
    pub(super) models: Vec<AlignableModel<A, M, I>>,
    /// For each row, the first one that has the same plans: it differs at most in its rank.
    pub(super) same: Vec<usize>,
    /// For each row, the first one that has the same model.
    pub(super) model_of: Vec<usize>,
    pub(super) located: BTreeMap<CellPlace, Located<A::InnerBackend>>,
    /// The results of cells that were done earlier.
    pub(super) saved: BTreeMap<CellPlace, Controlled>,
}

impl<'a, A, M, I> Cells<'a, A, M, I>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend> + Clone,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    /// # Errors
    /// If a cell does not fit the model or the data, or has been saved by another run.
    pub(super) fn new(
        model: impl Fn(AlignableConfig) -> Result<AlignableModel<A, M, I>, AlignError>,
        grid: &'a AlignmentGrid,
        locations: &impl Fn(CellPlace, &InterchangeData<A::InnerBackend>) -> UnitLocations,
        data: &AlignmentData<'_, A::InnerBackend>,
        config: &'a TrainingConfig,
    ) -> Result<Self, AlignmentMapError> {
        let mut cells = Self {
            grid,
            config,
            models: Vec::new(),
            same: Vec::new(),
            model_of: Vec::new(),
            located: BTreeMap::new(),
            saved: BTreeMap::new(),
        };
        let mut kinds: Vec<(AlignableConfig, Vec<ParamId>)> = Vec::new();
        for (row, (_, aligned)) in grid.rows.iter().enumerate() {
            let model = model(aligned.clone());
            let model = model.map_err(|error| cells.failed([row, 0])(error.into()))?;
            let trained = |intervention: &I| intervention.num_params() > 0;
            if !model.interventions().iter().any(trained) {
                return Err(cells.failed([row, 0])(TrainingError::Nothing {
                    expected: "at least one intervention with parameters",
                }));
            }
            let inner = model.valid();
            for column in 0..grid.columns.len() {
                let place = [row, column];
                let located = |data: &[InterchangeData<A::InnerBackend>]| {
                    let data = data.iter().map(|dataset| {
                        let locations = locations(place, dataset);
                        dataset.clone().with_locations(locations)
                    });
                    data.collect::<Vec<_>>()
                };
                let located = Located {
                    training: located(data.training),
                    validation: located(data.validation),
                    held_out: located(data.held_out),
                };
                let all = [&located.training, &located.validation, &located.held_out];
                for data in all {
                    check(&inner, data).map_err(cells.failed(place))?;
                }
                cells.located.insert(place, located);
            }
            let kind = (without_rank(aligned), list_param_ids::<M, A>(model.model()));
            let first = kinds.iter().position(|known| *known == kind);
            cells.same.push(first.unwrap_or(row));
            // Copies have the parameters of the original, by their ids.
            let first = kinds.iter().position(|(_, known)| *known == kind.1);
            cells.model_of.push(first.unwrap_or(row));
            kinds.push(kind);
            cells.models.push(model);
        }
        let places: Vec<CellPlace> = cells.located.keys().copied().collect();
        for place in places {
            if let Some(file) = cells.file(place)
                && let Some(found) = file.load().map_err(cells.failed(place))?
            {
                cells.saved.insert(place, found);
            }
        }
        Ok(cells)
    }

    /// Says where an error is.
    pub(super) fn failed(
        &self,
        [row, column]: CellPlace,
    ) -> impl Fn(TrainingError) -> AlignmentMapError + use<A, M, I> {
        let (row, column) = (
            self.grid.rows[row].0.clone(),
            self.grid.columns[column].clone(),
        );
        move |error| AlignmentMapError::Cell {
            row: row.clone(),
            column: column.clone(),
            cause: Box::new(error),
        }
    }

    /// Where a cell is saved.
    fn checkpoints(&self, [row, column]: CellPlace) -> Option<Checkpoints> {
        let checkpoints = self.config.checkpoints.as_ref()?;
        let folder = checkpoints.folder.join(format!("{row}-{column}"));
        Some(Checkpoints::new(folder).with_every(checkpoints.every))
    }

    fn file(&self, place: CellPlace) -> Option<CellFile> {
        let checkpoints = self.checkpoints(place)?;
        let located = self.located.get(&place)?;
        let data = [&located.training[..], &located.held_out];
        let model = &self.models[place[0]];
        Some(CellFile::new(&checkpoints, self.config, model, data))
    }

    /// Trains cells in lockstep, or reads how they were trained. A cell that fails leaves the
    /// others alone.
    pub(super) fn train(
        &self,
        places: &[CellPlace],
        prepared: &Prepared<A::InnerBackend>,
        loss: &impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
        mut observe: impl FnMut(CellPlace, TrainingEvent<'_>),
    ) -> Vec<Result<Trained<A, M, I>, AlignmentMapError>> {
        let open = places.iter().filter(|it| !self.saved.contains_key(*it));
        // What has been prepared stays alive meanwhile.
        let memory_budget = prepared.left / open.count().max(1);
        let (mut runs, mut begun, mut results) = (Vec::new(), Vec::new(), BTreeMap::new());
        for place in places {
            let [row, column] = *place;
            let model = self.models[row].clone();
            let located = &self.located[place];
            let data = [&located.training[..], &located.validation];
            let mut config = self.config.clone();
            config.checkpoints = self.checkpoints(*place);
            config.memory_budget = memory_budget;
            let devices = [model.model().device()];
            let kept = prepared.training([self.same[row], column]);
            let kept = kept.map(<[_]>::to_vec);
            let run = Run::new(model, &devices, data, &config, kept, &mut |event| {
                observe(*place, event);
            });
            match run {
                Ok(run) => {
                    runs.push(run);
                    begun.push(*place);
                }
                Err(error) => {
                    results.insert(*place, Err(error));
                }
            }
        }
        let objective = (loss, own_penalties::<A, I>);
        let trained = train_together(runs, objective, |run, event| observe(begun[run], event));
        results.extend(begun.into_iter().zip(trained));
        let results = places.iter().filter_map(|place| {
            let trained = results.remove(place)?;
            Some(trained.map_err(self.failed(*place)))
        });
        results.collect()
    }

    /// The cells of a group, those together that are trained in lockstep: in one layer, and so few
    /// that what gradients and validation need of all of them may be in memory.
    pub(super) fn in_lockstep<'p>(
        &self,
        places: &'p [CellPlace],
        prepared: &Prepared<A::InnerBackend>,
    ) -> Vec<&'p [CellPlace]> {
        let most = prepared.left.checked_div(prepared.validation);
        let most = most.map_or(usize::MAX, |most| most.max(1));
        let mut all = Vec::new();
        let mut rest = places;
        while let [first, others @ ..] = rest {
            let mut sum = self.size_of_step(first, prepared);
            let more = others.iter().take(most - 1).take_while(|place| {
                let size = self.size_of_step(place, prepared);
                for (sum, size) in sum.iter_mut().zip(size) {
                    *sum = sum.saturating_add(size);
                }
                let [tokens, logits] = sum;
                let fits = tokens <= TOKENS && logits <= LOGITS;
                fits && self.same[place[0]] == self.same[first[0]]
            });
            let (now, later) = rest.split_at(1 + more.count());
            all.push(now);
            rest = later;
        }
        all
    }

    /// The tokens and the logits of a cell's step, at most; one that has been saved is by itself.
    fn size_of_step(&self, place: &CellPlace, prepared: &Prepared<A::InnerBackend>) -> [usize; 2] {
        let [row, column] = *place;
        let Some(kept) = prepared.training([self.same[row], column]) else {
            return [TOKENS, LOGITS];
        };
        let vocab = self.models[row].model().dims().vocab;
        let data = self.located[place].training.iter().zip(kept);
        let sizes = data.map(|(dataset, kept)| {
            let examples = dataset.len().min(self.config.batch_size);
            let units = dataset.positions.count(dataset.inputs.base.pos());
            [
                examples.saturating_mul(kept.computed_positions()),
                examples.saturating_mul(units).saturating_mul(vocab),
            ]
        });
        sizes.fold([0; 2], |[tokens, logits], [more_tokens, more_logits]| {
            [tokens.max(more_tokens), logits.max(more_logits)]
        })
    }

    /// Evaluates a cell, or reads what was found.
    pub(super) fn evaluate(
        &self,
        place: CellPlace,
        prepared: &Prepared<A::InnerBackend>,
        trained: &AlignableModel<A::InnerBackend, M::InnerModule, I::InnerModule>,
    ) -> Result<Controlled, AlignmentMapError> {
        if let Some(found) = self.saved.get(&place) {
            return Ok(*found);
        }
        let [row, column] = place;
        let data = &self.located[&place].held_out[..];
        let (size, seed) = (self.config.batch_size, self.config.seed.wrapping_add(1));
        // Subspaces index rotated features, which the whole vector does not have.
        let are_whole = data
            .iter()
            .all(|dataset| matches!(dataset.inputs.subspaces, Subspaces::Whole));
        let found = match prepared.held_out([self.same[row], column]) {
            Some((kept, clean)) if are_whole => {
                let prepared = PreparedData { data, kept, clean };
                evaluate_prepared(trained, &prepared, size, seed)
            }
            _ => evaluate_with_controls(trained, data, size, seed),
        };
        let found = found.map_err(self.failed(place))?;
        if let Some(file) = self.file(place) {
            file.save(&found).map_err(self.failed(place))?;
        }
        Ok(found)
    }
}

/// The configuration with the same rank everywhere: on it, plans do not depend.
fn without_rank(aligned: &AlignableConfig) -> AlignableConfig {
    let mut aligned = aligned.clone();
    for representation in &mut aligned.representations {
        representation.low_rank_dimension = None;
    }
    aligned
}

pub(super) fn check_sizes<B: Backend>(
    grid: &AlignmentGrid,
    data: &AlignmentData<'_, B>,
) -> Result<(), AlignmentMapError> {
    let examples = |data: &[InterchangeData<B>]| data.iter().map(InterchangeData::len).sum();
    for (expected, count) in [
        ("at least one row", grid.rows.len()),
        ("at least one column", grid.columns.len()),
        ("at least one example to train on", examples(data.training)),
        ("at least one held-out example", examples(data.held_out)),
    ] {
        if count == 0 {
            return Err(AlignmentMapError::Nothing { expected });
        }
    }
    Ok(())
}

/// Checks that data can be run.
fn check<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    model: &AlignableModel<B, M, I>,
    data: &[InterchangeData<B>],
) -> Result<(), TrainingError> {
    for dataset in data {
        let (plan, _read) = dataset.plan(model)?;
        // This validates the plan, and runs nothing, because nothing is trained.
        let nothing = |_intervention| false;
        plan.freeze(
            model.model(),
            model.interventions(),
            nothing,
            &RunOptions::default(),
        )?;
    }
    Ok(())
}
