//! The residual graph: what writes to the residual stream, what reads it, and the edges between.

use std::fmt;

use burn::tensor::backend::Backend;
use burn_align_models::{
    AlignableTransformer, Component, LayerLayout, Reads, Site, SublayerKind, SublayerOutput,
};

use super::CircuitError;
use crate::paths::{HeadInput, Node};

/// An input that reads the residual stream, before any norm of its own.
///
/// Keys and values are read separately for each *query* head. Under grouped-query attention, query
/// heads of a group compute the same keys from the same stream, but an edge reaches one of them
/// only (the "ungrouped" graph of MIB, arXiv 2504.13151).
///
/// As text: `a0.h1<q>`, `m0`, `logits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reader {
    /// What a head's queries are computed from.
    Query {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// What a head's keys are computed from.
    Key {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// What a head's values are computed from.
    Value {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// What the MLP of a layer reads.
    Mlp {
        /// The layer.
        layer: usize,
    },
    /// What the final norm reads.
    Logits,
}

impl Reader {
    /// An input of a head.
    pub fn of_head(layer: usize, head: usize, input: HeadInput) -> Self {
        match input {
            HeadInput::Query => Self::Query { layer, head },
            HeadInput::Key => Self::Key { layer, head },
            HeadInput::Value => Self::Value { layer, head },
        }
    }

    /// The layer; `None` for the logits.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Query { layer, .. }
            | Self::Key { layer, .. }
            | Self::Value { layer, .. }
            | Self::Mlp { layer } => Some(layer),
            Self::Logits => None,
        }
    }

    /// The node whose input it is; `None` for the logits, which write nothing.
    pub fn node(self) -> Option<Node> {
        match self {
            Self::Query { layer, head }
            | Self::Key { layer, head }
            | Self::Value { layer, head } => Some(Node::Head { layer, head }),
            Self::Mlp { layer } => Some(Node::Mlp { layer }),
            Self::Logits => None,
        }
    }

    /// Which input of a head it is, if it is one.
    pub fn input(self) -> Option<HeadInput> {
        match self {
            Self::Query { .. } => Some(HeadInput::Query),
            Self::Key { .. } => Some(HeadInput::Key),
            Self::Value { .. } => Some(HeadInput::Value),
            Self::Mlp { .. } | Self::Logits => None,
        }
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.node(), self.input()) {
            (Some(node), Some(input)) => write!(f, "{}<{input}>", writer_name(node)),
            (Some(node), None) => f.write_str(&writer_name(node)),
            (None, _) => f.write_str(LOGITS),
        }
    }
}

/// An edge: indices of what writes and what reads, in [`EdgeGraph::writers`] and
/// [`EdgeGraph::readers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// Index of the writer.
    pub writer: usize,
    /// Index of the reader.
    pub reader: usize,
}

/// A node of the graph: a writer, or the logits, which only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GraphNode {
    /// The writer with this index in [`EdgeGraph::writers`].
    Writer(usize),
    /// The logits.
    Logits,
}

const LOGITS: &str = "logits";

/// The residual graph of a transformer at the granularity of heads and MLPs (Elhage et al. 2021;
/// Wang et al. 2022, arXiv 2211.00593; as in MIB, arXiv 2504.13151).
///
/// Every reader has an edge from each writer before it. With `L` layers of `H` heads there are
/// `1 + L(H + 1)` writers and `L(3H + 1) + 1` readers; GPT-2 small has 32,491 edges:
///
/// ```
/// use burn_align::methods::circuits::EdgeGraph;
///
/// let graph = EdgeGraph::new(12, 12, false, 768);
/// assert_eq!(graph.writers().len(), 157);
/// assert_eq!(graph.edge_count(), 32_491);
/// let edge = graph.parse("a9.h9->a10.h7<q>").unwrap();
/// assert_eq!(graph.name(edge), "a9.h9->a10.h7<q>");
/// assert_eq!(graph.parse("a10.h7->a9.h9<q>"), None);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeGraph {
    layers: usize,
    heads: usize,
    parallel: bool,
    d_model: usize,
    writers: Vec<Node>,
    readers: Vec<Reader>,
    /// For each reader, the number of edges to readers before it; then that of all edges.
    offsets: Vec<usize>,
}

