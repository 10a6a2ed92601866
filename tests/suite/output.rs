//! What programs print and draw.

use std::io::{self, Write};
use std::path::Path;

use burn_align::causal_models::{CausalModel, Inputs};
use burn_align::diagram::{Diagram, DiagramArrow, DiagramNode, DiagramShape};
use burn_align::engine::Indices;
use burn_align::methods::{Feature, Grid, Hypothesis};
use burn_align::paths::{HeadInput, Node, Stream, Value};
use burn_align::training::{EpochReport, Evaluation, History, Mean, StepReport};
use proptest::prelude::*;
use workbench::console::write_line;
use workbench::plot::{
    Line, diagram_file, heat_map, heat_maps, line_chart, picture_file, write_diagram, write_history,
};
use workbench::table::heat_map_text;

fn grid(values: Vec<Vec<f64>>) -> Grid {
    let labels = |count: usize| (0..count).map(|label| label.to_string()).collect();
    Grid {
        rows: labels(values.len()),
        columns: labels(values.first().map_or(0, Vec::len)),
        values,
    }
}

/// A grid with every kind of value that a model can give.
fn wild() -> Grid {
    grid(vec![
        vec![0.25, f64::NAN, f64::INFINITY],
        vec![f64::NEG_INFINITY, -0.5, 0.0],
    ])
}

/// A writer that fails in one way.
struct Failing(io::ErrorKind);

impl Write for Failing {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let mut written = Vec::new();
    write_line(&mut written, format_args!("{} and {}", 1, 2)).expect("a vector takes all");
    assert_eq!(written, b"1 and 2\n");
    write_line(Failing(io::ErrorKind::BrokenPipe), format_args!("unread")).expect("not told");
    let full = write_line(Failing(io::ErrorKind::StorageFull), format_args!("lost"));
    assert_eq!(full.expect_err("told").kind(), io::ErrorKind::StorageFull);
}

#[test]
fn ranges_are_of_finite_values() {
    assert_eq!(wild().range(), Some((-0.5, 0.25)));
    assert_eq!(grid(vec![vec![2.0]]).range(), Some((2.0, 2.0)));
    assert_eq!(grid(vec![vec![f64::NAN, f64::INFINITY]]).range(), None);
    assert_eq!(grid(vec![]).range(), None);
}

#[test]
fn shades_stay_within_their_scale() {
    let text = heat_map_text(&wild()).to_string();
    for cell in [
        "▒ 0.2500",
        "█ inf",
        "# -inf",
        "# -0.5000",
        "  0.0000",
        "  NaN",
    ] {
        assert!(text.contains(cell), "expected `{cell}` in:\n{text}");
    }
    heat_map_text(&grid(vec![vec![f64::NAN]]));
}

/// Like the effects of heads: most near 0, and the largest one negative.
fn of_both_signs() -> Grid {
    grid(vec![vec![0.0, 0.004, -0.003], vec![-0.672, 0.411, -0.263]])
}

#[test]
fn both_signs_are_strong_and_0_is_empty() {
    let text = heat_map_text(&of_both_signs()).to_string();
    for cell in [
        "  0.0000",
        "  0.0040",
        "  -0.0030",
        "# -0.6720",
        "▒ 0.4110",
        "= -0.2630",
    ] {
        assert!(text.contains(cell), "expected `{cell}` in:\n{text}");
    }
    // Non-negative values start at the smallest, as before.
    let text = heat_map_text(&grid(vec![vec![0.2, 0.4, 0.6]])).to_string();
    for cell in ["  0.2000", "▒ 0.4000", "█ 0.6000"] {
        assert!(text.contains(cell), "expected `{cell}` in:\n{text}");
    }

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("map.svg");
    heat_map(&file, "a map", ["x", "y"], &of_both_signs()).expect("drawn");
    let svg = std::fs::read_to_string(&file).expect("written");
    // 0 is white, the most negative one the darkest red, and 0.411 / 0.672 of the way to dark blue.
    for color in ["#67000D", "#6780A4"] {
        assert!(svg.contains(color), "{color}: {svg}");
    }
    let values = grid(vec![vec![0.5, -0.5, f64::NAN]]);
    heat_map(&file, "a map", ["x", "y"], &values).expect("drawn");
    let svg = std::fs::read_to_string(&file).expect("written");
    for color in ["#08306B", "#67000D", "#C8C8C8"] {
        assert_eq!(svg.matches(color).count(), 1, "{color}: {svg}");
    }
}

