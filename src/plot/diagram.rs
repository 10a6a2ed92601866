//! Graphs as pictures: layout by `rust-sugiyama`, drawing by `plotters`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use burn_align::diagram::{Diagram, DiagramNode, DiagramShape};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use rust_sugiyama::configure::Config;
use rust_sugiyama::from_vertices_and_edges;

use super::{Drawn, FONT, Format, LABEL, MARGIN, Picture, register_fonts, save};

/// Writes a graph, by the extension of the file: as a picture (`.svg`, `.png`), or in Graphviz's
/// language (`.dot`).
///
/// # Errors
/// If the file has a different extension or cannot be written, or there is no node.
pub fn write_diagram(file: &Path, diagram: &Diagram) -> Result<()> {
    if is_dot(file) {
        return crate::files::write(file, diagram.to_dot());
    }
    ensure!(!diagram.nodes.is_empty(), "nothing to draw");
    register_fonts();
    save(file, &Layout::new(diagram))
}

/// Reads the name of a file for [`write_diagram`] from the command line, for clap's
/// `value_parser`.
///
/// # Errors
/// If it does not end with `.svg`, `.png` or `.dot`.
pub fn diagram_file(name: &str) -> Result<PathBuf> {
    let file = PathBuf::from(name);
    if !is_dot(&file) && Format::of(&file).is_err() {
        bail!("expected the name of a picture of a graph, .svg, .png or .dot");
    }
    Ok(file)
}

fn is_dot(file: &Path) -> bool {
    let extension = file.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("dot"))
}

/// Height of a line of text.
const LINE: f64 = 15.0;
/// Space between a text and its outline.
const PADDING: f64 = 7.0;
/// How much larger an ellipse is than its text; √2 would fit text that fills its rectangle.
const ELLIPSE: f64 = 1.35;
/// Space between nodes one above the other, and between parts that no arrow connects.
const APART: f64 = 12.0;
/// Space between the two outlines of an output.
const OUTLINES: f64 = 4.0;
/// Minimum and maximum space for arrows between two columns.
const GAP: (f64, f64) = (56.0, 280.0);
/// Size of an arrowhead.
const HEAD: (f64, f64) = (8.0, 3.5);

/// The positions of everything. Nodes are in columns, as far right as the arrows allow; where
/// arrows pass a column, they take up a position there, like nodes. The order and the heights are
/// found by the method of Sugiyama, Tagawa and Toda (1981), with coordinates by Brandes and Köpf
/// (2001).
struct Layout<'a> {
    size: (f64, f64),
    nodes: Vec<(&'a DiagramNode, Spot)>,
    arrows: Vec<Way>,
}

/// Center and size.
#[derive(Clone, Copy, Debug, Default)]
struct Spot {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Spot {
    fn left(self) -> f64 {
        self.x - self.width / 2.0
    }

    fn right(self) -> f64 {
        self.x + self.width / 2.0
    }
}

/// An arrow.
struct Way {
    points: Vec<(f64, f64)>,
    label: Option<(String, (f64, f64))>,
    is_bold: bool,
}

/// Arrows between the same two nodes, which are drawn as one.
struct Bundle {
    labels: Vec<String>,
    is_bold: bool,
    /// What it connects, with its positions in the columns between, as indices of spots.
    spots: Vec<usize>,
}

impl<'a> Layout<'a> {
    fn new(diagram: &'a Diagram) -> Self {
        let mut spots: Vec<Spot> = diagram.nodes.iter().map(outline).collect();
        let mut bundles = bundles(diagram);
        let ends = bundles
            .iter()
            .map(|bundle| (bundle.spots[0], bundle.spots[1]));
        let mut columns = columns(spots.len(), &ends.collect::<Vec<_>>());
        for bundle in &mut bundles {
            let (from, to) = (bundle.spots[0], bundle.spots[1]);
            for column in (columns[to] + 1..columns[from]).rev() {
                bundle.spots.insert(bundle.spots.len() - 1, spots.len());
                spots.push(Spot::default());
                columns.push(column);
            }
        }
        // An arrow that closes a cycle is drawn where the others leave its nodes.
        let steps = bundles.iter().flat_map(|bundle| bundle.spots.windows(2));
        let steps: Vec<(usize, usize)> = steps
            .map(|step| (step[0], step[1]))
            .filter(|(from, to)| columns[*from] == columns[*to] + 1)
            .collect();
        let height = place_vertically(&mut spots, &steps);
        let (width, edges) = place_horizontally(&mut spots, &columns, &steps);
        let arrows = bundles.into_iter();
        let arrows = arrows.map(|bundle| bundle.way(&spots, &columns, &edges));
        Self {
            size: (width, height),
            arrows: arrows.collect(),
            nodes: diagram.nodes.iter().zip(spots).collect(),
        }
    }
}

/// The size of a node.
fn outline(node: &DiagramNode) -> Spot {
    let font = (FONT, LABEL).into_font();
    let lines = lines(&node.label);
    let widths = lines.iter().map(|line| {
        // Text that cannot be measured cannot be drawn either, which is reported there.
        let (width, _height) = font.box_size(line).unwrap_or_default();
        f64::from(width)
    });
    let factor = match node.shape {
        DiagramShape::Box => 1.0,
        DiagramShape::Ellipse => ELLIPSE,
    };
    let more = 2.0 * PADDING + if node.is_output { 2.0 * OUTLINES } else { 0.0 };
    Spot {
        width: factor * widths.fold(0.0, f64::max) + more,
        height: factor * LINE * lines.len() as f64 + more,
        ..Spot::default()
    }
}

/// The lines of a text. Control characters are not allowed in XML.
fn lines(text: &str) -> Vec<String> {
    let lines = text.split('\n').map(|line| {
        let shown = line.chars();
        shown
            .map(|c| if c.is_control() { '\u{FFFD}' } else { c })
            .collect()
    });
    lines.collect()
}

/// One for each pair of nodes with arrows; none from a node to itself.
fn bundles(diagram: &Diagram) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    let mut known: HashMap<(usize, usize), usize> = HashMap::new();
    for arrow in diagram.arrows.iter().filter(|arrow| arrow.from != arrow.to) {
        let ends = (arrow.from, arrow.to);
        let index = *known.entry(ends).or_insert(bundles.len());
        if index == bundles.len() {
            bundles.push(Bundle {
                labels: Vec::new(),
                is_bold: false,
                spots: vec![arrow.from, arrow.to],
            });
        }
        let bundle = &mut bundles[index];
        bundle.labels.extend(arrow.label.iter().cloned());
        bundle.is_bold |= arrow.is_bold;
    }
    bundles
}

