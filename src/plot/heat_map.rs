//! Grids of numbers as heat maps.

use std::path::Path;

use anyhow::{Context, Result};
use burn_align::methods::Grid;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::scale::Scale;

use super::{Drawn, FONT, LABEL, MARGIN, Picture, TICK, save};

/// Draws a grid of numbers, darker where the number is larger, the first row on top as in a table.
/// If some are negative, 0 is white, and both ends are dark: blue above it, red below. The numbers
/// are written in their cells, if they fit and are not too many.
///
/// # Errors
/// If the file is neither `.svg` nor `.png`, cannot be written, or the grid has no numbers.
pub fn heat_map(file: &Path, title: &str, labels: [&str; 2], grid: &Grid) -> Result<()> {
    heat_maps(file, labels, &[(title, grid)])
}

/// Draws grids of numbers with their titles side by side, on a shared colour scale.
///
/// # Errors
/// As [`heat_map`], if any of the grids has no numbers.
pub fn heat_maps(file: &Path, labels: [&str; 2], grids: &[(&str, &Grid)]) -> Result<()> {
    let ranges: Option<Vec<(f64, f64)>> = grids
        .iter()
        .map(|(_, grid)| {
            let is_empty = grid.rows.is_empty() || grid.columns.is_empty();
            grid.range().filter(|_| !is_empty)
        })
        .collect();
    let ranges = ranges.context("nothing to draw")?;
    let scale = ranges
        .iter()
        .copied()
        .reduce(|(low, high), (l, h)| (low.min(l), high.max(h)))
        .context("nothing to draw")?;
    let maps = grids
        .iter()
        .zip(ranges)
        .map(|((title, grid), range)| HeatMap {
            title,
            labels,
            grid,
            range,
            scale: Scale::new(scale),
        });
    save(file, &HeatMaps(maps.collect()))
}

struct HeatMap<'a> {
    title: &'a str,
    labels: [&'a str; 2],
    grid: &'a Grid,
    /// Smallest and largest value.
    range: (f64, f64),
    /// The scale, shared by all maps of a picture.
    scale: Scale,
}

/// Heat maps side by side.
struct HeatMaps<'a>(Vec<HeatMap<'a>>);

impl Picture for HeatMaps<'_> {
    fn size(&self) -> (u32, u32) {
        let sizes = self.0.iter().map(HeatMap::size);
        sizes.fold((0, 0), |(width, height), (w, h)| (width + w, height.max(h)))
    }

    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D> {
        area.fill(&WHITE)?;
        let mut rest = area.clone();
        for map in &self.0 {
            let (width, height) = map.size();
            let (column, after) = rest.split_horizontally(width * scale);
            let (column, _below) = column.split_vertically(height * scale);
            map.draw(&column, scale)?;
            rest = after;
        }
        Ok(())
    }
}

impl HeatMap<'_> {
    const CAPTION: u32 = 16;
    /// Minimum width and height of a cell.
    const CELL: (u32, u32) = (48, 28);
    /// Height of the area below the cells.
    const AXIS_HEIGHT: u32 = 40;

    fn caption(&self) -> String {
        let [low, high] = [self.range.0, self.range.1].map(Self::number);
        format!("{} ({low} to {high})", self.title)
    }

    /// Width of the area left of the cells: row labels and the name of the axis.
    fn axis_width(&self) -> u32 {
        let labels = self.grid.rows.iter().map(|label| width_of(label, LABEL));
        2 * LABEL + 2 * TICK + labels.max().unwrap_or_default()
    }

    fn color(&self, value: f64) -> RGBColor {
        /// ColorBrewer's Blues and Reds, from the first shade to the last.
        const BLUES: [[f64; 3]; 2] = [[247.0, 251.0, 255.0], [8.0, 48.0, 107.0]];
        const REDS: [[f64; 3]; 2] = [[255.0, 245.0, 240.0], [103.0, 0.0, 13.0]];
        const NO_NUMBER: RGBColor = RGBColor(200, 200, 200);
        if value.is_nan() {
            return NO_NUMBER;
        }
        let shade = self.scale.shade(value);
        let [mut from, to] = if shade < 0.0 { REDS } else { BLUES };
        if matches!(self.scale, Scale::Around0 { .. }) {
            from = [255.0; 3];
        }
        let channel = |index: usize| (from[index] + (to[index] - from[index]) * shade.abs()) as u8;
        RGBColor(channel(0), channel(1), channel(2))
    }

    /// Three decimals, without negative zero.
    fn number(value: f64) -> String {
        let text = format!("{value:.3}");
        let is_zero = text == "-0.000";
        if is_zero { "0.000".to_owned() } else { text }
    }

    /// Whether there is room for numbers in the cells.
    fn has_numbers(&self) -> bool {
        /// So that the picture of a large model stays small.
        const MOST_CELLS: usize = 512;
        let fits = |value: &f64| width_of(&Self::number(*value), LABEL) + 2 <= Self::CELL.0;
        let mut values = self.grid.values.iter().flatten();
        self.grid.rows.len() * self.grid.columns.len() <= MOST_CELLS && values.all(fits)
    }
}

