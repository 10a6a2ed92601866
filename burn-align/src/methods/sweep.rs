//! The same intervention at many sites, each in its own world, all in one plan.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Site, TokenBatch};

use super::Grid;
use crate::engine::{
    Edit, Indices, InputId, LogitPositions, Plan, PlanError, ReadId, RunOptions, Units,
    read_numbers,
};
use crate::interventions::Intervention;

/// The cells of a sweep, on two axes.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepGrid {
    rows: Vec<String>,
    columns: Vec<String>,
    /// `[row * columns + column]`
    pub(super) cells: Vec<(Site, Units)>,
}

impl SweepGrid {
    /// One cell for each row and column.
    pub fn new(
        rows: Vec<String>,
        columns: Vec<String>,
        place: impl Fn(usize, usize) -> (Site, Units),
    ) -> Self {
        let cells = (0..rows.len()).flat_map(|row| {
            let place = &place;
            (0..columns.len()).map(move |column| place(row, column))
        });
        let cells = cells.collect();
        Self {
            rows,
            columns,
            cells,
        }
    }

    /// A component of every layer, at every position. The tokens label the columns.
    pub fn layers_and_positions(component: Component, layers: usize, tokens: &[String]) -> Self {
        Self::new(numbers(layers), tokens.to_vec(), |layer, position| {
            (Site::Block(layer, component), Units::position(position))
        })
    }

    /// Every head of every layer, at these positions.
    pub fn layers_and_heads(
        component: Component,
        layers: usize,
        heads: usize,
        positions: &Indices,
    ) -> Self {
        Self::new(numbers(layers), numbers(heads), |layer, head| {
            let units = Units::positions(positions.clone()).of_head(head);
            (Site::Block(layer, component), units)
        })
    }
}

/// `0`, `1`, … as labels.
pub(super) fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// Intervenes in every cell of a grid with the source's activation at the same units, and measures
/// the prediction: `metric` of the logits after the last token of each example, averaged over
/// examples.
///
/// With [`VanillaIntervention`](crate::interventions::VanillaIntervention) this is activation
/// patching. All cells are one plan: base and source are computed once.
///
/// # When it misleads
/// A source that differs from the base in more than the variable of interest brings all of that
/// along, and may give an activation that no prompt would produce. Choose a source that differs in
/// one respect (Zhang & Nanda 2023, arXiv 2309.16042). Patching the source into the base shows what
/// is sufficient to change the answer in this context; a cell without an effect may still matter if
/// another one backs it up (Heimersheim & Nanda 2024, arXiv 2404.15255).
///
/// # Shapes
/// - metric: `[batch, vocab]` → `[batch]`
///
/// # Errors
/// If a cell, the base or the source does not fit the model, or if values stop being finite.
///
/// ```
/// use burn_align::engine::RunOptions;
/// use burn_align::interventions::VanillaIntervention;
/// use burn_align::methods::{SweepGrid, probability, sweep};
/// use burn_align::models::AlignableTransformer;
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let base = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let source = tokenizer.encode_batch(["The capital of Italy is"])?;
///
/// let words = tokenizer.token_marks(&base.ids()[0]);
/// let layers = loaded.model.dims().layers;
/// let grid = SweepGrid::layers_and_positions(Component::BlockOutput, layers, &words);
/// let rome = tokenizer.single_token("Rome")?;
/// let found = sweep(
///     &loaded.model,
///     &VanillaIntervention,
///     [&base, &source],
///     &grid,
///     |logits| probability(logits, rome),
///     &RunOptions::default(),
/// )?;
/// // After layer 0, the country has moved to the last of five tokens.
/// assert!(found.values.iter().all(|row| row[4] > 0.9 && row[3] < 0.01));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sweep<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    model: &M,
    intervention: &I,
    [base, source]: [&TokenBatch; 2],
    grid: &SweepGrid,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<Grid, PlanError> {
    let models = std::slice::from_ref(model);
    sweep_on_devices(models, intervention, [base, source], grid, metric, options)
}

/// Like [`sweep`], with the cells divided among copies of the model on several devices; see
/// [`Plan::run_on_devices`]. The intervention must be on the first device, where the logits are
/// gathered for the metric.
///
/// - models: from [`replicate`](crate::engine::replicate), or loaded on each device
///
/// # Errors
/// As [`sweep`], or if there is no model.
pub fn sweep_on_devices<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
    models: &[M],
    intervention: &I,
    [base, source]: [&TokenBatch; 2],
    grid: &SweepGrid,
    metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
    options: &RunOptions,
) -> Result<Grid, PlanError> {
    let mut plan = Plan::new();
    let (base, source) = (plan.tokens(base), plan.tokens(source));
    let source = plan.world(source, []);
    let edits = grid.cells.iter();
    let edits = edits.map(|(site, units)| Edit::from_world(source, *site, units.clone(), 0));
    let worlds = worlds(&mut plan, base, edits);
    grid.measure(&plan, &worlds, models, intervention, metric, options)
}

/// One world for each edit of the base; returns their logits after the last token.
pub(super) fn worlds<B: Backend>(
    plan: &mut Plan<B>,
    base: InputId,
    edits: impl IntoIterator<Item = Edit>,
) -> Vec<ReadId> {
    let edits = edits.into_iter();
    let worlds = edits.map(|edit| {
        let world = plan.world(base, [edit]);
        plan.read_logits(world, LogitPositions::Last)
    });
    worlds.collect()
}

impl SweepGrid {
    /// Runs a plan that has one world per cell, and measures each world's logits.
    pub(super) fn measure<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        plan: &Plan<B>,
        worlds: &[ReadId],
        models: &[M],
        intervention: &I,
        metric: impl Fn(Tensor<B, 2>) -> Tensor<B, 1>,
        options: &RunOptions,
    ) -> Result<Grid, PlanError> {
        let interventions = std::slice::from_ref(intervention);
        let results = plan.run_on_devices(models, interventions, options)?;
        let values = worlds.iter();
        let values = values.map(|read| metric(results.get(*read).squeeze_dim(1)).mean());
        let values = to_rows(values.collect(), self.columns.len())?;
        if let Some(model) = models.first() {
            plan.check_finite(values.iter().flatten(), model, interventions, options)?;
        }
        Ok(Grid {
            rows: self.rows.clone(),
            columns: self.columns.clone(),
            values,
        })
    }
}

/// Copies numbers to the host, all at once.
pub(super) fn to_rows<B: Backend>(
    values: Vec<Tensor<B, 1>>,
    columns: usize,
) -> Result<Vec<Vec<f64>>, PlanError> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let values = read_numbers(Tensor::cat(values, 0).cast(DType::F32))?;
    Ok(values.chunks(columns).map(<[f64]>::to_vec).collect())
}
