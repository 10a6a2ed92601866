//! Moving vectors out of activations and back into them.
//!
//! A *cell* is the vector of one head at one position of one row. An activation
//! `[row, head, pos, width]` is a list of cells, and cells are addressed by their index in it.

use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

use super::{Indices, Units};
use crate::interventions::Intervention;

/// Cells of one or several worlds, in the order seen by an intervention.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells {
    indices: Vec<i64>,
}

impl Cells {
    /// The cells of some units of a world.
    ///
    /// - `[pos, heads]`: the world's own number of positions, and the activation's number of heads
    /// - `cell`: the index of the vector of a head at a position of an example
    pub(super) fn of_units(
        units: &Units,
        batch: usize,
        [pos, heads]: [usize; 2],
        cell: impl Fn(usize, usize, usize) -> usize,
    ) -> Self {
        let mut indices = Vec::new();
        for example in 0..batch {
            let chosen = units.heads.of(example, heads);
            for position in units.positions.of(example, pos) {
                for head in &chosen {
                    indices.push(cell(example, *head, position) as i64);
                }
            }
        }
        Self { indices }
    }

    /// The same cells, with more after them.
    pub(super) fn append(&mut self, mut other: Self) {
        self.indices.append(&mut other.indices);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 1, Int> {
        let data = TensorData::new(self.indices.clone(), [self.indices.len()]);
        Tensor::from_data(data, device)
    }

    /// Whether these are all cells of an activation, in order.
    fn are_all(&self, count: usize) -> bool {
        self.indices.len() == count && self.indices.iter().zip(0..).all(|(a, b)| *a == b)
    }
}

/// Takes cells out of an activation.
///
/// # Shapes
/// - activation: `[row, head, pos, width]`
/// - output: `[cell, width]`
pub(super) fn gather<B: Backend>(activation: &Tensor<B, 4>, cells: &Cells) -> Tensor<B, 2> {
    let [rows, heads, pos, width] = activation.dims();
    let count = rows * heads * pos;
    let flat = activation.clone().reshape([count, width]);
    if cells.are_all(count) {
        return flat;
    }
    let device = flat.device();
    flat.select(0, cells.to_tensor(&device))
}

/// Puts values into cells of an activation. The values are copied exactly.
///
/// # Shapes
/// - activation, output: `[row, head, pos, width]`
/// - values: `[cell, width]`
pub(super) fn scatter<B: Backend>(
    activation: Tensor<B, 4>,
    cells: &Cells,
    values: Tensor<B, 2>,
) -> Tensor<B, 4> {
    let shape = activation.dims();
    let [rows, heads, pos, width] = shape;
    let count = rows * heads * pos;
    if cells.are_all(count) {
        return values.reshape(shape);
    }
    // Each cell is taken from its old index, or from the new values, which follow the old ones.
    let mut sources: Vec<i64> = (0..count as i64).collect();
    for (place, source) in cells.indices.iter().zip(count as i64..) {
        sources[*place as usize] = source;
    }
    let device = values.device();
    let sources = Tensor::<B, 1, Int>::from_data(TensorData::new(sources, [count]), &device);
    Tensor::cat(vec![activation.reshape([count, width]), values], 0)
        .select(0, sources)
        .reshape(shape)
}

/// The number of features that subspaces are made of.
pub(super) fn feature_count<B: Backend, I: Intervention<B>>(
    intervention: &I,
    units: usize,
    d_site: usize,
) -> usize {
    let count = intervention.features(units, d_site);
    count.expect("checked when the plan was validated")
}

/// Which features to change: `[batch, 1, feature]`.
///
/// For several stacked edits, each with its features and its number of examples.
pub(super) fn feature_mask<'a, B: Backend>(
    edits: impl Iterator<Item = (&'a Indices, usize)>,
    count: usize,
    device: &B::Device,
) -> Tensor<B, 3, Bool> {
    let mut mask = Vec::new();
    for (features, batch) in edits {
        for example in 0..batch {
            let start = mask.len();
            mask.resize(start + count, false);
            for feature in features.of(example, count) {
                mask[start + feature] = true;
            }
        }
    }
    let rows = mask.len() / count;
    Tensor::from_data(TensorData::new(mask, [rows, 1, count]), device)
}
