//! The history of a training run as a picture.

use std::path::Path;

use anyhow::{Context, Result};
use burn_align::training::History;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Drawn, FONT, LABEL, LEGEND, LEGEND_MARGIN, MARGIN, Picture, TICK, save};

/// Writes the course of training, in the format of the file's extension: as a picture (`.svg`,
/// `.png`), with loss and accuracy over steps, or as numbers (`.csv`, `.json`).
///
/// # Errors
/// If the file has a different extension or cannot be written, or no step has been made.
pub fn write_history(file: &Path, title: &str, history: &History) -> Result<()> {
    let extension = file
        .extension()
        .map(|it| it.to_string_lossy().to_ascii_lowercase());
    let text = match extension.as_deref() {
        Some("csv") => history.to_csv(),
        Some("json") => history.to_json(),
        _ => return save(file, &HistoryChart::new(title, history)?),
    };
    crate::files::write(file, text)
}

/// Maximum number of points in the loss curve; with more steps, neighbours are averaged.
const MOST_POINTS: usize = 240;

/// Loss, with its axis on the left, and accuracy, with its axis on the right.
struct HistoryChart<'a> {
    title: &'a str,
    loss: Vec<(f64, f64)>,
    accuracy: Vec<(f64, f64)>,
}

impl<'a> HistoryChart<'a> {
    fn new(title: &'a str, history: &History) -> Result<Self> {
        let width = history.steps.len().div_ceil(MOST_POINTS).max(1);
        let loss = history.steps.chunks(width).map(|steps| {
            let sum: f64 = steps.iter().map(|it| it.loss).sum();
            (steps[steps.len() - 1].step as f64, sum / steps.len() as f64)
        });
        let loss: Vec<_> = loss.collect();
        let accuracy = history.epochs.iter().filter_map(|epoch| {
            let mut steps = history.steps.iter().rev();
            let last = steps.find(|step| step.epoch == epoch.epoch)?;
            Some((last.step as f64, epoch.held_out?.accuracy))
        });
        let accuracy = accuracy.collect();
        loss.first()
            .context("nothing to draw: no step has been made")?;
        Ok(Self {
            title,
            loss,
            accuracy,
        })
    }
}

impl Picture for HistoryChart<'_> {
    fn size(&self) -> (u32, u32) {
        (720, 400)
    }

    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D> {
        let last = self.loss.last().map_or(0.0, |(step, _)| *step).max(1.0);
        let highest = self
            .loss
            .iter()
            .map(|(_, loss)| *loss)
            .fold(f64::MIN_POSITIVE, f64::max);
        let lowest = self.loss.iter().map(|(_, loss)| *loss).fold(0.0, f64::min);
        area.fill(&WHITE)?;
        let right = if self.accuracy.is_empty() {
            0
        } else {
            56 * scale
        };
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 20 * scale))
            .margin(MARGIN * scale)
            .x_label_area_size(40 * scale)
            .y_label_area_size(56 * scale)
            .right_y_label_area_size(right)
            .build_cartesian_2d(0.0..last, lowest..highest)?
            .set_secondary_coord(0.0..last, 0.0..1.0);
        chart
            .configure_mesh()
            .x_desc("step")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_desc("loss")
            .label_style((FONT, LABEL * scale))
            .axis_style(BLACK.stroke_width(scale))
            .set_all_tick_mark_size(TICK * scale)
            .bold_line_style(BLACK.mix(0.2).stroke_width(scale))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let [loss, accuracy] = [0, 1].map(|index| Palette99::pick(index).to_rgba());
        // Wider lines have spikes where they turn.
        let width = scale;
        let sample = move |color: RGBAColor| {
            let length = 16 * scale as i32;
            move |(x, y)| PathElement::new([(x, y), (x + length, y)], color.stroke_width(width))
        };
        let line = LineSeries::new(self.loss.iter().copied(), loss.stroke_width(width));
        chart.draw_series(line)?.label("loss").legend(sample(loss));
        if !self.accuracy.is_empty() {
            chart
                .configure_secondary_axes()
                .y_desc("interchange intervention accuracy")
                .label_style((FONT, LABEL * scale))
                .axis_style(BLACK.stroke_width(scale))
                .set_all_tick_mark_size(TICK * scale)
                .draw()?;
            let points = self.accuracy.iter().copied();
            let line = LineSeries::new(points, accuracy.stroke_width(width));
            let line = line.point_size(3 * scale);
            chart
                .draw_secondary_series(line)?
                .label("accuracy")
                .legend(sample(accuracy));
        }
        chart
            .configure_series_labels()
            .label_font((FONT, LABEL * scale))
            .legend_area_size(LEGEND * scale)
            .margin(LEGEND_MARGIN * scale)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        Ok(())
    }
}
