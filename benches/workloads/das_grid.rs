//! Distributed alignment search in every cell of a grid, layer × position.

use anyhow::Result;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
};
use burn_align::methods::{AlignmentGrid, alignment_map};
use burn_align::training::{InterchangeData, TrainingConfig, losses};
use burn_align_models::{AlignableTransformer, Component, Decoder, ModelDims};

use crate::catalogue::{Choices, Inputs, Task, Workload};
use crate::run::Bench;
use crate::timing::{Times, time_once};

/// The family, which takes minutes.
pub(crate) const FAMILY: &str = "das_grid";
// As in `benches/peers/grid.py`.
const COLUMNS: usize = 4;
const RANK: usize = 16;
const BATCH: usize = 16;
const EPOCHS: usize = 2;
const HELD_OUT: usize = 16;

/// The last positions of each prompt, at every layer; a number of steps that does not depend on the
/// result.
pub(crate) fn workload(dims: &ModelDims, choices: &Choices) -> Workload {
    let inputs = choices.inputs(256, 8);
    let (layers, columns) = (dims.layers, COLUMNS.min(inputs.pos));
    let steps = EPOCHS * inputs.batch.div_ceil(BATCH);
    Workload {
        family: FAMILY,
        name: format!("{FAMILY}_{layers}x{columns}_rank{RANK}_{inputs}"),
        what: format!(
            "DAS with {RANK} directions at each of {layers} layers × {columns} positions, {steps} \
             steps each, and its evaluation; one repeat, without a warm-up"
        ),
        task: Task::DasGrid(inputs),
    }
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn das_grid(&self, inputs: Inputs) -> Result<Times> {
        let vocab = self.model.dims().vocab;
        let data = |batch: usize, seeds: [usize; 2]| {
            let [base, source] = seeds.map(|seed| self.tokens(Inputs { batch, ..inputs }, seed));
            let labels = (0..batch).map(|label| (label * 3001 % vocab) as u32);
            [InterchangeData::new(
                AlignableInputs::new(base).with_sources([source]),
                labels,
            )]
        };
        let (training, held_out) = (data(inputs.batch, [1, 2]), data(HELD_OUT, [3, 4]));
        let model = Decoder::<Autodiff<B>>::from_inner(self.model.clone());
        let columns = COLUMNS.min(inputs.pos);
        let first = inputs.pos - columns;
        let labels: Vec<String> = (first..inputs.pos).map(|at| at.to_string()).collect();
        let residual = AlignableRepresentationConfig::new(0, Component::BlockOutput);
        let aligned = AlignableConfig::new([residual.with_low_rank(RANK.min(self.width()))]);
        let grid = AlignmentGrid::layers(&aligned, self.model.dims().layers, &labels);
        let config = TrainingConfig::default()
            .with_epochs(EPOCHS)
            .with_batch_size(BATCH);
        let search = || {
            Ok(alignment_map(
                |aligned| AlignableModel::new_seeded(aligned, model.clone(), 0),
                &grid,
                |[_layer, column], _data| (first + column).into(),
                [&training, &held_out],
                &config,
                losses::cross_entropy,
                |_event| {},
            )?)
        };
        time_once::<B, _>(search, self.device)
    }

    /// The width of the residual stream.
    pub(crate) fn width(&self) -> usize {
        self.model.dims().d_model
    }
}
