//! Graphs as data, to be drawn by other programs.

use std::fmt::Write;

/// A graph to be drawn from left to right; arrows point to the reader.
///
/// Sets of paths, hypotheses with their trees, and causal models can all be turned into one. The
/// library draws nothing: [`Diagram::to_dot`] is for Graphviz, and other programs can use the
/// fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagram {
    /// What it shows, as one word of letters and `_`.
    pub name: &'static str,
    /// The nodes; no two have the same id.
    pub nodes: Vec<DiagramNode>,
    /// The arrows.
    pub arrows: Vec<DiagramArrow>,
}

/// A node of a [`Diagram`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiagramNode {
    /// Its name in the DOT language.
    pub id: String,
    /// Its text, in one or more lines.
    pub label: String,
    /// Its outline.
    pub shape: DiagramShape,
    /// Whether it is an output, which gets two outlines.
    pub is_output: bool,
}

/// The outline of a [`DiagramNode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiagramShape {
    /// For nodes that read nothing.
    Box,
    /// For computed nodes.
    Ellipse,
}

/// An arrow of a [`Diagram`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiagramArrow {
    /// The index of the node that is read.
    pub from: usize,
    /// The index of the node that reads it.
    pub to: usize,
    /// Its text, for example the input of a head.
    pub label: Option<String>,
    /// Whether it is drawn bold.
    pub is_bold: bool,
}

impl Diagram {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            nodes: Vec::new(),
            arrows: Vec::new(),
        }
    }

    /// Adds a node and returns its index.
    pub(crate) fn node(
        &mut self,
        id: impl Into<String>,
        label: impl Into<String>,
        shape: DiagramShape,
    ) -> usize {
        self.nodes.push(DiagramNode {
            id: id.into(),
            label: label.into(),
            shape,
            is_output: false,
        });
        self.nodes.len() - 1
    }

    pub(crate) fn arrow(&mut self, from: usize, to: usize, label: Option<String>) {
        self.arrows.push(DiagramArrow {
            from,
            to,
            label,
            is_bold: false,
        });
    }

    /// The graph in the DOT language of Graphviz.
    ///
    /// # Panics
    /// If an arrow refers to a missing node.
    pub fn to_dot(&self) -> String {
        let mut dot = format!("digraph {} {{\n  rankdir=LR;\n", self.name);
        for node in &self.nodes {
            let shape = match node.shape {
                DiagramShape::Box => "box",
                DiagramShape::Ellipse => "ellipse",
            };
            let mut attributes = format!("shape={shape}");
            if node.is_output {
                attributes.push_str(", peripheries=2");
            }
            if node.label != node.id {
                write!(attributes, ", label={}", quoted(&node.label)).expect(STRING);
            }
            writeln!(dot, "  {} [{attributes}];", quoted(&node.id)).expect(STRING);
        }
        for arrow in &self.arrows {
            let label = arrow.label.as_ref();
            let label = label.map(|label| format!("label={}", quoted(label)));
            let style = arrow.is_bold.then(|| "style=bold".to_owned());
            let attributes: Vec<String> = label.into_iter().chain(style).collect();
            let attributes = match attributes.is_empty() {
                true => String::new(),
                false => format!(" [{}]", attributes.join(", ")),
            };
            let [from, to] = [arrow.from, arrow.to].map(|node| quoted(&self.nodes[node].id));
            writeln!(dot, "  {from} -> {to}{attributes};").expect(STRING);
        }
        dot + "}\n"
    }
}

const STRING: &str = "writing to a string";

/// A string of the DOT language. Backslashes begin escape sequences in labels.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('\n', "\\n"))
}