impl Picture for HeatMap<'_> {
    fn size(&self) -> (u32, u32) {
        let (rows, columns) = (self.grid.rows.len(), self.grid.columns.len());
        let (cell_width, cell_height) = Self::CELL;
        let width = self.axis_width() + cell_width * columns as u32;
        let height = 2 * Self::CAPTION + cell_height * rows as u32 + Self::AXIS_HEIGHT;
        let caption = width_of(&self.caption(), Self::CAPTION);
        (width.max(caption) + 2 * MARGIN, height + 2 * MARGIN)
    }

    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D> {
        let (grid, [x_label, y_label]) = (self.grid, self.labels);
        let (rows, columns) = (grid.rows.len(), grid.columns.len());
        // The axis goes upwards.
        let height_of = |row: usize| rows - 1 - row;
        let index = |at: &SegmentValue<i32>| match at {
            SegmentValue::CenterOf(index) => usize::try_from(*index).ok(),
            _ => None,
        };
        let column_label = |at: &SegmentValue<i32>| {
            let column = index(at).and_then(|column| grid.columns.get(column));
            column.cloned().unwrap_or_default()
        };
        let row_label = |at: &SegmentValue<i32>| {
            let row = index(at).filter(|height| *height < rows).map(height_of);
            row.map(|row| grid.rows[row].clone()).unwrap_or_default()
        };
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(self.caption(), (FONT, Self::CAPTION * scale))
            .margin(MARGIN * scale)
            .x_label_area_size(Self::AXIS_HEIGHT * scale)
            .y_label_area_size(self.axis_width() * scale)
            .build_cartesian_2d(
                (0..columns as i32 - 1).into_segmented(),
                (0..rows as i32 - 1).into_segmented(),
            )?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            .label_style((FONT, LABEL * scale))
            .axis_style(BLACK.stroke_width(scale))
            .set_all_tick_mark_size(TICK * scale)
            .x_labels(columns)
            .y_labels(rows)
            .x_label_formatter(&column_label)
            .y_label_formatter(&row_label)
            .draw()?;
        let cells = || {
            let rows = grid.values.iter().enumerate();
            rows.flat_map(|(row, values)| {
                let columns = values.iter().enumerate();
                columns.map(move |(column, value)| (column as i32, height_of(row) as i32, *value))
            })
        };
        chart.draw_series(cells().map(|(x, y, value)| {
            let corner = |x, y| (SegmentValue::Exact(x), SegmentValue::Exact(y));
            let corners = [corner(x, y), corner(x + 1, y + 1)];
            Rectangle::new(corners, self.color(value).filled())
        }))?;
        if self.has_numbers() {
            let centre = Pos::new(HPos::Center, VPos::Center);
            chart.draw_series(cells().map(|(x, y, value)| {
                let color = if self.scale.shade(value).abs() < 0.5 {
                    BLACK
                } else {
                    WHITE
                };
                let style = (FONT, LABEL * scale).into_font().color(&color).pos(centre);
                let at = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
                Text::new(Self::number(value), at, style)
            }))?;
        }
        Ok(())
    }
}

/// Width of a text. Text that cannot be measured cannot be drawn either, which is reported there.
fn width_of(text: &str, size: u32) -> u32 {
    let (width, _height) = (FONT, size).into_font().box_size(text).unwrap_or_default();
    width
}
