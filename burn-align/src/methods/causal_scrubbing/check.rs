//! Validation of hypotheses.

use std::collections::{HashMap, HashSet};

use burn_align_models::{ModelDims, TokenBatch};

use super::{Hypothesis, Part, Place, ScrubError};
use crate::engine::Indices;
use crate::paths::{HeadInput, Node, meet};

/// What one node reads: the input by which it reads, and the index of the node that it reads.
pub(super) type Read = (Option<HeadInput>, usize);

/// The reads of a hypothesis, by index.
pub(super) struct Graph {
    pub(super) output: Vec<Read>,
    /// For each node.
    pub(super) nodes: Vec<Vec<Read>>,
}

/// The depth after all nodes: where the logits read.
pub(super) fn output_depth(dims: &ModelDims) -> usize {
    2 * dims.layers + 1
}

impl<E> Hypothesis<E> {
    /// Checks that this is a graph of parts that a model has, each before its readers.
    pub(super) fn check(&self, dims: &ModelDims) -> Result<Graph, ScrubError> {
        let graph = self.graph()?;
        self.check_cycles(&graph)?;
        for node in &self.nodes {
            if let Part::Node(part) = node.place.part {
                part.check(dims).map_err(|cause| ScrubError::Path {
                    name: node.name.clone(),
                    cause,
                })?;
            }
        }
        self.check_reads(None, &graph.output, dims)?;
        for (reader, reads) in graph.nodes.iter().enumerate() {
            self.check_reads(Some(reader), reads, dims)?;
        }
        let mut reached = HashSet::new();
        let mut open: Vec<usize> = graph.output.iter().map(|(_, node)| *node).collect();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(graph.nodes[node].iter().map(|(_, node)| *node));
            }
        }
        match (0..self.nodes.len()).find(|node| !reached.contains(node)) {
            Some(node) => Err(ScrubError::NotRead {
                name: self.nodes[node].name.clone(),
            }),
            None => Ok(graph),
        }
    }

    /// Resolves names to indices.
    fn graph(&self) -> Result<Graph, ScrubError> {
        let mut indices: HashMap<&str, usize> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if indices.insert(&node.name, index).is_some() {
                let name = node.name.clone();
                return Err(ScrubError::SameName { name });
            }
        }
        let mut graph = Graph {
            output: Vec::new(),
            nodes: vec![Vec::new(); self.nodes.len()],
        };
        for reads in &self.reads {
            let (reader, own) = match &reads.reader {
                None => (None, &mut graph.output),
                Some(name) => match indices.get(name.as_str()) {
                    Some(&index) => (Some(index), &mut graph.nodes[index]),
                    None => {
                        let reader = name.clone();
                        return Err(ScrubError::UnknownReader { reader });
                    }
                },
            };
            for name in &reads.nodes {
                let Some(&node) = indices.get(name.as_str()) else {
                    return Err(ScrubError::UnknownNode {
                        reader: self.reader_name(reader),
                        name: name.clone(),
                    });
                };
                if own.contains(&(reads.input, node)) {
                    return Err(ScrubError::ReadTwice {
                        reader: self.reader_name(reader),
                        name: name.clone(),
                    });
                }
                own.push((reads.input, node));
            }
        }
        Ok(graph)
    }

    fn check_cycles(&self, graph: &Graph) -> Result<(), ScrubError> {
        /// Follows reads from a node; `way` leads to it. Nodes in `done` lead to no cycle.
        fn follow(
            node: usize,
            graph: &Graph,
            way: &mut Vec<usize>,
            done: &mut HashSet<usize>,
        ) -> Option<Vec<usize>> {
            if let Some(start) = way.iter().position(|other| *other == node) {
                return Some([&way[start..], &[node]].concat());
            }
            if done.contains(&node) {
                return None;
            }
            way.push(node);
            for (_, read) in &graph.nodes[node] {
                if let Some(cycle) = follow(*read, graph, way, done) {
                    return Some(cycle);
                }
            }
            way.pop();
            done.insert(node);
            None
        }
        let mut done = HashSet::new();
        for node in 0..self.nodes.len() {
            if let Some(cycle) = follow(node, graph, &mut Vec::new(), &mut done) {
                let names = cycle.iter().map(|node| self.nodes[*node].name.clone());
                return Err(ScrubError::Cycle {
                    names: names.collect(),
                });
            }
        }
        Ok(())
    }

    /// Checks what one node, or the output, reads.
    fn check_reads(
        &self,
        reader: Option<usize>,
        reads: &[Read],
        dims: &ModelDims,
    ) -> Result<(), ScrubError> {
        let depth = match reader.map(|reader| &self.nodes[reader]) {
            None => output_depth(dims),
            Some(node) => {
                let (depth, expected) = reading(&node.place, dims);
                let by_head_input = |(input, _): &Read| input.is_some();
                let wrong = match expected {
                    Reading::Nothing => reads.first(),
                    Reading::Whole => reads.iter().find(|read| by_head_input(read)),
                    Reading::ByHead => reads.iter().find(|read| !by_head_input(read)),
                };
                if let Some((input, _)) = wrong {
                    return Err(ScrubError::NoSuchInput {
                        reader: node.name.clone(),
                        place: node.place.to_string(),
                        expected: match input {
                            Some(_) => "query, key and value (a head, or a layer's attention)",
                            None => "one input (an MLP)",
                        },
                    });
                }
                depth
            }
        };
        for (index, (input, read)) in reads.iter().enumerate() {
            let node = &self.nodes[*read];
            if let Part::Node(part) = node.place.part
                && part.depth(dims) >= depth
            {
                return Err(ScrubError::NotBefore {
                    reader: self.reader_name(reader),
                    name: node.name.clone(),
                    place: node.place.to_string(),
                });
            }
            for (other_input, other) in &reads[..index] {
                let other = &self.nodes[*other];
                let overlap = other_input == input
                    && other.place.part.overlaps(node.place.part)
                    && meet(&other.place.positions, &node.place.positions);
                if overlap {
                    return Err(ScrubError::Overlap {
                        reader: self.reader_name(reader),
                        first: other.name.clone(),
                        second: node.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Checks that the examples have the positions that nodes name.
    pub(super) fn check_positions(&self, tokens: &TokenBatch) -> Result<(), ScrubError> {
        for node in &self.nodes {
            if let Indices::Each(each) = &node.place.positions
                && each.len() != tokens.batch()
            {
                return Err(ScrubError::Positions {
                    name: node.name.clone(),
                    expected: tokens.batch(),
                    found: each.len(),
                });
            }
            for (example, length) in tokens.lengths().into_iter().enumerate() {
                let positions = node.place.positions.of(example, length);
                if let Some(&position) = positions.iter().find(|position| **position >= length) {
                    return Err(ScrubError::NoSuchPosition {
                        name: node.name.clone(),
                        example,
                        position,
                        length,
                    });
                }
            }
        }
        Ok(())
    }

    /// A reader, for error messages.
    pub(super) fn reader_name(&self, reader: Option<usize>) -> String {
        match reader {
            None => "the output".to_owned(),
            Some(reader) => format!("{:?}", self.nodes[reader].name),
        }
    }
}

/// How a part of the model reads the residual stream.
enum Reading {
    Nothing,
    Whole,
    ByHead,
}

/// Where and how a part of the model reads.
fn reading(place: &Place, dims: &ModelDims) -> (usize, Reading) {
    match place.part {
        Part::Stream | Part::Node(Node::Embedding) => (0, Reading::Nothing),
        Part::Node(node @ Node::Mlp { .. }) => (node.depth(dims), Reading::Whole),
        Part::Node(node) => (node.depth(dims), Reading::ByHead),
    }
}

impl Part {
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Node(node), Self::Node(other)) => node.overlaps(other),
            _ => true,
        }
    }
}
