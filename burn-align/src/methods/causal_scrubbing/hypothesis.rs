//! Hypotheses: which parts of a model matter, and which feature each of them computes.

use std::fmt;

use super::Feature;
use crate::engine::Indices;
use crate::paths::{HeadInput, Node};

/// The part of the model that a node of a [`Hypothesis`] is about: what a reader gets from it on
/// the direct path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// What the reader gets.
    pub part: Part,
    /// The positions. [`Indices::Each`] has a list for each example of the dataset; the list of the
    /// scrubbed example counts, whichever example is the donor.
    pub positions: Indices,
}

/// What a reader of the residual stream gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The output of one node.
    Node(Node),
    /// Everything: the sum of what all nodes before the reader have added.
    Stream,
}

impl Place {
    /// Everything that the reader gets.
    pub fn stream() -> Self {
        Self {
            part: Part::Stream,
            positions: Indices::All,
        }
    }

    /// Restricts the part to these positions. At other positions it does not matter.
    pub fn at(mut self, positions: Indices) -> Self {
        self.positions = positions;
        self
    }
}

impl From<Node> for Place {
    /// The output of a node at all positions.
    fn from(node: Node) -> Self {
        Self {
            part: Part::Node(node),
            positions: Indices::All,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Node(node) => node.fmt(f)?,
            Part::Stream => f.write_str("stream")?,
        }
        match &self.positions {
            Indices::All => Ok(()),
            Indices::Same(positions) => write!(f, "@{positions:?}"),
            Indices::Each(_) => f.write_str("@[…]"),
        }
    }
}

/// What a model is claimed to compute: a graph of nodes. Each node stands for a part of the model
/// and names the feature of the input (of type `E`) that this part computes.
///
/// - The graph ends at the output, the model's logits.
/// - A node declares which other nodes it reads. Everything else it reads is claimed not to matter.
/// - A node that reads no other node is claimed to compute its feature somehow: its part of the
///   model is run on a whole input.
/// - If the output reads nothing, this is the empty hypothesis: nothing matters.
///
/// ```
/// use burn_align::engine::Indices;
/// use burn_align::methods::{Feature, Hypothesis, Place};
/// use burn_align::paths::{HeadInput, Node};
///
/// // Head 1.0 looks for the place after the last token's first mention, as head 0.3 reports it.
/// let before = Feature::new("tokens before", |tokens: &Vec<u32>| tokens[..3].to_vec());
/// let last = Feature::new("last token", |tokens: &Vec<u32>| tokens[3]);
/// let all = Feature::new("all tokens", |tokens: &Vec<u32>| tokens.clone());
/// let hypothesis = Hypothesis::new()
///     .node("finds", Node::Head { layer: 1, head: 0 }, all)
///     .node("tells", Node::Head { layer: 0, head: 3 }, before)
///     .node("asks", Place::stream().at(Indices::Same(vec![3])), last)
///     .output_reads(["finds"])
///     .head_reads("finds", HeadInput::Key, ["tells"])
///     .head_reads("finds", HeadInput::Query, ["asks"]);
/// # let _ = hypothesis;
/// ```
#[doc(alias = "interpretation graph")]
#[doc(alias = "correspondence")]
pub struct Hypothesis<E> {
    pub(super) nodes: Vec<HypothesisNode<E>>,
    pub(super) output: Option<Feature<E>>,
    pub(super) reads: Vec<Reads>,
}

#[derive(Clone, Debug)]
pub(super) struct HypothesisNode<E> {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) feature: Feature<E>,
}

/// A declaration that a node reads others.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    /// `None` for the output.
    pub(super) reader: Option<String>,
    pub(super) input: Option<HeadInput>,
    pub(super) nodes: Vec<String>,
}

impl<E> Default for Hypothesis<E> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            output: None,
            reads: Vec::new(),
        }
    }
}

impl<E> Clone for Hypothesis<E> {
    fn clone(&self) -> Self {
        let nodes = self.nodes.iter().map(|node| HypothesisNode {
            name: node.name.clone(),
            place: node.place.clone(),
            feature: node.feature.clone(),
        });
        Self {
            nodes: nodes.collect(),
            output: self.output.clone(),
            reads: self.reads.clone(),
        }
    }
}

impl<E> fmt::Debug for Hypothesis<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| (&node.name, node.place.to_string(), &node.feature));
        f.debug_struct("Hypothesis")
            .field("nodes", &nodes.collect::<Vec<_>>())
            .field("output", &self.output)
            .field("reads", &self.reads)
            .finish()
    }
}

impl<E> Hypothesis<E> {
    /// The empty hypothesis: nothing matters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node: the feature that a part of the model computes.
    pub fn node(
        mut self,
        name: impl Into<String>,
        place: impl Into<Place>,
        feature: Feature<E>,
    ) -> Self {
        self.nodes.push(HypothesisNode {
            name: name.into(),
            place: place.into(),
            feature,
        });
        self
    }

    /// Claims that the logits are a function of this feature alone: the run that is compared with
    /// an example's label starts from another example that agrees with it. By default it starts
    /// from the example itself.
    pub fn output_feature(mut self, feature: Feature<E>) -> Self {
        self.output = Some(feature);
        self
    }

    /// Declares which nodes the logits read. Further calls add to them.
    pub fn output_reads(self, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.add_reads(None, None, nodes)
    }

    /// Declares which nodes an MLP reads. Further calls add to them.
    pub fn mlp_reads(
        self,
        reader: impl Into<String>,
        nodes: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.add_reads(Some(reader.into()), None, nodes)
    }

    /// Declares which nodes the queries, keys or values of a head, or of a layer's attention, are
    /// computed from. Further calls add to them.
    pub fn head_reads(
        self,
        reader: impl Into<String>,
        input: HeadInput,
        nodes: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.add_reads(Some(reader.into()), Some(input), nodes)
    }

    fn add_reads(
        mut self,
        reader: Option<String>,
        input: Option<HeadInput>,
        nodes: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.reads.push(Reads {
            reader,
            input,
            nodes: nodes.into_iter().map(Into::into).collect(),
        });
        self
    }
}
