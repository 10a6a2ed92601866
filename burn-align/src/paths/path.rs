//! Paths through the residual graph.

use std::fmt;

use burn_align_models::ModelDims;

use super::{Hop, Node, PathError};
use crate::engine::Indices;

/// A path through the residual graph: from a node whose whole output comes from the source, through
/// nodes that compute with it, to the logits.
///
/// ```
/// use burn_align::paths::{HeadInput, Hop, Node, Path};
///
/// // Head 0.3 tells head 1.0 which key to look at.
/// let key = Hop::Head { layer: 1, head: 0, input: HeadInput::Key };
/// let path = Path::new(Node::Head { layer: 0, head: 3 }).through(key);
/// assert_eq!(path.to_string(), "0.3 → 1.0.k → logits");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    start: Node,
    hops: Vec<Hop>,
    /// For the start and each hop: the positions of its output that the path uses.
    positions: Vec<Indices>,
}

impl Path {
    /// From this node directly to the logits, at all positions.
    pub fn new(start: Node) -> Self {
        Self {
            start,
            hops: Vec::new(),
            positions: vec![Indices::All],
        }
    }

    /// Restricts the path to these positions of its last node's output.
    pub fn at(mut self, positions: Indices) -> Self {
        self.positions.pop();
        self.positions.push(positions);
        self
    }

    /// Extends the path by one more node before the logits.
    pub fn through(mut self, hop: Hop) -> Self {
        self.hops.push(hop);
        self.positions.push(Indices::All);
        self
    }

    /// Where it starts.
    pub fn start(&self) -> Node {
        self.start
    }

    /// The nodes that it passes through.
    pub fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// For all nodes, the start first: the positions of its output that the path uses.
    pub fn positions(&self) -> &[Indices] {
        &self.positions
    }

    /// The nodes, the start first.
    pub(crate) fn node(&self, index: usize) -> Node {
        match index {
            0 => self.start,
            _ => self.hops[index - 1].node(),
        }
    }

    /// Checks that a model has this path.
    ///
    /// # Errors
    /// If it lacks one of the nodes, or one does not come after the previous one.
    pub fn check(&self, dims: &ModelDims) -> Result<(), PathError> {
        self.start.check(dims)?;
        let mut sender = self.start;
        for hop in &self.hops {
            hop.node().check(dims)?;
            if hop.node().depth(dims) <= sender.depth(dims) {
                return Err(PathError::NotAfter {
                    sender,
                    receiver: hop.to_string(),
                });
            }
            sender = hop.node();
        }
        Ok(())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [self.start.to_string()]
            .into_iter()
            .chain(self.hops.iter().map(Hop::to_string));
        for (name, positions) in names.zip(&self.positions) {
            f.write_str(&name)?;
            match positions {
                Indices::All => {}
                Indices::Same(positions) => write!(f, "@{positions:?}")?,
                Indices::Each(_) => f.write_str("@[…]")?,
            }
            f.write_str(" → ")?;
        }
        f.write_str("logits")
    }
}