impl EdgeGraph {
    /// The graph of a model.
    ///
    /// # Errors
    /// If its heads cannot be told apart, or its layers are not attention and an MLP that add to
    /// the residual stream.
    pub fn of<B: Backend, M: AlignableTransformer<B>>(model: &M) -> Result<Self, CircuitError> {
        let layout = model.layout();
        let dims = layout.dims();
        let mut parallel = None;
        for (layer, own) in layout.layers().iter().enumerate() {
            let own = is_parallel(layer, own)?;
            if *parallel.get_or_insert(own) != own {
                return Err(CircuitError::NotResidual {
                    layer,
                    expected: "both reading the layer's input in all layers or in none",
                    found: "layers of both kinds".to_owned(),
                });
            }
        }
        let Some(parallel) = parallel else {
            return Err(CircuitError::Nothing { what: "layer" });
        };
        if model.by_head().is_none() {
            return Err(CircuitError::NoHeads);
        }
        let mut needed = vec![Site::Embedding];
        for layer in 0..dims.layers {
            let components = [
                Component::BlockInput,
                Component::AttentionValueOutput,
                Component::AttentionOutput,
                dims.read_by_mlp(),
                Component::MlpInput,
                dims.added_by_mlp(),
            ];
            needed.extend(components.map(|component| Site::Block(layer, component)));
        }
        needed.push(Site::Block(dims.layers - 1, Component::BlockOutput));
        if let Some(lacks) = needed.into_iter().find(|it| layout.site(*it).is_none()) {
            return Err(CircuitError::NoSite { site: lacks });
        }
        Ok(Self::new(dims.layers, dims.heads, parallel, dims.d_model))
    }

