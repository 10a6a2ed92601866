//! Where a variable is: distributed alignment search in every cell of a grid.

mod cells;
mod grid;
mod prepared;

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;

pub use self::grid::{AlignmentGrid, AlignmentMap};

use self::cells::{Cells, check_sizes};
use crate::front::{AlignError, AlignableConfig, AlignableModel, UnitLocations};
use crate::interventions::{BuiltinIntervention, Intervention};
use crate::training::{
    Controlled, History, InterchangeData, Targets, TrainingConfig, TrainingError, TrainingEvent,
};

/// The data of an alignment map.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AlignmentData<'a, B: Backend> {
    /// What interventions are trained on.
    pub training: &'a [InterchangeData<B>],
    /// What decides when training stops, if `config.patience` is set: the best epoch on these data
    /// is kept. They should differ from the held-out data. Default: none, and no early stop.
    pub validation: &'a [InterchangeData<B>],
    /// What trained interventions are evaluated on.
    pub held_out: &'a [InterchangeData<B>],
}

impl<'a, B: Backend> AlignmentData<'a, B> {
    /// Without validation data.
    pub fn new(training: &'a [InterchangeData<B>], held_out: &'a [InterchangeData<B>]) -> Self {
        Self {
            training,
            validation: &[],
            held_out,
        }
    }

    /// Sets the validation data.
    pub fn with_validation(mut self, validation: &'a [InterchangeData<B>]) -> Self {
        self.validation = validation;
        self
    }
}

/// Progress of [`alignment_map`].
#[derive(Debug)]
pub enum AlignmentEvent<'a, B: Backend, M, I = BuiltinIntervention<B>> {
    /// Training continues in a cell. Those that are trained in lockstep take turns.
    Training {
        /// Its row and column.
        place: [usize; 2],
        /// The event of that training.
        event: TrainingEvent<'a>,
    },
    /// A cell is done.
    Cell {
        /// Its row and column.
        place: [usize; 2],
        /// The model with the interventions trained there, to be [saved](crate::saved) or used.
        model: &'a AlignableModel<B, M, I>,
        /// How training went.
        history: &'a History,
        /// The result on held-out data.
        found: &'a Controlled,
    },
}

/// Why an alignment map could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AlignmentMapError {
    /// A grid without cells, or data without examples.
    #[error("expected {expected}, found none")]
    Nothing {
        /// What is missing.
        expected: &'static str,
    },
    /// A cell whose interventions cannot be trained or evaluated.
    #[error("row {row}, column {column}: {cause}")]
    Cell {
        /// Label of the row.
        row: String,
        /// Label of the column.
        column: String,
        /// Why.
        cause: Box<TrainingError>,
    },
}