fn draw_all(folder: &Path, extension: &str) -> [Vec<u8>; 2] {
    let file = |name: &str| folder.join(format!("{name}.{extension}"));
    heat_map(&file("map"), "a map", ["x", "y"], &wild()).expect("drawn");
    let line = Line {
        name: "a line",
        points: vec![(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)],
    };
    line_chart(&file("chart"), "a chart", ["x", "y"], &[line]).expect("drawn");
    ["map", "chart"].map(|name| std::fs::read(file(name)).expect("written"))
}

#[test]
fn pictures_are_drawn_as_svg_and_png() {
    let folder = tempfile::tempdir().expect("a folder");
    for svg in draw_all(folder.path(), "svg") {
        let text = String::from_utf8(svg).expect("text");
        assert!(text.starts_with("<svg "), "{text}");
        assert!(text.trim_end().ends_with("</svg>"), "{text}");
        assert_eq!(text.matches("</svg>").count(), 1, "{text}");
    }
    for (png, height) in draw_all(folder.path(), "PNG")
        .into_iter()
        .zip([2 * (96 + 2 * 28), 800])
    {
        let (signature, rest) = png.split_at(8);
        assert_eq!(signature, b"\x89PNG\r\n\x1a\n");
        // Name of the header chunk, width and height.
        let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four"));
        assert_eq!(&rest[4..8], b"IHDR");
        assert!(number(8) > 2 * 3 * 48, "three columns");
        assert_eq!(number(12), height);
        assert!(png.ends_with(b"IEND\xaeB`\x82"), "the file is whole");
    }
}

#[test]
fn the_first_row_is_on_top_and_numbers_stand_in_cells() {
    let folder = tempfile::tempdir().expect("a folder");
    let draw = |values| {
        let file = folder.path().join("map.svg");
        heat_map(&file, "a map", ["x", "y"], &grid(values)).expect("drawn");
        std::fs::read_to_string(&file).expect("written")
    };
    let height_of = |svg: &str, number: &str| -> f64 {
        let lines: Vec<&str> = svg.lines().collect();
        let at = lines.iter().position(|line| *line == number);
        let tag = lines[at.expect("the number") - 1];
        let y = tag.split_once(" y=\"").expect("a height").1;
        y.split('"').next().expect("a number").parse().expect("y")
    };
    let svg = draw(vec![vec![0.25, -0.0001], vec![0.5, 1.0]]);
    assert!(height_of(&svg, "0.250") < height_of(&svg, "0.500"), "{svg}");
    assert_eq!(height_of(&svg, "0.250"), height_of(&svg, "0.000"), "{svg}");
    let wide = draw(vec![vec![0.25, 12_345_678.0]]);
    assert!(!wide.lines().any(|line| line == "0.250"), "{wide}");
}

#[test]
fn maps_side_by_side_have_one_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("maps.svg");
    let (low, high) = (grid(vec![vec![0.0, 0.5]]), grid(vec![vec![0.5], vec![1.0]]));
    heat_maps(&file, ["x", "y"], &[("low", &low), ("high", &high)]).expect("drawn");
    let svg = std::fs::read_to_string(&file).expect("written");
    assert_eq!(svg.matches("</svg>").count(), 1, "one document: {svg}");
    assert!(svg.contains("low (0.000 to 0.500)") && svg.contains("high (0.500 to 1.000)"));
    // Brightest and darkest once, in either map; the middle in both.
    for (color, count) in [("#F7FBFF", 1), ("#7F95B5", 2), ("#08306B", 1)] {
        assert_eq!(svg.matches(color).count(), count, "{color}: {svg}");
    }
    let empty = grid(vec![vec![f64::NAN]]);
    heat_maps(&file, ["x", "y"], &[("low", &low), ("empty", &empty)]).expect_err("refused");
}

