//! Nodes of the residual graph, and the inputs by which a path enters them.

use std::fmt;

use burn_align_models::{ModelDims, Site};
use serde::{Deserialize, Serialize};

use super::PathError;

/// A node that adds to the residual stream.
///
/// As text, head 6 of layer 9 is `9.6`, all heads of layer 9 are `a9`, and its MLP is `m9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// Token and position embeddings.
    Embedding,
    /// All heads of a layer and the bias of their output projection.
    Attention {
        /// The layer.
        layer: usize,
    },
    /// One head.
    Head {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// The MLP of a layer.
    Mlp {
        /// The layer.
        layer: usize,
    },
}

impl Node {
    /// Every head of a model.
    pub fn heads(dims: &ModelDims) -> Vec<Self> {
        let layers = (0..dims.layers).flat_map(|layer| {
            let heads = 0..dims.heads;
            heads.map(move |head| Self::Head { layer, head })
        });
        layers.collect()
    }

    /// The embedding, and the attention and the MLP of every layer: nodes whose outputs sum to the
    /// whole residual stream.
    pub fn all(dims: &ModelDims) -> Vec<Self> {
        let layers =
            (0..dims.layers).flat_map(|layer| [Self::Attention { layer }, Self::Mlp { layer }]);
        [Self::Embedding].into_iter().chain(layers).collect()
    }

    /// How many nodes come before it on a chain: 0 for the embedding.
    pub(crate) fn depth(self, dims: &ModelDims) -> usize {
        match self {
            Self::Embedding => 0,
            // Both read the block's input.
            Self::Attention { layer } | Self::Head { layer, .. } | Self::Mlp { layer }
                if dims.parallel =>
            {
                layer + 1
            }
            Self::Attention { layer } | Self::Head { layer, .. } => 2 * layer + 1,
            Self::Mlp { layer } => 2 * layer + 2,
        }
    }

    /// Where its output enters the residual stream; for a head, where that of all heads does.
    pub(crate) fn output(self, dims: &ModelDims) -> Site {
        match self {
            Self::Embedding => Site::Embedding,
            Self::Attention { layer } | Self::Head { layer, .. } => {
                Site::Block(layer, dims.added_by_attention())
            }
            Self::Mlp { layer } => Site::Block(layer, dims.added_by_mlp()),
        }
    }

    /// Whether both contribute to the same output.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self == other
            || matches!(
                (self, other),
                (Self::Attention { layer: a }, Self::Head { layer: b, .. })
                | (Self::Head { layer: a, .. }, Self::Attention { layer: b }) if a == b
            )
    }

    /// Checks that a model has this node.
    pub(crate) fn check(self, dims: &ModelDims) -> Result<(), PathError> {
        let (layer, head) = match self {
            Self::Embedding => return Ok(()),
            Self::Attention { layer } | Self::Mlp { layer } => (layer, 0),
            Self::Head { layer, head } => (layer, head),
        };
        if layer < dims.layers && head < dims.heads {
            return Ok(());
        }
        Err(PathError::NoSuchNode {
            node: self,
            layers: dims.layers,
            heads: dims.heads,
        })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Attention { layer } => write!(f, "a{layer}"),
            Self::Head { layer, head } => write!(f, "{layer}.{head}"),
            Self::Mlp { layer } => write!(f, "m{layer}"),
        }
    }
}

/// The inputs of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadInput {
    /// What queries are computed from.
    Query,
    /// What keys are computed from.
    Key,
    /// What values are computed from.
    Value,
}

impl HeadInput {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];

    fn letter(self) -> char {
        match self {
            Self::Query => 'q',
            Self::Key => 'k',
            Self::Value => 'v',
        }
    }
}

impl fmt::Display for HeadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// A node on a [`Path`](super::Path), and the input by which the path enters it.
///
/// As text, it is the node followed by `.q`, `.k` or `.v`: `9.6.q`, `a9.v`, `m9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// All heads of a layer.
    Attention {
        /// The layer.
        layer: usize,
        /// The input.
        input: HeadInput,
    },
    /// One head.
    Head {
        /// The layer.
        layer: usize,
        /// The query head. Keys and values that it shares with other query heads change for this
        /// one only.
        head: usize,
        /// The input.
        input: HeadInput,
    },
    /// The MLP of a layer.
    Mlp {
        /// The layer.
        layer: usize,
    },
}

impl Hop {
    /// The node.
    pub fn node(self) -> Node {
        match self {
            Self::Attention { layer, .. } => Node::Attention { layer },
            Self::Head { layer, head, .. } => Node::Head { layer, head },
            Self::Mlp { layer } => Node::Mlp { layer },
        }
    }

    /// The input of a head or of the attention.
    pub(crate) fn input(self) -> Option<HeadInput> {
        match self {
            Self::Attention { input, .. } | Self::Head { input, .. } => Some(input),
            Self::Mlp { .. } => None,
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.input() {
            Some(input) => write!(f, "{}.{input}", self.node()),
            None => self.node().fmt(f),
        }
    }
}
