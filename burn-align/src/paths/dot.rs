use std::fmt::Write;

use super::{Stream, Value};
use crate::engine::Indices;

impl Stream {
    /// The tree in the DOT language of Graphviz: arrows go from what adds to what reads; clean
    /// runs are boxes, named by their input. What a run goes on with has a bold arrow.
    ///
    /// ```
    /// use burn_align::paths::{HeadInput, Hop, Node, Path, Stream};
    ///
    /// let key = Hop::Head { layer: 1, head: 0, input: HeadInput::Key };
    /// let path = Path::new(Node::Head { layer: 0, head: 3 }).through(key);
    /// let dot = Stream::of_paths([&path], 0, 1).to_dot(&["base", "source"]);
    /// assert_eq!(dot, r#"digraph paths {
    ///   rankdir=LR;
    ///   "logits" [shape=ellipse, peripheries=2, label="logits\nelse base"];
    ///   "n0" [shape=ellipse, label="1.0\nelse base"];
    ///   "n0" -> "logits";
    ///   "n1" [shape=box, label="0.3\nsource"];
    ///   "n1" -> "n0" [label="k"];
    /// }
    /// "#);
    /// ```
    pub fn to_dot(&self, inputs: &[&str]) -> String {
        let mut dot = Dot {
            text: "digraph paths {\n  rankdir=LR;\n".to_owned(),
            inputs,
            next: 0,
        };
        let label = quoted(&format!("logits\nelse {}", dot.input(self.input)));
        dot.line(&format!(
            "\"logits\" [shape=ellipse, peripheries=2, label={label}];"
        ));
        dot.changes(self, "logits", None);
        dot.text + "}\n"
    }
}

struct Dot<'a> {
    text: String,
    inputs: &'a [&'a str],
    next: usize,
}

impl Dot<'_> {
    fn line(&mut self, line: &str) {
        writeln!(self.text, "  {line}").expect("writing to a string");
    }

    fn input(&self, index: usize) -> String {
        let name = self.inputs.get(index);
        name.map_or_else(|| format!("input {index}"), |name| (*name).to_owned())
    }

    /// What a stream has that its run has not, each with an arrow to the reader.
    fn changes(&mut self, stream: &Stream, reader: &str, input: Option<&str>) {
        for change in &stream.changes {
            let name = format!("n{}", self.next);
            self.next += 1;
            let mut label = change.node.to_string();
            if let Indices::Same(positions) = &change.positions {
                write!(label, " @ {positions:?}").expect("writing to a string");
            }
            let streams = change.value.streams();
            let shape = match change.value {
                Value::Clean(input) => {
                    write!(label, "\n{}", self.input(input)).expect("writing to a string");
                    "box"
                }
                _ => {
                    let mut runs: Vec<usize> = streams.iter().map(|(_, s)| s.input).collect();
                    runs.sort_unstable();
                    runs.dedup();
                    let runs: Vec<String> = runs.into_iter().map(|run| self.input(run)).collect();
                    write!(label, "\nelse {}", runs.join(", ")).expect("writing to a string");
                    "ellipse"
                }
            };
            self.line(&format!(
                "\"{name}\" [shape={shape}, label={}];",
                quoted(&label)
            ));
            let mut attributes: Vec<String> = Vec::new();
            attributes.extend(input.map(|input| format!("label={}", quoted(input))));
            if change.reach == super::Reach::Run {
                attributes.push("style=bold".to_owned());
            }
            let attributes = match attributes.is_empty() {
                true => String::new(),
                false => format!(" [{}]", attributes.join(", ")),
            };
            self.line(&format!("\"{name}\" -> \"{reader}\"{attributes};"));
            for (input, stream) in streams {
                let input = input.map(|input| input.to_string());
                self.changes(stream, &name, input.as_deref());
            }
        }
    }
}

/// A string of the DOT language. Backslashes begin escape sequences in labels.
pub(crate) fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('\n', "\\n"))
}