#[test]
fn pictures_that_cannot_be_drawn_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |name: &str, grid: &Grid| {
        let file = folder.path().join(name);
        let error = heat_map(&file, "a map", ["x", "y"], grid).expect_err("refused");
        assert!(!file.exists(), "{} was written", file.display());
        format!("{error:#}")
    };
    for name in ["map", "map.jpg", "map.svg.gz", ".png"] {
        let said = refused(name, &wild());
        assert!(
            said.contains("expected the name of a picture, .svg or .png"),
            "{said}"
        );
        assert!(said.contains(name), "{said}");
        picture_file(name).expect_err("refused on the command line");
    }
    assert_eq!(
        picture_file("a/map.png").expect("right"),
        Path::new("a/map.png")
    );
    for name in ["map.svg", "map.png"] {
        for empty in [grid(vec![]), grid(vec![vec![f64::NAN]])] {
            assert_eq!(refused(name, &empty), "nothing to draw");
        }
        let nowhere = format!("no_such_folder/{name}");
        let said = refused(&nowhere, &wild());
        assert!(said.contains(name) && said.contains("os error"), "{said}");
    }
    let said = refused("wide.png", &grid(vec![vec![1.0; 1 << 18]]));
    assert!(said.contains("too many for a PNG: write an SVG"), "{said}");
}

/// Two epochs of two steps, the second of them evaluated.
fn history() -> History {
    let step = |step| StepReport {
        step,
        steps: 4,
        epoch: step / 2,
        loss: 2.0 - 0.25 * step as f64,
    };
    let mean = |mean| Mean {
        mean,
        interval: Some([mean - 1.0, mean + 1.0]),
        examples: 8,
    };
    let held_out = Evaluation {
        accuracy: 0.75,
        interval: [0.5, 0.875],
        logit_difference: Some(mean(1.5)),
        kl_divergence: mean(3.0),
        examples: 8,
    };
    let epoch = |epoch, held_out| EpochReport {
        epoch,
        loss: 1.0,
        held_out,
    };
    History {
        steps: (0..4).map(step).collect(),
        epochs: vec![epoch(0, None), epoch(1, Some(held_out))],
    }
}

#[test]
fn histories_are_written_as_numbers_and_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = |name: &str, history: &History| {
        let file = folder.path().join(name);
        write_history(&file, "a history", history).map(|()| std::fs::read(file).expect("written"))
    };
    let text = |name: &str| String::from_utf8(written(name, &history()).expect("drawn"));
    assert_eq!(
        text("h.csv").expect("text"),
        "step,epoch,loss,accuracy,accuracy_low,accuracy_high,logit_difference,kl_divergence\n\
         0,0,2,,,,,\n\
         1,0,1.75,,,,,\n\
         2,1,1.5,,,,,\n\
         3,1,1.25,0.75,0.5,0.875,1.5,3\n"
    );
    let read: History = serde_json::from_str(&text("h.json").expect("text")).expect("JSON");
    assert_eq!(read, history());
    let svg = text("h.svg").expect("text");
    assert!(svg.contains("interchange intervention accuracy"), "{svg}");
    let mut without = history();
    without.epochs[1].held_out = None;
    let svg = String::from_utf8(written("h.svg", &without).expect("drawn")).expect("text");
    assert!(svg.contains("loss") && !svg.contains("accuracy"), "{svg}");
    let png = written("h.png", &history()).expect("drawn");
    assert!(png.starts_with(b"\x89PNG") && png.ends_with(b"IEND\xaeB`\x82"));
    for (name, history) in [("none.svg", &History::default()), ("h.txt", &history())] {
        written(name, history).expect_err("refused");
        assert!(!folder.path().join(name).exists());
    }
}

/// The texts of an SVG, decoded as XML.
fn texts(svg: &str) -> Vec<String> {
    let (mut open, mut texts) = (Vec::new(), Vec::new());
    let mut rest = svg.trim();
    while let Some((text, tag)) = rest.split_once('<') {
        let allowed = |c: char| !c.is_control() || c == '\n';
        assert!(text.chars().all(allowed) && !text.contains('>'), "{text:?}");
        let entities = [
            ("lt", "<"),
            ("gt", ">"),
            ("quot", "\""),
            ("apos", "'"),
            ("amp", "&"),
        ];
        let mut pieces = text.split('&');
        let mut plain = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (name, after) = piece.split_once(';').expect("an entity ends");
            let entity = entities.iter().find(|(entity, _)| *entity == name);
            plain += entity.expect("an entity of XML").1;
            plain += after;
        }
        if open.last() == Some(&"text") {
            texts.push(plain.trim_matches('\n').to_owned());
        }
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        assert!(
            !tag.contains('<') && tag.matches('"').count() % 2 == 0,
            "{tag}"
        );
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().expect("a name")),
        }
        rest = after;
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest}");
    texts
}

fn drawn(diagram: &Diagram) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("graph.svg");
    write_diagram(&file, diagram).expect("drawn");
    texts(&std::fs::read_to_string(file).expect("written"))
}

