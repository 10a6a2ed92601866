//! Moving vectors out of activations and back into them.
//!
//! A *cell* is the vector of one head at one position of one row. An activation
//! `[row, head, pos, width]` is a list of cells, and cells are addressed by their index in it.

use std::ops::Range;

use burn::tensor::{Bool, Tensor, backend::Backend};
use burn_align_models::Tables;
use burn_align_models::nn::{in_row_major_order, rows_by_index, with_rows_at};

use super::{Indices, Units};
use crate::interventions::Intervention;

/// Cells of one or several worlds, in the order seen by an intervention.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells {
    indices: Vec<usize>,
}

/// Cells that fill a rectangle, row by row, if all cells of an activation are written `width` to a
/// row. No list of their indices is needed on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rectangle {
    width: usize,
    rows: Range<usize>,
    cols: Range<usize>,
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
                    indices.push(cell(example, *head, position));
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

    /// Whether these are all cells of an activation, in order.
    fn are_all(&self, count: usize) -> bool {
        self.indices.iter().copied().eq(0..count)
    }

    /// The rectangle that these cells fill, of all `count` cells of an activation, if they do.
    ///
    /// For example, one position of every row, or one head of every row at adjacent positions.
    fn rectangle(&self, count: usize) -> Option<Rectangle> {
        let first = *self.indices.first()?;
        let all = self.indices.len();
        let run = self.indices.iter().zip(first..);
        let run = run.take_while(|(cell, next)| *cell == next).count();
        if run == all {
            return Some(Rectangle {
                width: 1,
                rows: first..first + all,
                cols: 0..1,
            });
        }
        // From the start of a run to that of the next one.
        let width = self.indices[run].checked_sub(first)?;
        let col = first % width.max(1);
        let fits = width > run && col + run <= width && count.is_multiple_of(width);
        if !fits || !all.is_multiple_of(run) {
            return None;
        }
        let even = (0..all).map(|index| first + index / run * width + index % run);
        let row = first / width;
        self.indices.iter().copied().eq(even).then_some(Rectangle {
            width,
            rows: row..row + all / run,
            cols: col..col + run,
        })
    }
}

/// The number of cells of an activation, and their width.
///
/// # Shapes
/// - activation: `[row, head, pos, width]`
fn cell_dims<B: Backend>(activation: &Tensor<B, 4>) -> [usize; 2] {
    let [rows, heads, pos, width] = activation.dims();
    [rows * heads * pos, width]
}

/// Takes cells out of an activation, for use at once: the result may be a view of it.
///
/// # Shapes
/// - activation: `[row, head, pos, width]`
/// - output: `[cell, width]`
pub(super) fn gather<B: Backend>(
    activation: &Tensor<B, 4>,
    cells: &Cells,
    tables: &Tables,
) -> Tensor<B, 2> {
    let [count, width] = cell_dims(activation);
    let flat = || in_row_major_order(activation.clone()).reshape([count, width]);
    if cells.are_all(count) {
        return flat();
    }
    match cells.rectangle(count) {
        Some(it) if it.width == 1 => flat().narrow(0, it.rows.start, it.rows.len()),
        Some(it) => in_row_major_order(activation.clone())
            .reshape([count / it.width, it.width, width])
            .slice([it.rows, it.cols, 0..width])
            .reshape([cells.indices.len(), width]),
        None => gather_by_index(activation, cells, tables),
    }
}

/// Takes cells out of an activation, one by one: a copy.
///
/// # Shapes
/// - activation: `[row, head, pos, width]`
/// - output: `[cell, width]`
pub(super) fn gather_by_index<B: Backend>(
    activation: &Tensor<B, 4>,
    cells: &Cells,
    tables: &Tables,
) -> Tensor<B, 2> {
    let flat = in_row_major_order(activation.clone());
    let flat = flat.reshape(cell_dims(activation)); // [cell, width]
    rows_by_index(flat, cells.indices.clone(), tables)
}

/// Takes cells out of an activation. What is left of it can be freed, unless they are half of it or
/// more.
///
/// # Shapes
/// - activation: `[row, head, pos, width]`
/// - output: `[cell, width]`
pub(super) fn gather_to_keep<B: Backend>(
    activation: &Tensor<B, 4>,
    cells: &Cells,
    tables: &Tables,
) -> Tensor<B, 2> {
    let [count, _width] = cell_dims(activation);
    match 2 * cells.indices.len() >= count {
        true => gather(activation, cells, tables),
        false => gather_by_index(activation, cells, tables),
    }
}

/// Puts values into cells of an activation. The values are copied exactly.
///
/// Cells in a rectangle are written in place, if the activation is not used elsewhere.
///
/// # Shapes
/// - activation, output: `[row, head, pos, width]`
/// - values: `[cell, width]`
pub(super) fn scatter<B: Backend>(
    activation: Tensor<B, 4>,
    cells: &Cells,
    values: Tensor<B, 2>,
    tables: &Tables,
) -> Tensor<B, 4> {
    let shape = activation.dims();
    let [count, width] = cell_dims(&activation);
    if cells.are_all(count) {
        return values.reshape(shape);
    }
    if let Some(it) = cells.rectangle(count) {
        let values = values.reshape([it.rows.len(), it.cols.len(), width]);
        return activation
            .reshape([count / it.width, it.width, width])
            .slice_assign([it.rows, it.cols, 0..width], values)
            .reshape(shape);
    }
    scatter_by_index(activation, cells, values, tables)
}

