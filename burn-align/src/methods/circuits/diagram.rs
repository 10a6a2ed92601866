//! Circuits as pictures.

use std::collections::HashMap;

use super::{Circuit, GraphNode};
use crate::diagram::{Diagram, DiagramShape};

impl Circuit {
    /// The circuit as a picture, [pruned](Self::pruned) first: its nodes, and an arrow for each
    /// pair of nodes with an edge, which names the inputs of a head that it enters. The embedding
    /// is a box, and the logits are the output. Edges whose score has at least half the largest
    /// magnitude are bold.
    ///
    /// ```
    /// use burn_align::methods::circuits::{Circuit, EdgeGraph};
    ///
    /// let graph = EdgeGraph::new(1, 1, false, 8);
    /// let names = ["input->a0.h0<q>", "input->a0.h0<v>", "a0.h0->logits"];
    /// let edges = names.map(|name| graph.parse(name).unwrap());
    /// let dot = Circuit::of(graph, edges).unwrap().diagram().to_dot();
    /// assert_eq!(dot, r#"digraph circuit {
    ///   rankdir=LR;
    ///   "input" [shape=box];
    ///   "a0.h0" [shape=ellipse];
    ///   "logits" [shape=ellipse, peripheries=2];
    ///   "input" -> "a0.h0" [label="q v"];
    ///   "a0.h0" -> "logits";
    /// }
    /// "#);
    /// ```
    pub fn diagram(&self) -> Diagram {
        let circuit = self.pruned();
        let graph = circuit.graph();
        let mut diagram = Diagram::new("circuit");
        let mut places: HashMap<GraphNode, usize> = HashMap::new();
        for node in circuit.nodes() {
            let shape = match node {
                GraphNode::Writer(0) => DiagramShape::Box,
                _ => DiagramShape::Ellipse,
            };
            let name = graph.node_name(node);
            let place = diagram.node(name.clone(), name, shape);
            diagram.nodes[place].is_output = node == GraphNode::Logits;
            places.insert(node, place);
        }
        let magnitude = |index: Option<usize>| {
            let scores = circuit.scores()?;
            Some(scores[index?].abs()).filter(|score| score.is_finite())
        };
        let all = circuit.edges().map(|edge| magnitude(graph.index(edge)));
        let largest = all.flatten().fold(0.0_f64, f64::max);
        let mut arrows: HashMap<[usize; 2], usize> = HashMap::new();
        for edge in circuit.edges() {
            let reading = graph.reading_node(edge.reader);
            let ends = [GraphNode::Writer(edge.writer), reading].map(|node| places.get(&node));
            let [Some(from), Some(to)] = ends else {
                continue;
            };
            let input = graph.readers()[edge.reader].input();
            let input = input.map(|input| input.to_string());
            let is_strong = magnitude(graph.index(edge)).is_some_and(|own| own >= 0.5 * largest);
            let is_bold = is_strong && largest > 0.0;
            match arrows.get(&[*from, *to]) {
                Some(arrow) => {
                    let arrow = &mut diagram.arrows[*arrow];
                    if let (Some(label), Some(input)) = (&mut arrow.label, input) {
                        label.push(' ');
                        label.push_str(&input);
                    }
                    arrow.is_bold |= is_bold;
                }
                None => {
                    arrows.insert([*from, *to], diagram.arrows.len());
                    diagram.arrow(*from, *to, input);
                    if let Some(arrow) = diagram.arrows.last_mut() {
                        arrow.is_bold = is_bold;
                    }
                }
            }
        }
        diagram
    }
}
