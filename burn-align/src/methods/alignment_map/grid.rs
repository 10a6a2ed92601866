//! The cells of an alignment map, and what is found in them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::front::AlignableConfig;
use crate::methods::Grid;
use crate::methods::sweep::numbers;
use crate::training::Controlled;

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
        let rows = rows.map(|(layer, label)| (label, in_layer(aligned, layer)));
        Self {
            rows: rows.collect(),
            columns: columns.to_vec(),
        }
    }

    /// The same representations in each of these layers, as low-rank rotations of each of these
    /// ranks: all layers of the first rank, then those of the next. What does not depend on the
    /// rank is computed once for all of them.
    pub fn layers_and_ranks(
        aligned: &AlignableConfig,
        layers: usize,
        ranks: &[usize],
        columns: &[String],
    ) -> Self {
        let rows = ranks.iter().flat_map(|rank| {
            (0..layers).map(move |layer| {
                let mut aligned = in_layer(aligned, layer);
                let representations = aligned.representations.into_iter();
                let representations = representations.map(|it| it.with_low_rank(*rank));
                aligned.representations = representations.collect();
                (format!("{layer}, rank {rank}"), aligned)
            })
        });
        Self {
            rows: rows.collect(),
            columns: columns.to_vec(),
        }
    }
}

fn in_layer(aligned: &AlignableConfig, layer: usize) -> AlignableConfig {
    let mut aligned = aligned.clone();
    for representation in &mut aligned.representations {
        representation.layer = layer;
    }
    aligned
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

    /// Some consecutive rows, such as those of one rank; none if there are no such rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        Self {
            rows: self.rows.get(rows.clone()).unwrap_or_default().to_vec(),
            columns: self.columns.clone(),
            cells: self.cells.get(rows).unwrap_or_default().to_vec(),
        }
    }

    /// The cell with the highest accuracy: its row, its column and its result.
    pub fn best(&self) -> Option<(usize, usize, &Controlled)> {
        let (row, column, _) = self.grid(|cell| cell.trained.accuracy).max()?;
        Some((row, column, &self.cells[row][column]))
    }
}