/// [`scatter`], one cell after another.
pub(super) fn scatter_by_index<B: Backend>(
    activation: Tensor<B, 4>,
    cells: &Cells,
    values: Tensor<B, 2>,
    tables: &Tables,
) -> Tensor<B, 4> {
    let (shape, flat) = (activation.dims(), cell_dims(&activation));
    let flat = activation.reshape(flat); // [cell, width]
    with_rows_at(flat, &cells.indices, values, tables).reshape(shape)
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
    tables: &Tables,
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
    let mut others = mask.chunks(count).skip(1);
    match others.all(|other| *other == mask[..count]) {
        true => {
            mask.truncate(count);
            let one = tables.choices::<B>(mask, device).reshape([1, 1, count]);
            one.expand([rows, 1, count])
        }
        false => tables.choices::<B>(mask, device).reshape([rows, 1, count]),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;
    use burn::tensor::Int;

    use super::*;

    fn rectangle(indices: &[usize], count: usize) -> Option<(usize, Range<usize>, Range<usize>)> {
        let indices = indices.to_vec();
        let found = Cells { indices }.rectangle(count)?;
        Some((found.width, found.rows, found.cols))
    }

    #[test]
    fn evenly_spaced_cells_are_a_rectangle() {
        assert_eq!(rectangle(&[4, 5, 6], 12), Some((1, 4..7, 0..1)));
        // Position 1 of four rows of 3.
        assert_eq!(rectangle(&[1, 4, 7, 10], 12), Some((3, 0..4, 1..2)));
        // Positions 2 and 3 of the last two of three rows of 4.
        assert_eq!(rectangle(&[6, 7, 10, 11], 12), Some((4, 1..3, 2..4)));
        for cells in [
            vec![],
            vec![5, 4],           // not in order
            vec![1, 1],           // the same cell twice
            vec![4, 5, 4],        // the second run begins within the first
            vec![0, 3, 5],        // not even
            vec![0, 5, 10],       // rows that do not divide the cells
            vec![3, 4, 7, 8],     // runs that go on in the next row
            vec![2, 3, 6, 7, 10], // runs of different lengths
        ] {
            assert_eq!(rectangle(&cells, 12), None, "{cells:?}");
        }
    }

    /// Cells of two rows with two heads, three positions and vectors of 2.
    #[test]
    fn cells_are_taken_and_put_by_index() {
        let (tables, shape) = (Tables::new(), [2_usize, 2, 3, 2]);
        let activation = Tensor::<Flex, 1, Int>::arange(0..24, &FlexDevice)
            .float()
            .reshape(shape);
        for indices in [
            (0..12).collect::<Vec<usize>>(),
            (2..7).collect(),
            vec![1, 4, 7, 10],
            vec![1, 2, 7, 8],
            vec![11, 0, 5],
            vec![3, 3],
        ] {
            let cells = Cells { indices };
            let expected = cells
                .indices
                .iter()
                .flat_map(|cell| [2 * cell, 2 * cell + 1]);
            let expected: Vec<f32> = expected.map(|value| value as f32).collect();
            for taken in [
                gather(&activation, &cells, &tables),
                gather_to_keep(&activation, &cells, &tables),
                gather_by_index(&activation, &cells, &tables),
            ] {
                assert_eq!(taken.dims(), [cells.indices.len(), 2]);
                assert_eq!(taken.into_data().to_vec::<f32>().expect("f32"), expected);
            }
            let values = (0..expected.len()).map(|value| -1.0 - value as f32);
            let values: Vec<f32> = values.collect();
            let mut whole: Vec<f32> = (0..24).map(|value| value as f32).collect();
            for (cell, new) in cells.indices.iter().zip(values.chunks(2)) {
                whole[2 * cell..2 * cell + 2].copy_from_slice(new);
            }
            let values = Tensor::<Flex, 1>::from_floats(&values[..], &FlexDevice);
            let values = values.reshape([cells.indices.len(), 2]);
            for put in [
                scatter(activation.clone(), &cells, values.clone(), &tables),
                scatter_by_index(activation.clone(), &cells, values, &tables),
            ] {
                assert_eq!(put.dims(), shape);
                assert_eq!(put.into_data().to_vec::<f32>().expect("f32"), whole);
            }
        }
    }

    #[test]
    fn a_mask_has_a_row_for_each_example() {
        let tables = Tables::new();
        let same = Indices::Same(vec![1]);
        let each = Indices::Each(vec![vec![0], vec![1, 2]]);
        let rows = |edits: &[(&Indices, usize)]| {
            let mask = feature_mask::<Flex>(edits.iter().copied(), 3, &tables, &FlexDevice);
            let shape = mask.dims();
            (shape, mask.into_data().iter().collect::<Vec<bool>>())
        };
        let one = [false, true, false];
        assert_eq!(rows(&[(&same, 1), (&same, 1)]), ([2, 1, 3], one.repeat(2)));
        let both = [[true, false, false], [false, true, true]].concat();
        assert_eq!(rows(&[(&each, 2)]), ([2, 1, 3], both));
    }
}
