//! Which writers each reader takes from the patched run, as weights of a sum.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::super::{Edge, EdgeGraph, GraphNode};

/// What the readers of a sublayer take, as weights of one matrix product.
pub(super) struct Rows<B: Backend> {
    /// `[circuit, row, 1 + slot]`: for each distinct input the weight of the ablated stream, which
    /// is 1, and of the change in each writer that has a [slot](Masks::slot) and comes before.
    pub(super) weights: Tensor<B, 3>,
    /// The nodes to compute.
    pub(super) nodes: Vec<NodeRows>,
}

/// A node to compute, and what it reads.
#[derive(Debug, PartialEq)]
pub(super) struct NodeRows {
    pub(super) node: GraphNode,
    /// Indices of the circuits in which it is computed.
    pub(super) circuits: Vec<usize>,
    /// `[input][circuit]`: rows of the weights; one input, or queries, keys and values.
    pub(super) rows: Vec<Vec<usize>>,
}

/// The edges of some circuits.
pub(super) trait Masks<B: Backend> {
    /// Number of circuits.
    fn circuits(&self) -> usize;

    /// Where the change in a writer is kept; `None` if no reader takes it.
    fn slot(&self, writer: usize) -> Option<usize>;

    /// Number of slots of the writers before this one.
    fn slots_before(&self, writer: usize) -> usize {
        (0..writer)
            .filter(|writer| self.slot(*writer).is_some())
            .count()
    }

    /// What readers that come after the same writers take; `None` if nobody needs any of them.
    fn rows(&self, readers: Range<usize>) -> Option<Rows<B>>;
}

/// Edges that are in a circuit or not.
pub(super) struct Chosen<'a, B: Backend> {
    graph: &'a EdgeGraph,
    /// `[circuit][edge]`
    members: &'a [&'a [bool]],
    /// `[circuit][writer]`: whether the logits depend on it in the circuit.
    needed: Vec<Vec<bool>>,
    slots: Vec<Option<usize>>,
    device: B::Device,
    dtype: DType,
}

impl<'a, B: Backend> Chosen<'a, B> {
    pub(super) fn new(
        graph: &'a EdgeGraph,
        members: &'a [&'a [bool]],
        device: &B::Device,
        dtype: DType,
    ) -> Self {
        let needed: Vec<Vec<bool>> = members
            .iter()
            .map(|members| needed(graph, members))
            .collect();
        let mut next = 0;
        let slots = (0..graph.writers().len()).map(|writer| {
            let is_needed = needed.iter().any(|needed| needed[writer]);
            is_needed.then(|| {
                next += 1;
                next - 1
            })
        });
        Self {
            slots: slots.collect(),
            graph,
            members,
            needed,
            device: device.clone(),
            dtype,
        }
    }

    /// The slots of the writers that a reader takes in a circuit.
    fn taken(&self, circuit: usize, reader: usize) -> Vec<usize> {
        let before = self.graph.before(reader);
        let Some(first) = self.graph.index(Edge { writer: 0, reader }) else {
            return Vec::new();
        };
        let own = &self.members[circuit][first..first + before];
        let slots = own.iter().zip(&self.slots);
        slots
            .filter_map(|(member, slot)| slot.filter(|_| *member))
            .collect()
    }
}

/// Whether the logits depend on each writer.
fn needed(graph: &EdgeGraph, members: &[bool]) -> Vec<bool> {
    let mut needed = vec![false; graph.writers().len()];
    let mut end = members.len();
    for reader in (0..graph.readers().len()).rev() {
        let start = end - graph.before(reader);
        let is_needed = match graph.reading_node(reader) {
            GraphNode::Writer(writer) => needed[writer],
            GraphNode::Logits => true,
        };
        if is_needed {
            for (needed, member) in needed.iter_mut().zip(&members[start..end]) {
                *needed |= member;
            }
        }
        end = start;
    }
    needed
}

impl<B: Backend> Masks<B> for Chosen<'_, B> {
    fn circuits(&self) -> usize {
        self.members.len()
    }

    fn slot(&self, writer: usize) -> Option<usize> {
        self.slots[writer]
    }

    fn rows(&self, readers: Range<usize>) -> Option<Rows<B>> {
        let circuits = self.members.len();
        let columns = 1 + self.slots_before(self.graph.before(readers.start));
        // The distinct inputs of each circuit.
        let mut distinct: Vec<HashMap<Vec<usize>, usize>> = vec![HashMap::new(); circuits];
        let mut nodes: Vec<NodeRows> = Vec::new();
        for (node, own) in by_node(self.graph, readers) {
            let is_needed = |circuit: &usize| match node {
                GraphNode::Writer(writer) => self.needed[*circuit][writer],
                GraphNode::Logits => true,
            };
            let computed: Vec<usize> = (0..circuits).filter(is_needed).collect();
            if computed.is_empty() {
                continue;
            }
            let rows = own.map(|reader| {
                let rows = computed.iter().map(|circuit| {
                    let rows = &mut distinct[*circuit];
                    let next = rows.len();
                    *rows.entry(self.taken(*circuit, reader)).or_insert(next)
                });
                rows.collect()
            });
            let rows = rows.collect();
            nodes.push(NodeRows {
                node,
                circuits: computed,
                rows,
            });
        }
        let rows = distinct.iter().map(HashMap::len).max().unwrap_or(0);
        if rows == 0 {
            return None;
        }
        let mut weights = vec![0.0_f32; circuits * rows * columns];
        for (circuit, distinct) in distinct.iter().enumerate() {
            for (taken, row) in distinct {
                let start = (circuit * rows + row) * columns;
                weights[start] = 1.0;
                for slot in taken {
                    weights[start + 1 + slot] = 1.0;
                }
            }
        }
        let data = TensorData::new(weights, [circuits, rows, columns]);
        let weights = Tensor::<B, 3>::from_data(data, (&self.device, DType::F32));
        Some(Rows {
            weights: weights.cast(self.dtype),
            nodes,
        })
    }
}

