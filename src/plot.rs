//! Pictures, as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use burn_align::methods::Grid;
use plotters::prelude::*;

/// One line of a [`line_chart`].
pub struct Line<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its points, x ascending.
    pub points: Vec<(f64, f64)>,
}

/// Draws lines over a common axis.
///
/// # Errors
/// If the file cannot be written, or no line has a point.
pub fn line_chart(
    file: &Path,
    title: &str,
    [x_label, y_label]: [&str; 2],
    lines: &[Line<'_>],
) -> Result<()> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(None, |bounds: Option<(f64, f64)>, value| {
            let (low, high) = bounds.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        })
    };
    let (x_low, x_high) = bounds(&mut points().map(|(x, _)| x)).context("nothing to draw")?;
    let (y_low, y_high) = bounds(&mut points().map(|(_, y)| y)).context("nothing to draw")?;

    let draw = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let area = SVGBackend::new(file, (720, 400)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x_low..x_high, y_low.min(0.0)..y_high)?;
        chart
            .configure_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, line) in lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            chart
                .draw_series(LineSeries::new(
                    line.points.iter().copied(),
                    color.stroke_width(2),
                ))?
                .label(line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        area.present()
    };
    draw().map_err(|error| anyhow!("{}: {error}", file.display()))
}

/// Draws a grid of numbers, darker where the number is larger.
///
/// # Errors
/// If the file cannot be written, or the grid is empty.
pub fn heat_map(
    file: &Path,
    title: &str,
    [x_label, y_label]: [&str; 2],
    grid: &Grid,
) -> Result<()> {
    let (rows, columns) = (grid.rows.len(), grid.columns.len());
    ensure!(rows > 0 && columns > 0, "nothing to draw");
    let values = || {
        grid.values
            .iter()
            .flatten()
            .copied()
            .filter(|v| v.is_finite())
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let color = |value: f64| {
        let share = if high > low {
            (value - low) / (high - low)
        } else {
            0.0
        };
        let channel = |from: f64, to: f64| (from + (to - from) * share) as u8;
        RGBColor(
            channel(247.0, 8.0),
            channel(251.0, 48.0),
            channel(255.0, 107.0),
        )
    };
    let label = |labels: &[String], at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(index) => labels.get(*index as usize).cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let draw = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let size = (160 + 48 * columns as u32, 140 + 28 * rows as u32);
        let area = SVGBackend::new(file, size).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(
                format!("{title} ({low:.3} to {high:.3})"),
                ("sans-serif", 16),
            )
            .margin(12)
            .x_label_area_size(56)
            .y_label_area_size(56)
            .build_cartesian_2d(
                (0..columns as i32 - 1).into_segmented(),
                (0..rows as i32 - 1).into_segmented(),
            )?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            .x_labels(columns)
            .y_labels(rows)
            .x_label_formatter(&|at| label(&grid.columns, at))
            .y_label_formatter(&|at| label(&grid.rows, at))
            .draw()?;
        let cells = grid.values.iter().enumerate().flat_map(|(row, values)| {
            values.iter().enumerate().map(move |(column, value)| {
                let corner = |column, row| {
                    (
                        SegmentValue::Exact(column as i32),
                        SegmentValue::Exact(row as i32),
                    )
                };
                let corners = [corner(column, row), corner(column + 1, row + 1)];
                Rectangle::new(corners, color(*value).filled())
            })
        });
        chart.draw_series(cells)?;
        area.present()
    };
    draw().map_err(|error| anyhow!("{}: {error}", file.display()))
}
