//! Faithfulness curves of circuits: as tables, as a picture, and what holds for all of them.

use std::path::Path;

use anyhow::{Result, ensure};
use burn_align::methods::circuits::{CurveArea, FaithfulnessCurve};

use crate::circuit_requests::INTERVAL;
use crate::out;
use crate::plot::{Line, line_chart};
use crate::table::{align_numbers, table};

/// Prints the faithfulness of curves over the same sizes, and their areas with bootstrap intervals.
///
/// - label: what the names of the curves are
/// - seed: of the resamples
///
/// # Errors
/// If a curve has no interval, or standard output fails.
pub fn print_curves(label: &str, curves: &[(String, &FaithfulnessCurve)], seed: u64) -> Result<()> {
    let Some((_, first)) = curves.first() else {
        return Ok(());
    };
    let sizes = first.sizes.iter();
    let sizes = sizes.map(|size| format!("{:.1} %", 100.0 * size));
    let mut faithful = table([label.to_owned()].into_iter().chain(sizes));
    let mut areas = table([label, "CMD", "95 %", "CPR", "95 %"]);
    let (share, resamples) = INTERVAL;
    for (name, curve) in curves {
        let values = curve.faithfulness().into_iter();
        let values = values.map(|value| format!("{value:.2}"));
        faithful.add_row([name.clone()].into_iter().chain(values));
        let mut row = vec![name.clone()];
        for area in [CurveArea::Cmd, CurveArea::Cpr] {
            let interval = curve.interval(area, share, resamples, seed)?;
            row.push(format!("{:.3}", curve.area(area)));
            row.push(format!("{:.3} – {:.3}", interval.low, interval.high));
        }
        areas.add_row(row);
    }
    align_numbers(&mut faithful);
    align_numbers(&mut areas);
    out!("\nFaithfulness by share of edges, counterfactual ablation\n{faithful}\n{areas}")
}

/// Draws curves over the logarithm of their sizes.
///
/// # Errors
/// As [`line_chart`].
pub fn plot_curves(
    file: &Path,
    title: &str,
    curves: &[(String, &FaithfulnessCurve)],
) -> Result<()> {
    let lines = curves.iter().map(|(name, curve)| Line {
        name,
        points: curve
            .sizes
            .iter()
            .map(|size| size.log10())
            .zip(curve.faithfulness())
            .collect(),
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let labels = ["log10 of the share of edges", "faithfulness"];
    line_chart(file, title, labels, &lines)
}

/// Checks that the circuit of all edges is the model.
///
/// # Errors
/// If the last point of a curve is not 1.
pub fn check_curves(curves: &[(String, &FaithfulnessCurve)]) -> Result<()> {
    for (name, curve) in curves {
        let last = curve.faithfulness().last().copied().unwrap_or_default();
        ensure!((last - 1.0).abs() < 1e-6, "{name}: all edges give {last}");
    }
    Ok(())
}