#[test]
fn graphs_are_drawn_with_all_labels() {
    let model = CausalModel::<i64>::builder()
        .input("a < \"b\" & c", 0..4)
        .variable(r"back\slash", ["a < \"b\" & c"], 0..=4, |[a]| *a)
        .build()
        .expect("a model");
    let setting = model.run(&Inputs::from([3])).expect("runs");
    let node = Node::Head { layer: 1, head: 0 };
    let value = Value::Mlp(Box::new(Stream::clean(0).with(
        node,
        Indices::All,
        Value::Clean(1),
    )));
    let mlp = Node::Mlp { layer: 1 };
    let stream = Stream::clean(0).with_run(mlp, Indices::Same(vec![2]), value);
    let word = Feature::new("first <word>", |words: &[&str; 2]| words[0].to_owned());
    let both = [HeadInput::Key, HeadInput::Value];
    let hypothesis = Hypothesis::new()
        .node("tells\u{1}", Node::Embedding, word.clone())
        .node("says", node, word)
        .output_reads(["says", "tells\u{1}"]);
    let hypothesis = both.into_iter().fold(hypothesis, |hypothesis, input| {
        hypothesis.head_reads("says", input, ["tells\u{1}"])
    });
    for (diagram, expected) in [
        (model.diagram(), vec!["a < \"b\" & c", r"back\slash"]),
        (
            model.run_diagram(&setting),
            vec!["a < \"b\" & c = 3", r"back\slash = 3"],
        ),
        (
            stream.diagram(&["it's"]),
            vec![
                "logits",
                "else it's",
                "m1 @ [2]",
                "else it's",
                "1.0",
                "input 1",
            ],
        ),
        (
            // Two arrows between the same nodes are one with both labels.
            hypothesis.diagram(),
            vec![
                "k, v",
                "output",
                "tells\u{FFFD}",
                "embedding",
                "first <word>",
                "says",
                "1.0",
                "first <word>",
            ],
        ),
    ] {
        let mut found = drawn(&diagram);
        let mut expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        let dot = diagram.to_dot();
        let quotes = dot.replace(r"\\", "").replace("\\\"", "");
        assert!(
            quotes
                .lines()
                .all(|line| line.matches('"').count() % 2 == 0),
            "{dot}"
        );
    }
}

#[test]
fn graphs_are_written_by_extension() {
    let folder = tempfile::tempdir().expect("a folder");
    let diagram = Stream::clean(0).diagram(&["base"]);
    let written = |name: &str| {
        let file = folder.path().join(name);
        write_diagram(&file, &diagram).map(|()| std::fs::read(file).expect("written"))
    };
    assert_eq!(
        written("g.dot").expect("written"),
        diagram.to_dot().as_bytes()
    );
    assert!(written("g.png").expect("drawn").starts_with(b"\x89PNG"));
    for name in ["g.svg", "g.png", "g.DOT"] {
        diagram_file(name).expect("right");
    }
    for name in ["g", "g.txt", "g.svg.gz"] {
        let said = format!("{:#}", diagram_file(name).expect_err("refused"));
        assert!(said.contains(".svg, .png or .dot"), "{said}");
        written(name).expect_err("refused");
    }
    let empty = Diagram {
        nodes: Vec::new(),
        ..diagram.clone()
    };
    let error = write_diagram(&folder.path().join("e.svg"), &empty).expect_err("refused");
    assert_eq!(error.to_string(), "nothing to draw");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Including cycles, multiple arrows, self-loops, and unconnected parts.
    #[test]
    fn any_graph_can_be_drawn(
        labels in prop::collection::vec(any::<String>(), 1..40),
        arrows in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            0..80,
        ),
    ) {
        let node = |(index, label): (usize, &String)| DiagramNode {
            id: index.to_string(),
            label: label.clone(),
            shape: [DiagramShape::Box, DiagramShape::Ellipse][index % 2],
            is_output: index == 0,
        };
        let arrow = |(from, to): &(prop::sample::Index, prop::sample::Index)| DiagramArrow {
            from: from.index(labels.len()),
            to: to.index(labels.len()),
            label: None,
            is_bold: false,
        };
        let diagram = Diagram {
            name: "any",
            nodes: labels.iter().enumerate().map(node).collect(),
            arrows: arrows.iter().map(arrow).collect(),
        };
        drawn(&diagram);
    }
}
