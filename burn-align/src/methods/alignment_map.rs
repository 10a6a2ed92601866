//! Where a variable is: distributed alignment search in every cell of a grid.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::AlignableTransformer;
use serde::{Deserialize, Serialize};

use super::Grid;
use super::sweep::numbers;
use crate::engine::RunOptions;
use crate::front::{AlignError, AlignableConfig, AlignableModel, UnitLocations};
use crate::interventions::{BuiltinIntervention, Intervention};
use crate::training::{
    Controlled, History, InterchangeData, Targets, TrainingConfig, TrainingError, TrainingEvent,
    evaluate_with_controls, train,
};

/// The cells of an alignment map, on two axes.
#[derive(Clone, Debug, PartialEq)]
pub struct AlignmentGrid {
    /// The rows: their labels, and what is aligned in each, with its interventions. A hypothesis
    /// with several variables has one representation per variable.
    pub rows: Vec<(String, AlignableConfig)>,
    /// Labels of the columns: positions, heads, or roles that these have in a prompt.
    pub columns: Vec<String>,
}

impl AlignmentGrid {
    /// The same representations in each of these layers, with these columns.
    pub fn layers(aligned: &AlignableConfig, layers: usize, columns: &[String]) -> Self {
        let rows = numbers(layers).into_iter().enumerate();
        let rows = rows.map(|(layer, label)| {
            let mut aligned = aligned.clone();
            for representation in &mut aligned.representations {
                representation.layer = layer;
            }
            (label, aligned)
        });
        Self {
            rows: rows.collect(),
            columns: columns.to_vec(),
        }
    }
}

/// The result of distributed alignment search in every cell of a grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlignmentMap {
    /// Labels of the rows.
    pub rows: Vec<String>,
    /// Labels of the columns.
    pub columns: Vec<String>,
    /// `[row][column]`: held-out accuracies and their intervals, next to the controls.
    pub cells: Vec<Vec<Controlled>>,
}

impl AlignmentMap {
    /// One number per cell, for plotting: for example `|cell| cell.trained.accuracy`.
    pub fn grid(&self, number: impl Fn(&Controlled) -> f64) -> Grid {
        let values = self.cells.iter();
        Grid {
            rows: self.rows.clone(),
            columns: self.columns.clone(),
            values: values
                .map(|row| row.iter().map(&number).collect())
                .collect(),
        }
    }

    /// The cell with the highest accuracy: its row, its column and its result.
    pub fn best(&self) -> Option<(usize, usize, &Controlled)> {
        let (row, column, _) = self.grid(|cell| cell.trained.accuracy).max()?;
        Some((row, column, &self.cells[row][column]))
    }
}

/// Progress of [`alignment_map`].
#[derive(Debug)]
pub enum AlignmentEvent<'a, B: Backend, M, I = BuiltinIntervention<B>> {
    /// Training continues in a cell.
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
/// Each cell equals a separate call of [`train`] and [`evaluate_with_controls`]; the random
/// rotation of the controls is seeded with `config.seed + 1`. A cell takes as long as these two
/// calls: the frozen layers before it are run once for each example, and the model without a swap
/// is run again for each cell.
///
/// - `model`: the model that training starts from in a row, with the interventions of its
///   configuration, on an autodiff backend. With
///   `|aligned| AlignableModel::new_seeded(aligned, model.clone(), seed)` all rows start from the
///   same random rotation; use [`AlignableModel::with_interventions`] for your own interventions
/// - `locations`: the units of a row and column in these data; they replace the data's own
///   locations
/// - `training`, `held_out`: the data; held-out data are only used for evaluation, so
///   `config.patience` has no effect
/// - `loss`: as in [`train`]
///
/// # When it misleads
/// The number in a cell says how well the *best* subspace there does. With large ranks it may be
/// high although the model makes no use of the variable at that site; compare it with the random
/// rotation.
///
/// # Errors
/// If a cell does not fit the model or the data, which is found before anything is computed; or if
/// the loss in a cell is no longer a number.
pub fn alignment_map<A, M, I>(
    model: impl Fn(AlignableConfig) -> Result<AlignableModel<A, M, I>, AlignError>,
    grid: &AlignmentGrid,
    locations: impl Fn([usize; 2], &InterchangeData<A::InnerBackend>) -> UnitLocations,
    [training, held_out]: [&[InterchangeData<A::InnerBackend>]; 2],
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
    check_sizes(grid, [training, held_out])?;
    let failed = |[row, column]: [usize; 2]| {
        let (row, column) = (grid.rows[row].0.clone(), grid.columns[column].clone());
        move |error| AlignmentMapError::Cell {
            row,
            column,
            cause: Box::new(error),
        }
    };
    let located = |place: [usize; 2], data: &[InterchangeData<A::InnerBackend>]| {
        let data = data.iter().map(|dataset| {
            let locations = locations(place, dataset);
            dataset.clone().with_locations(locations)
        });
        data.collect::<Vec<_>>()
    };

    // Check all cells before training the first one.
    let mut rows = Vec::new();
    for (row, (_, aligned)) in grid.rows.iter().enumerate() {
        let aligned = model(aligned.clone()).map_err(|error| failed([row, 0])(error.into()))?;
        let trained = |intervention: &I| intervention.num_params() > 0;
        if !aligned.interventions().iter().any(trained) {
            return Err(failed([row, 0])(TrainingError::Nothing {
                expected: "at least one intervention with parameters",
            }));
        }
        for column in 0..grid.columns.len() {
            let place = [row, column];
            let data = [located(place, training), located(place, held_out)].concat();
            check(&aligned.valid(), &data).map_err(failed(place))?;
        }
        rows.push(aligned);
    }

    let mut cells = Vec::new();
    for (row, aligned) in rows.into_iter().enumerate() {
        let mut found = Vec::new();
        for column in 0..grid.columns.len() {
            let place = [row, column];
            let (trained, history) = train(
                aligned.clone(),
                &located(place, training),
                &[],
                config,
                &loss,
                |event| observe(AlignmentEvent::Training { place, event }),
            )
            .map_err(failed(place))?;
            let trained = trained.valid();
            let cell = evaluate_with_controls(
                &trained,
                &located(place, held_out),
                config.batch_size,
                config.seed.wrapping_add(1),
            )
            .map_err(failed(place))?;
            observe(AlignmentEvent::Cell {
                place,
                model: &trained,
                history: &history,
                found: &cell,
            });
            found.push(cell);
        }
        cells.push(found);
    }
    Ok(AlignmentMap {
        rows: grid.rows.iter().map(|(label, _)| label.clone()).collect(),
        columns: grid.columns.clone(),
        cells,
    })
}

fn check_sizes<B: Backend>(
    grid: &AlignmentGrid,
    [training, held_out]: [&[InterchangeData<B>]; 2],
) -> Result<(), AlignmentMapError> {
    let examples = |data: &[InterchangeData<B>]| data.iter().map(InterchangeData::len).sum();
    for (expected, count) in [
        ("at least one row", grid.rows.len()),
        ("at least one column", grid.columns.len()),
        ("at least one example to train on", examples(training)),
        ("at least one held-out example", examples(held_out)),
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