/// The column of each node, from the right: the longest path to a node that nothing reads. Arrows
/// that close a cycle do not count; only graphs that cannot be run have any.
fn columns(nodes: usize, arrows: &[(usize, usize)]) -> Vec<usize> {
    let mut readers = vec![Vec::new(); nodes];
    for &(from, to) in arrows {
        readers[from].push(to);
    }
    let mut columns = vec![Column::Unknown; nodes];
    let columns = (0..nodes).map(|node| column(node, &readers, &mut columns).unwrap_or(0));
    columns.collect()
}

#[derive(Clone, Copy)]
enum Column {
    Unknown,
    /// On the path being followed.
    Open,
    Known(usize),
}

/// `None` if the node is on the path being followed.
fn column(node: usize, readers: &[Vec<usize>], columns: &mut [Column]) -> Option<usize> {
    match columns[node] {
        Column::Known(column) => Some(column),
        Column::Open => None,
        Column::Unknown => {
            columns[node] = Column::Open;
            let after = readers[node].iter();
            let after = after.filter_map(|reader| column(*reader, readers, columns));
            let own = after.max().map_or(0, |last| last + 1);
            columns[node] = Column::Known(own);
            Some(own)
        }
    }
}

/// Sets the y of all spots, and returns the total height.
fn place_vertically(spots: &mut [Spot], steps: &[(usize, usize)]) -> f64 {
    // Columns are rows in that layout.
    let sizes = spots.iter().enumerate();
    let sizes: Vec<(u32, (f64, f64))> = sizes
        .map(|(index, spot)| (index as u32, (spot.height, 1.0)))
        .collect();
    let edges: Vec<(u32, u32)> = steps
        .iter()
        .map(|&(from, to)| (from as u32, to as u32))
        .collect();
    let config = Config {
        vertex_spacing: APART,
        ..Config::default()
    };
    let margin = f64::from(MARGIN);
    let mut top = margin;
    for (part, _width, _height) in from_vertices_and_edges(&sizes, &edges, &config) {
        let above = part
            .iter()
            .map(|(index, (y, _))| y - spots[*index].height / 2.0);
        let above = above.fold(f64::INFINITY, f64::min);
        let mut bottom = top;
        for (index, (y, _)) in part {
            let spot = &mut spots[index];
            spot.y = top + y - above;
            bottom = f64::max(bottom, spot.y + spot.height / 2.0);
        }
        top = bottom + APART;
    }
    top - APART + margin
}

/// Sets the x of all spots, and returns the total width, and where each column begins and ends.
fn place_horizontally(
    spots: &mut [Spot],
    columns: &[usize],
    steps: &[(usize, usize)],
) -> (f64, Vec<(f64, f64)>) {
    let count = columns.iter().max().map_or(0, |last| last + 1);
    let mut widths = vec![0.0_f64; count];
    for (spot, column) in spots.iter().zip(columns) {
        widths[*column] = widths[*column].max(spot.width);
    }
    // Steep arrows get more space, from each column to the one on its right.
    let mut gaps = vec![GAP.0; count];
    for &(from, to) in steps {
        let rise = (spots[from].y - spots[to].y).abs();
        let gap = &mut gaps[columns[from]];
        *gap = gap.max(rise / 3.0).min(GAP.1);
    }
    let mut edges = vec![(0.0, 0.0); count];
    let mut x = f64::from(MARGIN);
    for column in (0..count).rev() {
        edges[column] = (x, x + widths[column]);
        x += widths[column] + if column > 0 { gaps[column] } else { 0.0 };
    }
    for (spot, column) in spots.iter_mut().zip(columns) {
        let (left, right) = edges[*column];
        spot.x = (left + right) / 2.0;
    }
    (x + f64::from(MARGIN), edges)
}

