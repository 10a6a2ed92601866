use std::fmt::Write;

use super::{Hypothesis, ScrubTree};
use crate::paths::quoted;

impl<E> Hypothesis<E> {
    /// The graph in the DOT language of Graphviz: each node with its part of the model and its
    /// feature; arrows go to the reader. Names that no node has are left out.
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
    ///   "output" [shape=ellipse, peripheries=2, label="output"];
    ///   "n0" [shape=ellipse, label="copies\n1.0\nfirst word"];
    ///   "n1" [shape=box, label="finds\nm0\nfirst word"];
    ///   "n0" -> "output";
    ///   "n1" -> "n0" [label="k"];
    /// }
    /// "#;
    /// assert_eq!(hypothesis.to_dot(), dot);
    /// ```
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph hypothesis {\n  rankdir=LR;\n");
        let mut label = "output".to_owned();
        if let Some(feature) = &self.output {
            write!(label, "\n{}", feature.name()).expect("writing to a string");
        }
        line(&mut dot, "output", true, true, &label);
        for (index, node) in self.nodes.iter().enumerate() {
            let mut reads = self.reads.iter();
            let reads = reads.any(|reads| reads.reader.as_ref() == Some(&node.name));
            let label = format!("{}\n{}\n{}", node.name, node.place, node.feature.name());
            line(&mut dot, &format!("n{index}"), reads, false, &label);
        }
        let index = |name: &String| self.nodes.iter().position(|node| node.name == *name);
        for reads in &self.reads {
            let reader = match &reads.reader {
                None => Some("output".to_owned()),
                Some(name) => index(name).map(|reader| format!("n{reader}")),
            };
            for (reader, read) in reader.iter().flat_map(|reader| {
                let nodes = reads.nodes.iter().filter_map(index);
                nodes.map(move |node| (reader, node))
            }) {
                let input = reads.input.map(|input| input.to_string());
                arrow(&mut dot, &format!("n{read}"), reader, input.as_deref());
            }
        }
        dot + "}\n"
    }
}

impl ScrubTree {
    /// The tree in the DOT language of Graphviz, with the example that each node takes in one row,
    /// named by `example`. What does not matter to a node is in its last line.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn to_dot(&self, row: usize, example: impl Fn(usize) -> String) -> String {
        let mut dot = String::from("digraph scrubbed {\n  rankdir=LR;\n");
        let mut arrows = String::new();
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
            let name = format!("n{index}");
            line(&mut dot, &name, reads, index == 0, &lines.join("\n"));
            if let Some(reader) = node.reader {
                let input = node.input.map(|input| input.to_string());
                arrow(&mut arrows, &name, &format!("n{reader}"), input.as_deref());
            }
        }
        dot + &arrows + "}\n"
    }
}

/// A node; those that read nothing are boxes.
fn line(dot: &mut String, name: &str, reads: bool, output: bool, label: &str) {
    let shape = if reads { "ellipse" } else { "box" };
    let lines = if output { ", peripheries=2" } else { "" };
    let label = quoted(label);
    writeln!(dot, "  \"{name}\" [shape={shape}{lines}, label={label}];")
        .expect("writing to a string");
}

fn arrow(dot: &mut String, from: &str, to: &str, label: Option<&str>) {
    let label = label.map_or_else(String::new, |label| format!(" [label={}]", quoted(label)));
    writeln!(dot, "  \"{from}\" -> \"{to}\"{label};").expect("writing to a string");
}
