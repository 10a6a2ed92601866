//! Pictures, as SVG or PNG, by the extension of the file.
//!
//! A PNG uses a bundled font with Latin, Greek and Cyrillic letters; others are drawn as boxes. In
//! an SVG, fonts are left to the viewer.

mod diagram;
mod heat_map;
mod history;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, anyhow, bail, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

pub use diagram::{diagram_file, write_diagram};
pub use heat_map::{heat_map, heat_maps};
pub use history::write_history;

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
/// If the file is neither `.svg` nor `.png`, cannot be written, or no line has a point.
pub fn line_chart(file: &Path, title: &str, labels: [&str; 2], lines: &[Line<'_>]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(None, |bounds: Option<(f64, f64)>, value| {
            let (low, high) = bounds.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        })
    };
    let x = bounds(&mut points().map(|(x, _)| x)).context("nothing to draw")?;
    let y = bounds(&mut points().map(|(_, y)| y)).context("nothing to draw")?;
    let chart = LineChart {
        title,
        labels,
        lines,
        bounds: [x, y],
    };
    save(file, &chart)
}

/// Reads the name of a picture from the command line, for clap's `value_parser`.
///
/// # Errors
/// If it ends neither with `.svg` nor with `.png`.
pub fn picture_file(name: &str) -> Result<PathBuf> {
    let file = PathBuf::from(name);
    Format::of(&file)?;
    Ok(file)
}

/// The format of a picture.
#[derive(Clone, Copy)]
enum Format {
    Svg,
    Png,
}

impl Format {
    /// The format of a file, by its extension.
    fn of(file: &Path) -> Result<Self> {
        let extension = file.extension().and_then(OsStr::to_str);
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => bail!("expected the name of a picture, .svg or .png"),
        }
    }
}

/// A picture that can be drawn with any of the backends of plotters.
trait Picture {
    /// Width and height.
    fn size(&self) -> (u32, u32);

    /// Draws it with this many pixels for each unit of length.
    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D>;
}

type Drawn<D> = Result<(), DrawingAreaErrorKind<<D as DrawingBackend>::ErrorType>>;

/// Draws a picture in memory, then writes it.
fn save(file: &Path, picture: &impl Picture) -> Result<()> {
    register_fonts();
    let drawn = Format::of(file).and_then(|format| match format {
        Format::Svg => svg(picture),
        Format::Png => png(picture),
    });
    crate::files::write(file, drawn.with_context(|| file.display().to_string())?)
}

fn svg(picture: &impl Picture) -> Result<Vec<u8>> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, picture.size()).into_drawing_area();
    drawn(picture.draw(&area, 1).and_then(|()| area.present()))?;
    drop(area);
    Ok(text.into_bytes())
}

fn png(picture: &impl Picture) -> Result<Vec<u8>> {
    /// So that text is sharp.
    const SCALE: u32 = 2;
    /// 768 MiB in memory.
    const MOST_PIXELS: u64 = 1 << 28;
    let (width, height) = picture.size();
    let (width, height) = (width.saturating_mul(SCALE), height.saturating_mul(SCALE));
    let pixels = u64::from(width) * u64::from(height);
    ensure!(
        pixels <= MOST_PIXELS,
        "{width} × {height} pixels are too many for a PNG: write an SVG"
    );
    let mut rgb = vec![0; 3 * pixels as usize];
    let area = BitMapBackend::with_buffer(&mut rgb, (width, height)).into_drawing_area();
    drawn(picture.draw(&area, SCALE).and_then(|()| area.present()))?;
    drop(area);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&rgb)?;
    Ok(bytes)
}

/// The error of a drawing without the type of its backend.
fn drawn<E: std::error::Error + Send + Sync>(
    result: Result<(), DrawingAreaErrorKind<E>>,
) -> Result<()> {
    result.map_err(|error| anyhow!("{error}"))
}

/// The font of all text. plotters uses it to measure text, and to draw it in bitmaps; an SVG asks
/// the viewer for any sans-serif.
const FONT: &str = "sans-serif";

// Sizes as in plotters.
const MARGIN: u32 = 12;
const LABEL: u32 = 12;
const TICK: u32 = 5;
const LEGEND: u32 = 30;
const LEGEND_MARGIN: u32 = 10;

/// Registers the font with plotters, once per program.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        let registered = register_font(FONT, FontStyle::Normal, font);
        assert!(registered.is_ok(), "the bundled font is valid");
    });
}

struct LineChart<'a> {
    title: &'a str,
    labels: [&'a str; 2],
    lines: &'a [Line<'a>],
    /// Smallest and largest x and y.
    bounds: [(f64, f64); 2],
}

impl Picture for LineChart<'_> {
    fn size(&self) -> (u32, u32) {
        (720, 400)
    }

    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D> {
        let [x_label, y_label] = self.labels;
        let [(x_low, x_high), (y_low, y_high)] = self.bounds;
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 20 * scale))
            .margin(MARGIN * scale)
            .x_label_area_size(40 * scale)
            .y_label_area_size(56 * scale)
            .build_cartesian_2d(x_low..x_high, y_low.min(0.0)..y_high)?;
        chart
            .configure_mesh()
            .x_desc(x_label)
            .y_desc(y_label)
            // As short as possible, without the rounding errors of steps of a tenth.
            .x_label_formatter(&|x| ((x * 1e6).round() / 1e6).to_string())
            .label_style((FONT, LABEL * scale))
            .axis_style(BLACK.stroke_width(scale))
            .set_all_tick_mark_size(TICK * scale)
            .bold_line_style(BLACK.mix(0.2).stroke_width(scale))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, line) in self.lines.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let length = 16 * scale as i32;
            chart
                .draw_series(LineSeries::new(
                    line.points.iter().copied(),
                    color.stroke_width(2 * scale),
                ))?
                .label(line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + length, y)], color.stroke_width(2 * scale))
                });
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