impl Bundle {
    /// The line from the right end of a node to the left end of its reader: horizontal in columns,
    /// and curved between them.
    fn way(self, spots: &[Spot], columns: &[usize], edges: &[(f64, f64)]) -> Way {
        let first = spots[self.spots[0]];
        let mut points = vec![(first.right(), first.y)];
        for step in self.spots.windows(2) {
            let [(_, start), (end, _)] = [step[0], step[1]].map(|spot| edges[columns[spot]]);
            curve(
                &mut points,
                (start, spots[step[0]].y),
                (end, spots[step[1]].y),
            );
        }
        let last = spots[self.spots[self.spots.len() - 1]];
        points.push((last.left(), last.y));
        let label = (!self.labels.is_empty()).then(|| {
            let x = edges[columns[self.spots[0]]].1;
            (self.labels.join(", "), (x + 4.0, first.y - 3.0))
        });
        Way {
            points,
            label,
            is_bold: self.is_bold,
        }
    }
}

/// A cubic curve that is horizontal at both ends.
fn curve(points: &mut Vec<(f64, f64)>, from: (f64, f64), to: (f64, f64)) {
    const PIECES: u32 = 32;
    if (from.1 - to.1).abs() < 0.5 {
        points.extend([from, to]);
        return;
    }
    points.extend((0..=PIECES).map(|piece| {
        let t = f64::from(piece) / f64::from(PIECES);
        // Control points halfway across.
        let across = 1.5 * t * (1.0 - t) + t.powi(3);
        let up = t * t * (3.0 - 2.0 * t);
        let between = |from: f64, to: f64, share: f64| from + (to - from) * share;
        (between(from.0, to.0, across), between(from.1, to.1, up))
    }));
}

impl Picture for Layout<'_> {
    fn size(&self) -> (u32, u32) {
        (self.size.0.ceil() as u32, self.size.1.ceil() as u32)
    }

    fn draw<D: DrawingBackend>(&self, area: &DrawingArea<D, Shift>, scale: u32) -> Drawn<D> {
        let pixel = |value: f64| (value * f64::from(scale)).round() as i32;
        let at = |(x, y): (f64, f64)| (pixel(x), pixel(y));
        let font = (FONT, LABEL * scale).into_font();
        let text = |h_pos, v_pos| TextStyle::from(font.clone()).pos(Pos::new(h_pos, v_pos));
        area.fill(&WHITE)?;
        for way in &self.arrows {
            let width = if way.is_bold { 5 * scale / 2 } else { scale };
            let points: Vec<(i32, i32)> = way.points.iter().copied().map(at).collect();
            area.draw(&PathElement::new(points, BLACK.stroke_width(width)))?;
            let (x, y) = way.points[way.points.len() - 1];
            let (long, wide) = HEAD;
            let head = [(x, y), (x - long, y - wide), (x - long, y + wide)];
            area.draw(&Polygon::new(head.map(at).to_vec(), BLACK.filled()))?;
            if let Some((label, place)) = &way.label {
                let label = lines(label).join(" ");
                area.draw(&Text::new(
                    label,
                    at(*place),
                    text(HPos::Left, VPos::Bottom),
                ))?;
            }
        }
        for (node, spot) in &self.nodes {
            let mut outlines = vec![0.0];
            outlines.extend(node.is_output.then_some(OUTLINES));
            for inset in outlines {
                let points = corners(node.shape, *spot, inset);
                let points: Vec<(i32, i32)> = points.into_iter().map(at).collect();
                area.draw(&Polygon::new(points.clone(), WHITE.filled()))?;
                area.draw(&PathElement::new(points, BLACK.stroke_width(scale)))?;
            }
            let lines = lines(&node.label);
            let middle = (lines.len() as f64 - 1.0) / 2.0;
            for (index, line) in lines.into_iter().enumerate() {
                let y = spot.y + LINE * (index as f64 - middle);
                let style = text(HPos::Center, VPos::Center);
                area.draw(&Text::new(line, at((spot.x, y)), style))?;
            }
        }
        Ok(())
    }
}

/// The outline of a node, closed.
fn corners(shape: DiagramShape, spot: Spot, inset: f64) -> Vec<(f64, f64)> {
    const PIECES: u32 = 64;
    let (x, y) = (spot.width / 2.0 - inset, spot.height / 2.0 - inset);
    let around: Vec<(f64, f64)> = match shape {
        DiagramShape::Box => vec![(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)],
        DiagramShape::Ellipse => {
            let angles = (0..=PIECES)
                .map(|piece| std::f64::consts::TAU * f64::from(piece) / f64::from(PIECES));
            angles
                .map(|angle| (x * angle.cos(), y * angle.sin()))
                .collect()
        }
    };
    around
        .into_iter()
        .map(|(dx, dy)| (spot.x + dx, spot.y + dy))
        .collect()
}
