//! What can be wrong with nodes, paths, streams and patches.

use super::Node;
use crate::engine::PlanError;

/// Why paths cannot be patched. All of it is found before anything is computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// A node that the model does not have.
    #[error("{node}: the model has no such node; it has {layers} layers of {heads} heads")]
    NoSuchNode {
        /// The node.
        node: Node,
        /// Number of the model's layers.
        layers: usize,
        /// Number of its query heads.
        heads: usize,
    },
    /// A key-value head that the model does not have.
    #[error(
        "{receiver}: expected a key-value head below {kv_heads}, found {found}; query heads \
         share them"
    )]
    NoSuchKvHead {
        /// The receiver, in words.
        receiver: String,
        /// The head.
        found: usize,
        /// Number of key-value heads.
        kv_heads: usize,
    },
    /// A node that reads the stream before its sender adds to it.
    #[error(
        "{receiver} does not come after {sender}: expected a node that reads the residual stream \
         after {sender} has added to it"
    )]
    NotAfter {
        /// The node that adds.
        sender: Node,
        /// The node that should read.
        receiver: String,
    },
    /// Two changes of the same output at the same position.
    #[error(
        "{first} and {second} change the same output at the same position, for the same reader; \
         join them, or name positions that differ"
    )]
    Overlap {
        /// One of them.
        first: Node,
        /// The other one.
        second: Node,
    },
    /// A value that this kind of node cannot compute.
    #[error("{node}: expected a value computed by {expected}, found one by {found}")]
    WrongValue {
        /// The node.
        node: Node,
        /// What computes the node's output.
        expected: &'static str,
        /// What would compute the value.
        found: &'static str,
    },
    /// An unknown input.
    #[error("input {found}: there are {count}")]
    NoSuchInput {
        /// Its index.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// Inputs of different sizes.
    #[error(
        "example {example}: expected {expected} tokens as in input 0, found {found} in input \
         {input}; positions are compared one by one, so use prompts of equal length"
    )]
    Lengths {
        /// Index of the input.
        input: usize,
        /// Index of the example.
        example: usize,
        /// Number of tokens in input 0.
        expected: usize,
        /// Number of tokens in this one.
        found: usize,
    },
    /// Inputs with different numbers of examples.
    #[error("input {input}: expected {expected} examples as in input 0, found {found}")]
    Batch {
        /// Index of the input.
        input: usize,
        /// Number of examples of input 0.
        expected: usize,
        /// Number of examples of this one.
        found: usize,
    },
    /// A patch from or to nothing.
    #[error("patch {patch}: expected at least one {what}, found none")]
    Empty {
        /// Index of the patch.
        patch: usize,
        /// Which of them is missing.
        what: &'static str,
    },
    /// A model that does not say what each of its heads adds to the residual stream.
    #[error(
        "the model does not say what each head adds to the residual stream: use Mlps::Recomputed \
         or patch_paths, or implement ByHead and return it from AlignableTransformer::by_head"
    )]
    NoHeadOutput,
    /// The plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
