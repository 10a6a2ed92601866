//! Hypotheses and their trees as pictures.

use super::{Hypothesis, ScrubTree};
use crate::diagram::{Diagram, DiagramShape};

impl<E> Hypothesis<E> {
    /// The graph as a picture: each node with its part of the model and its feature. Arrows go to
    /// the reader. Names without a node are left out.
    ///
    /// ```
    /// use burn_align::methods::{Feature, Hypothesis};
    /// use burn_align::paths::{HeadInput, Node};
    ///
    /// let word = Feature::new("first word", |words: &[&str; 2]| words[0].to_owned());
    /// let hypothesis = Hypothesis::new()
    ///     .node("copies", Node::Head { layer: 1, head: 0 }, word.clone())
    ///     .node("finds", Node::Mlp { layer: 0 }, word)
    ///     .output_reads(["copies"])
    ///     .head_reads("copies", HeadInput::Key, ["finds"]);
    /// let dot = r#"digraph hypothesis {
    ///   rankdir=LR;
    ///   "output" [shape=ellipse, peripheries=2];
    ///   "n0" [shape=ellipse, label="copies\n1.0\nfirst word"];
    ///   "n1" [shape=box, label="finds\nm0\nfirst word"];
    ///   "n0" -> "output";
    ///   "n1" -> "n0" [label="k"];
    /// }
    /// "#;
    /// assert_eq!(hypothesis.diagram().to_dot(), dot);
    /// ```
    pub fn diagram(&self) -> Diagram {
        let mut diagram = Diagram::new("hypothesis");
        let mut lines = vec!["output"];
        lines.extend(self.output.as_ref().map(|feature| feature.name()));
        let output = diagram.node("output", lines.join("\n"), DiagramShape::Ellipse);
        diagram.nodes[output].is_output = true;
        for (index, node) in self.nodes.iter().enumerate() {
            let mut reads = self.reads.iter();
            let reads = reads.any(|reads| reads.reader.as_ref() == Some(&node.name));
            let label = format!("{}\n{}\n{}", node.name, node.place, node.feature.name());
            diagram.node(format!("n{index}"), label, shape(reads));
        }
        // The output comes first in the picture.
        let index = |name: &String| {
            let index = self.nodes.iter().position(|node| node.name == *name);
            index.map(|index| index + 1)
        };
        for reads in &self.reads {
            let reader = match &reads.reader {
                None => Some(output),
                Some(name) => index(name),
            };
            for (reader, read) in reader.iter().flat_map(|reader| {
                let nodes = reads.nodes.iter().filter_map(index);
                nodes.map(move |node| (*reader, node))
            }) {
                diagram.arrow(read, reader, reads.input.map(|input| input.to_string()));
            }
        }
        diagram
    }
}

impl ScrubTree {
    /// The tree as a picture, with the example that each node takes in one row, labelled by
    /// `example`. A node's last line is for what does not matter to it.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn diagram(&self, row: usize, example: impl Fn(usize) -> String) -> Diagram {
        let mut diagram = Diagram::new("scrubbed");
        for (index, node) in self.nodes().iter().enumerate() {
            let mut lines = vec![node.name.clone()];
            lines.extend(node.place.as_ref().map(ToString::to_string));
            lines.extend(node.feature.clone());
            lines.push(example(self.donors(index)[row]));
            let reads = node.reader.is_none() || !node.reads.is_empty();
            let apart = &self.draws.apart[index];
            if reads && apart.is_empty() {
                lines.push(format!("else {}", example(self.unimportant(index)[row])));
            } else if reads {
                lines.push("else others".to_owned());
            }
            let own = diagram.node(format!("n{index}"), lines.join("\n"), shape(reads));
            diagram.nodes[own].is_output = node.reader.is_none();
            if let Some(reader) = node.reader {
                let input = node.input.map(|input| input.to_string());
                diagram.arrow(own, reader, input);
            }
        }
        diagram
    }
}

/// Nodes that read nothing are boxes.
fn shape(reads: bool) -> DiagramShape {
    match reads {
        true => DiagramShape::Ellipse,
        false => DiagramShape::Box,
    }
}
