//! Validation of streams and their inputs.

use burn_align_models::{ModelDims, TokenBatch};

use super::{Change, Node, PathError, Reach, Stream, Value};
use crate::engine::Indices;

/// Checks that inputs have the same number of examples, and the same lengths.
pub(crate) fn check_lengths(inputs: &[&TokenBatch]) -> Result<(), PathError> {
    let Some(first) = inputs.first() else {
        return Ok(());
    };
    for (input, tokens) in inputs.iter().enumerate() {
        if tokens.batch() != first.batch() {
            return Err(PathError::Batch {
                input,
                expected: first.batch(),
                found: tokens.batch(),
            });
        }
        let lengths = first.lengths().into_iter().zip(tokens.lengths());
        for (example, (expected, found)) in lengths.enumerate() {
            if found != expected {
                return Err(PathError::Lengths {
                    input,
                    example,
                    expected,
                    found,
                });
            }
        }
    }
    Ok(())
}

impl Stream {
    /// Checks that a model's logits can read this stream, given the number of inputs. Positions are
    /// checked with the plan.
    ///
    /// # Errors
    /// If a node or an input is unknown, a node reads from one that is not before it, a value does
    /// not match its node's kind, or two changes overlap.
    pub fn check(&self, dims: &ModelDims, inputs: usize) -> Result<(), PathError> {
        self.check_for(None, dims, inputs)
    }

    /// Like [`check`](Self::check), for a reader or for the logits.
    fn check_for(
        &self,
        reader: Option<Node>,
        dims: &ModelDims,
        inputs: usize,
    ) -> Result<(), PathError> {
        check_input(self.input, inputs)?;
        for (index, change) in self.changes.iter().enumerate() {
            let node = change.node;
            node.check(dims)?;
            if let Some(reader) = reader.filter(|reader| reader.depth(dims) <= node.depth(dims)) {
                return Err(PathError::NotAfter {
                    sender: node,
                    receiver: reader.to_string(),
                });
            }
            change.value.check(node)?;
            if let Value::Clean(input) = change.value {
                check_input(input, inputs)?;
            }
            for (_, stream) in change.value.streams() {
                stream.check_for(Some(node), dims, inputs)?;
            }
            for other in &self.changes[..index] {
                if overlap(other, change) {
                    return Err(PathError::Overlap {
                        first: other.node,
                        second: node,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Value {
    /// Checks that a node can have this output.
    fn check(&self, node: Node) -> Result<(), PathError> {
        let expected = match node {
            Node::Embedding => "a clean run",
            Node::Attention { .. } | Node::Head { .. } => "attention",
            Node::Mlp { .. } => "an MLP",
        };
        let found = match self {
            Self::Clean(_) => return Ok(()),
            Self::Attention { .. } => "attention",
            Self::Mlp(_) => "an MLP",
        };
        if found == expected {
            return Ok(());
        }
        Err(PathError::WrongValue {
            node,
            expected,
            found,
        })
    }
}

fn check_input(found: usize, count: usize) -> Result<(), PathError> {
    match found < count {
        true => Ok(()),
        false => Err(PathError::NoSuchInput { found, count }),
    }
}

/// Whether two changes of a stream concern the same output. A reader may see a different output
/// than the run, but not a different head of an attention that was replaced as a whole.
fn overlap(a: &Change, b: &Change) -> bool {
    let whole = |change: &Change| {
        change.reach == Reach::Run && matches!(change.node, Node::Attention { .. })
    };
    let in_conflict = a.reach == b.reach || (a.node != b.node && (whole(a) || whole(b)));
    in_conflict && a.node.overlaps(b.node) && meet(&a.positions, &b.positions)
}

/// Whether any example has a position in both.
pub(crate) fn meet(a: &Indices, b: &Indices) -> bool {
    let common = |a: &[usize], b: &[usize]| a.iter().any(|position| b.contains(position));
    match (a, b) {
        (Indices::All, _) | (_, Indices::All) => true,
        (Indices::Same(a), Indices::Same(b)) => common(a, b),
        (Indices::Same(a), Indices::Each(each)) | (Indices::Each(each), Indices::Same(a)) => {
            each.iter().any(|b| common(a, b))
        }
        (Indices::Each(a), Indices::Each(b)) => a.iter().zip(b).any(|(a, b)| common(a, b)),
    }
}
