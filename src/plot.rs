//! Pictures, as SVG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
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