/// The nodes of some readers, each with its own ones, which are adjacent.
fn by_node(graph: &EdgeGraph, readers: Range<usize>) -> Vec<(GraphNode, Range<usize>)> {
    let mut nodes: Vec<(GraphNode, Range<usize>)> = Vec::new();
    for reader in readers {
        let node = graph.reading_node(reader);
        match nodes.last_mut() {
            Some((last, own)) if *last == node => own.end = reader + 1,
            _ => nodes.push((node, reader..reader + 1)),
        }
    }
    nodes
}

/// A weight for each edge, which may carry a gradient.
pub(super) struct Weighted<'a, B: Backend> {
    pub(super) graph: &'a EdgeGraph,
    /// `[circuit, edge]`
    pub(super) weights: Tensor<B, 2>,
}

impl<B: Backend> Masks<B> for Weighted<'_, B> {
    fn circuits(&self) -> usize {
        self.weights.dims()[0]
    }

    fn slot(&self, writer: usize) -> Option<usize> {
        Some(writer)
    }

    fn rows(&self, readers: Range<usize>) -> Option<Rows<B>> {
        let circuits = self.circuits();
        let first = readers.start;
        let start = self.graph.index(Edge {
            writer: 0,
            reader: first,
        })?;
        let (count, before) = (readers.len(), self.graph.before(first));
        let own = self.weights.clone().narrow(1, start, count * before);
        let own = own.reshape([circuits, count, before]);
        let ablated = Tensor::ones([circuits, count, 1], (&own.device(), own.dtype()));
        let nodes = by_node(self.graph, readers).into_iter();
        let nodes = nodes.map(|(node, own)| NodeRows {
            node,
            circuits: (0..circuits).collect(),
            rows: own.map(|reader| vec![reader - first; circuits]).collect(),
        });
        Some(Rows {
            weights: Tensor::cat(vec![ablated, own], 2),
            nodes: nodes.collect(),
        })
    }
}

/// The readers of a graph that come after the same writers, sublayer by sublayer: the attention of
/// each layer and its MLP, and last the logits.
pub(super) fn sublayers(graph: &EdgeGraph) -> Vec<Range<usize>> {
    let heads = 3 * graph.heads();
    let of_layer = heads + 1;
    let layers = (0..graph.layers()).flat_map(|layer| {
        let start = layer * of_layer;
        [start..start + heads, start + heads..start + of_layer]
    });
    let logits = graph.layers() * of_layer;
    let last = logits..logits + 1;
    layers.chain(std::iter::once(last)).collect()
}

/// The distinct circuits among some, by index, and for each the one it equals.
pub(super) fn distinct(members: &[&[bool]]) -> (Vec<usize>, Vec<usize>) {
    let mut known: HashMap<&[bool], usize> = HashMap::new();
    let mut first = Vec::new();
    let mut place = Vec::with_capacity(members.len());
    for (index, members) in members.iter().enumerate() {
        let next = known.len();
        let own = *known.entry(members).or_insert(next);
        if own == next {
            first.push(index);
        }
        place.push(own);
    }
    (first, place)
}

/// How many times as many edges the largest circuit of a stack may have as the smallest.
const ALIKE: usize = 4;

/// Circuits in stacks of a similar size. All circuits of a stack take as many rows and writers as
/// the largest one, so one large circuit would make small ones expensive.
///
/// - edges: number of edges of each circuit, increasing
/// - most: number of circuits in a stack
pub(super) fn stacks(edges: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut stacks: Vec<Range<usize>> = Vec::new();
    for (index, count) in edges.iter().enumerate() {
        match stacks.last_mut() {
            Some(last) if last.len() < most && *count <= ALIKE * edges[last.start] => {
                last.end = index + 1;
            }
            _ => stacks.push(index..index + 1),
        }
    }
    stacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_hold_circuits_of_a_similar_size() {
        let edges = [0, 0, 1, 3, 4, 5, 16, 17, 100];
        assert_eq!(stacks(&edges, 9), [0..2, 2..5, 5..8, 8..9]);
        assert_eq!(stacks(&edges, 2), [0..2, 2..4, 4..6, 6..8, 8..9]);
        assert!(stacks(&[], 2).is_empty());
    }

    #[test]
    fn equal_circuits_are_one() {
        let members: [&[bool]; 4] = [&[true, false], &[true, true], &[true, false], &[true, true]];
        assert_eq!(distinct(&members), (vec![0, 1], vec![0, 1, 0, 1]));
    }
}