    /// The graph of a transformer with these sizes.
    ///
    /// - parallel: whether an MLP reads what the attention of its layer reads, so that it has no
    ///   edge from its heads
    pub fn new(layers: usize, heads: usize, parallel: bool, d_model: usize) -> Self {
        let mut writers = vec![Node::Embedding];
        let mut readers = Vec::new();
        let mut offsets = vec![0];
        let mut edges = 0;
        let mut reads = |reader: Reader, before: usize| {
            readers.push(reader);
            edges += before;
            offsets.push(edges);
        };
        for layer in 0..layers {
            let before = writers.len();
            for head in 0..heads {
                for input in HeadInput::ALL {
                    reads(Reader::of_head(layer, head, input), before);
                }
                writers.push(Node::Head { layer, head });
            }
            let before = if parallel { before } else { writers.len() };
            reads(Reader::Mlp { layer }, before);
            writers.push(Node::Mlp { layer });
        }
        reads(Reader::Logits, writers.len());
        Self {
            layers,
            heads,
            parallel,
            d_model,
            writers,
            readers,
            offsets,
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of query heads of a layer.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Whether an MLP reads what the attention of its layer reads.
    pub fn parallel(&self) -> bool {
        self.parallel
    }

    /// Width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// What writes to the residual stream, in order: the embedding, then for each layer its heads
    /// and its MLP.
    pub fn writers(&self) -> &[Node] {
        &self.writers
    }

    /// What reads the residual stream, in order: for each layer, queries, keys and values of each
    /// head, and the MLP; then the logits.
    pub fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// The number of writers that a reader has edges from. They are the first ones.
    ///
    /// # Panics
    /// If there is no such reader.
    pub fn before(&self, reader: usize) -> usize {
        self.offsets[reader + 1] - self.offsets[reader]
    }

    /// Number of edges.
    pub fn edge_count(&self) -> usize {
        self.offsets.last().copied().unwrap_or_default()
    }

    /// All edges: reader by reader, the writers of each in order.
    pub fn edges(&self) -> impl Iterator<Item = Edge> {
        let readers = 0..self.readers.len();
        readers.flat_map(move |reader| {
            (0..self.before(reader)).map(move |writer| Edge { writer, reader })
        })
    }

    /// The place of an edge among [all edges](Self::edges); `None` if the graph does not have it.
    pub fn index(&self, edge: Edge) -> Option<usize> {
        let has = edge.reader < self.readers.len() && edge.writer < self.before(edge.reader);
        has.then(|| self.offsets[edge.reader] + edge.writer)
    }

    /// The edge at this place among [all edges](Self::edges); `None` if there are not as many.
    pub fn edge(&self, index: usize) -> Option<Edge> {
        if index >= self.edge_count() {
            return None;
        }
        let reader = self.offsets.partition_point(|offset| *offset <= index) - 1;
        Some(Edge {
            writer: index - self.offsets[reader],
            reader,
        })
    }

    /// Fails if the graph does not have an edge.
    pub(super) fn check(&self, edge: Edge) -> Result<usize, CircuitError> {
        self.index(edge).ok_or(CircuitError::NoSuchEdge {
            writer: edge.writer,
            reader: edge.reader,
            writers: self.writers.len(),
            readers: self.readers.len(),
        })
    }

    /// The index of a writer.
    pub fn writer(&self, node: Node) -> Option<usize> {
        let [layers, heads] = [self.layers, self.heads];
        match node {
            Node::Embedding => Some(0),
            Node::Head { layer, head } if layer < layers && head < heads => {
                Some(1 + layer * (heads + 1) + head)
            }
            Node::Mlp { layer } if layer < layers => Some(1 + layer * (heads + 1) + heads),
            Node::Head { .. } | Node::Mlp { .. } | Node::Attention { .. } => None,
        }
    }

    /// The index of a reader.
    pub fn reader(&self, reader: Reader) -> Option<usize> {
        let (layers, heads) = (self.layers, self.heads);
        let of_layer = 3 * heads + 1;
        let of_head = |layer: usize, head: usize, input: usize| {
            (layer < layers && head < heads).then_some(layer * of_layer + 3 * head + input)
        };
        match reader {
            Reader::Query { layer, head } => of_head(layer, head, 0),
            Reader::Key { layer, head } => of_head(layer, head, 1),
            Reader::Value { layer, head } => of_head(layer, head, 2),
            Reader::Mlp { layer } => (layer < layers).then_some((layer + 1) * of_layer - 1),
            Reader::Logits => Some(layers * of_layer),
        }
    }

    /// All nodes: the writers, then the logits.
    pub fn nodes(&self) -> impl Iterator<Item = GraphNode> + use<> {
        let writers = (0..self.writers.len()).map(GraphNode::Writer);
        writers.chain([GraphNode::Logits])
    }

    /// The node that reads through a reader.
    ///
    /// # Panics
    /// If there is no such reader.
    pub fn reading_node(&self, reader: usize) -> GraphNode {
        let node = self.readers[reader].node();
        let writer = node.and_then(|node| self.writer(node));
        writer.map_or(GraphNode::Logits, GraphNode::Writer)
    }

    /// The name of a node in MIB's files: `input`, `a0.h0`, `m0`, `logits`.
    ///
    /// # Panics
    /// If there is no such writer.
    pub fn node_name(&self, node: GraphNode) -> String {
        match node {
            GraphNode::Writer(writer) => writer_name(self.writers[writer]),
            GraphNode::Logits => LOGITS.to_owned(),
        }
    }

    /// The node of this name.
    pub fn parse_node(&self, name: &str) -> Option<GraphNode> {
        match name {
            LOGITS => Some(GraphNode::Logits),
            name => Some(GraphNode::Writer(self.writer(parse_writer(name)?)?)),
        }
    }

    /// The name of an edge in MIB's files: `input->a0.h0<q>`, `a0.h0->m0`, `m11->logits`.
    ///
    /// # Panics
    /// If there is no such writer or reader.
    pub fn name(&self, edge: Edge) -> String {
        let writer = writer_name(self.writers[edge.writer]);
        format!("{writer}->{}", self.readers[edge.reader])
    }

    /// The edge of this name; `None` if the graph has none.
    pub fn parse(&self, name: &str) -> Option<Edge> {
        let (writer, reader) = name.split_once("->")?;
        let edge = Edge {
            writer: self.writer(parse_writer(writer)?)?,
            reader: self.reader(parse_reader(reader)?)?,
        };
        self.index(edge).map(|_index| edge)
    }
}

/// Whether the MLP of a layer reads what its attention reads.
fn is_parallel(layer: usize, layout: &LayerLayout) -> Result<bool, CircuitError> {
    let [attention, mlp] = layout.sublayers() else {
        return Err(CircuitError::NotResidual {
            layer,
            expected: "two sublayers",
            found: format!("{} sublayers", layout.sublayers().len()),
        });
    };
    for (sublayer, kind) in [
        (attention, SublayerKind::Attention),
        (mlp, SublayerKind::Mlp),
    ] {
        let adds = matches!(sublayer.output(), SublayerOutput::Adds(_));
        if sublayer.kind() != kind || !adds {
            return Err(CircuitError::NotResidual {
                layer,
                expected: "both of which add to the residual stream",
                found: format!("the sublayer `{}`", sublayer.name()),
            });
        }
    }
    Ok(mlp.reads() == Reads::LayerInput)
}

fn writer_name(node: Node) -> String {
    match node {
        Node::Embedding => "input".to_owned(),
        Node::Head { layer, head } => format!("a{layer}.h{head}"),
        Node::Attention { layer } => format!("a{layer}"),
        Node::Mlp { layer } => format!("m{layer}"),
    }
}

fn parse_writer(name: &str) -> Option<Node> {
    if name == "input" {
        return Some(Node::Embedding);
    }
    if let Some(layer) = name.strip_prefix('m') {
        let layer = number(layer)?;
        return Some(Node::Mlp { layer });
    }
    let (layer, head) = name.strip_prefix('a')?.split_once(".h")?;
    Some(Node::Head {
        layer: number(layer)?,
        head: number(head)?,
    })
}

fn parse_reader(name: &str) -> Option<Reader> {
    if name == LOGITS {
        return Some(Reader::Logits);
    }
    let Some((node, input)) = name.strip_suffix('>').and_then(|name| name.split_once('<')) else {
        let Node::Mlp { layer } = parse_writer(name)? else {
            return None;
        };
        return Some(Reader::Mlp { layer });
    };
    let Node::Head { layer, head } = parse_writer(node)? else {
        return None;
    };
    let mut inputs = HeadInput::ALL.into_iter();
    let input = inputs.find(|other| other.to_string() == input)?;
    Some(Reader::of_head(layer, head, input))
}

/// A number as it is written in names: without sign or leading zeros.
fn number(text: &str) -> Option<usize> {
    let number: usize = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
