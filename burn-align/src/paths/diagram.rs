//! Streams as pictures.

use std::fmt::Write;

use super::{Reach, Stream, Value};
use crate::diagram::{Diagram, DiagramShape};
use crate::engine::Indices;

impl Stream {
    /// The tree as a picture: arrows go from what adds to what reads. Clean runs are boxes, named
    /// after their input. A bold arrow marks what a run continues with.
    ///
    /// ```
    /// use burn_align::paths::{HeadInput, Hop, Node, Path, Stream};
    ///
    /// let key = Hop::Head { layer: 1, head: 0, input: HeadInput::Key };
    /// let path = Path::new(Node::Head { layer: 0, head: 3 }).through(key);
    /// let stream = Stream::of_paths([&path], 0, 1);
    /// let dot = stream.diagram(&["base", "source"]).to_dot();
    /// assert_eq!(dot, r#"digraph paths {
    ///   rankdir=LR;
    ///   "logits" [shape=ellipse, peripheries=2, label="logits\nelse base"];
    ///   "n0" [shape=ellipse, label="1.0\nelse base"];
    ///   "n1" [shape=box, label="0.3\nsource"];
    ///   "n0" -> "logits";
    ///   "n1" -> "n0" [label="k"];
    /// }
    /// "#);
    /// ```
    pub fn diagram(&self, inputs: &[&str]) -> Diagram {
        let mut drawing = Drawing {
            diagram: Diagram::new("paths"),
            inputs,
        };
        let label = format!("logits\nelse {}", drawing.input(self.input));
        let logits = drawing.diagram.node("logits", label, DiagramShape::Ellipse);
        drawing.diagram.nodes[logits].is_output = true;
        drawing.changes(self, logits, None);
        drawing.diagram
    }
}

struct Drawing<'a> {
    diagram: Diagram,
    inputs: &'a [&'a str],
}

impl Drawing<'_> {
    fn input(&self, index: usize) -> String {
        let name = self.inputs.get(index);
        name.map_or_else(|| format!("input {index}"), |name| (*name).to_owned())
    }

    /// What differs between a stream and its run, each with an arrow to the reader.
    fn changes(&mut self, stream: &Stream, reader: usize, input: Option<&str>) {
        for change in &stream.changes {
            let mut label = change.node.to_string();
            if let Indices::Same(positions) = &change.positions {
                write!(label, " @ {positions:?}").expect("writing to a string");
            }
            let streams = change.value.streams();
            let shape = match change.value {
                Value::Clean(input) => {
                    write!(label, "\n{}", self.input(input)).expect("writing to a string");
                    DiagramShape::Box
                }
                _ => {
                    let mut runs: Vec<usize> = streams.iter().map(|(_, s)| s.input).collect();
                    runs.sort_unstable();
                    runs.dedup();
                    let runs: Vec<String> = runs.into_iter().map(|run| self.input(run)).collect();
                    write!(label, "\nelse {}", runs.join(", ")).expect("writing to a string");
                    DiagramShape::Ellipse
                }
            };
            let id = format!("n{}", self.diagram.nodes.len() - 1);
            let node = self.diagram.node(id, label, shape);
            self.diagram.arrow(node, reader, input.map(str::to_owned));
            let arrow = self.diagram.arrows.last_mut().expect("just added");
            arrow.is_bold = change.reach == Reach::Run;
            for (input, stream) in streams {
                let input = input.map(|input| input.to_string());
                self.changes(stream, node, input.as_deref());
            }
        }
    }
}