/// Trains separate interventions in every cell of a grid and evaluates each on held-out data, next
/// to a random rotation of the same size, the whole vector, and no swap.
///
/// Up to rounding, each cell equals a separate call of [`train`](crate::training::train) and
/// [`evaluate_with_controls`](crate::training::evaluate_with_controls); the random rotation of the
/// controls is seeded with `config.seed + 1`. What cells have in common is computed once: one pass
/// of each base and source gives what all cells need of the layers before them, cells that differ
/// in their rank alone share all of that, and the model without a swap is run once. If this and one
/// cell's validation data do not fit `config.memory_budget`, cells are divided into groups that do.
/// Cells of one layer are trained in lockstep, a few at a time: a step of all of them is one pass.
///
/// With [checkpoints](TrainingConfig::checkpoints), an interrupted map resumes, and gives the same
/// result as without the interruption, up to rounding: cells that are left may find other ones in
/// lockstep. Each cell has a folder of its own in that folder, by the numbers of its row and
/// column. Cells that are done are read, and their event comes again.
///
/// Cells come in the order of the grid, except that those that differ in their rank alone follow
/// one another.
///
/// - `model`: the model that training starts from in a row, with the interventions of its
///   configuration, on an autodiff backend. With
///   `|aligned| AlignableModel::new_seeded(aligned, model.clone(), seed)` all rows start from the
///   same random rotation; use [`AlignableModel::with_interventions`] for your own interventions.
///   All rows must have the same model, or copies of it
/// - `locations`: the units of a row and column in these data; they replace the data's own
///   locations
/// - `training`, `held_out`: the data; held-out data are only used for evaluation, so
///   `config.patience` has no effect: use [`alignment_map_with`] to stop early
/// - `loss`: as in [`train`](crate::training::train)
///
/// # When it misleads
/// The number in a cell says how well the *best* subspace there does. With large ranks it may be
/// high although the model makes no use of the variable at that site; compare it with the random
/// rotation. The best of many cells is high by chance as well: report the grid, not its maximum,
/// and repeat it with other seeds.
///
/// # Errors
/// If a cell does not fit the model or the data, which is found before anything is computed; if the
/// loss in a cell is no longer a number; or if a checkpoint cannot be written or belongs to another
/// run. The cells in lockstep with one that fails are finished first.
pub fn alignment_map<A, M, I>(
    model: impl Fn(AlignableConfig) -> Result<AlignableModel<A, M, I>, AlignError>,
    grid: &AlignmentGrid,
    locations: impl Fn([usize; 2], &InterchangeData<A::InnerBackend>) -> UnitLocations,
    [training, held_out]: [&[InterchangeData<A::InnerBackend>]; 2],
    config: &TrainingConfig,
    loss: impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
    observe: impl FnMut(AlignmentEvent<'_, A::InnerBackend, M::InnerModule, I::InnerModule>),
) -> Result<AlignmentMap, AlignmentMapError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend> + Clone,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    let data = AlignmentData::new(training, held_out);
    alignment_map_with(model, grid, locations, data, config, loss, observe)
}

/// As [`alignment_map`], with validation data that decide when training stops.
///
/// # Errors
/// As [`alignment_map`].
pub fn alignment_map_with<A, M, I>(
    model: impl Fn(AlignableConfig) -> Result<AlignableModel<A, M, I>, AlignError>,
    grid: &AlignmentGrid,
    locations: impl Fn([usize; 2], &InterchangeData<A::InnerBackend>) -> UnitLocations,
    data: AlignmentData<'_, A::InnerBackend>,
    config: &TrainingConfig,
    loss: impl Fn(Tensor<A, 3>, &Targets<A>) -> Tensor<A, 1>,
    mut observe: impl FnMut(AlignmentEvent<'_, A::InnerBackend, M::InnerModule, I::InnerModule>),
) -> Result<AlignmentMap, AlignmentMapError>
where
    A: AutodiffBackend,
    M: AlignableTransformer<A> + AutodiffModule<A>,
    M::InnerModule: AlignableTransformer<A::InnerBackend> + Clone,
    I: Intervention<A> + AutodiffModule<A>,
    I::InnerModule: Intervention<A::InnerBackend>,
{
    check_sizes(grid, &data)?;
    // All cells are checked before the first one is trained.
    let cells = Cells::new(model, grid, &locations, &data, config)?;
    let mut results = BTreeMap::new();
    for group in cells.groups()? {
        let prepared = cells.prepare(&group)?;
        for places in cells.in_lockstep(&group.places, &prepared) {
            let all = cells.train(places, &prepared, &loss, |place, event| {
                observe(AlignmentEvent::Training { place, event });
            });
            let mut failed = None;
            for (place, trained) in places.iter().copied().zip(all) {
                let (trained, history) = match trained {
                    Ok(trained) => trained,
                    Err(error) => {
                        failed.get_or_insert(error);
                        continue;
                    }
                };
                let trained = trained.valid();
                let cell = cells.evaluate(place, &prepared, &trained)?;
                observe(AlignmentEvent::Cell {
                    place,
                    model: &trained,
                    history: &history,
                    found: &cell,
                });
                results.insert(place, cell);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }
    let mut found = vec![Vec::new(); grid.rows.len()];
    for ([row, _column], cell) in results {
        found[row].push(cell);
    }
    Ok(AlignmentMap {
        rows: grid.rows.iter().map(|(label, _)| label.clone()).collect(),
        columns: grid.columns.clone(),
        cells: found,
    })
}
