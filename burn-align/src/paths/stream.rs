//! What a reader of the residual stream sees, as a tree.

use super::{HeadInput, Node, Path};
use crate::engine::Indices;

/// What a node reads, as a tree: the residual stream of a clean run, with some outputs replaced.
///
/// Inputs are numbers here; [`Worlds`](super::Worlds) gets the tokens.
///
/// In the terms of nano-causal-interventions: `which` is the input of a stream or of a clean value.
/// If `branch` is false, node and residual share their upstream, and the run just continues. If it
/// is true, the node's output is a change that reaches the [run](Reach::Run), with a value computed
/// from its own stream; for `"heads"` there is one such change for each head. For `"positions"` it
/// is this stream that comes from several inputs, one per position: what the node *reads* there
/// comes from another input, so attention still finds the keys and values of the others. To change
/// an input at a position, change all outputs that it is the sum of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The input of the run.
    pub input: usize,
    /// The outputs that differ from that run's.
    pub changes: Vec<Change>,
}

/// A node's output that differs from the run's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The node.
    pub node: Node,
    /// The positions.
    pub positions: Indices,
    /// The new output.
    pub value: Value,
    /// Which readers see it.
    pub reach: Reach,
}

/// A node's output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// The output of the clean run on this input.
    Clean(usize),
    /// What a head, or all heads of a layer, compute from these streams.
    Attention {
        /// What queries are computed from.
        query: Box<Stream>,
        /// What keys are computed from.
        key: Box<Stream>,
        /// What values are computed from.
        value: Box<Stream>,
    },
    /// What an MLP computes from this stream.
    Mlp(Box<Stream>),
}

/// Which readers see a changed output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Only the stream's reader, on the direct path: what others compute stays as it is.
    #[default]
    Reader,
    /// All nodes in between too: the run continues with the changed output, and the reader sees the
    /// result.
    Run,
}

impl Stream {
    /// The stream of the clean run on an input.
    pub fn clean(input: usize) -> Self {
        Self {
            input,
            changes: Vec::new(),
        }
    }

    /// Adds a changed output that only the reader sees.
    pub fn with(mut self, node: Node, positions: Indices, value: Value) -> Self {
        self.changes.push(Change {
            node,
            positions,
            value,
            reach: Reach::Reader,
        });
        self
    }

    /// Adds a changed output that the run continues with.
    pub fn with_run(mut self, node: Node, positions: Indices, value: Value) -> Self {
        self.changes.push(Change {
            node,
            positions,
            value,
            reach: Reach::Run,
        });
        self
    }

    /// What the logits read if these paths carry the `source`, and all others the `base`.
    ///
    /// If one path is the end of another, the shorter one wins: where it starts, the whole output
    /// comes from the source.
    pub fn of_paths<'a>(
        paths: impl IntoIterator<Item = &'a Path>,
        base: usize,
        source: usize,
    ) -> Self {
        let ends: Vec<End<'a>> = paths
            .into_iter()
            .map(|path| (path, path.hops().len()))
            .collect();
        Self::of_ends(&ends, base, source)
    }

    /// The stream that these beginnings of paths lead into.
    fn of_ends(ends: &[End<'_>], base: usize, source: usize) -> Self {
        let mut senders: Vec<(Node, &Indices, Vec<End<'_>>)> = Vec::new();
        for &(path, last) in ends {
            let (node, positions) = (path.node(last), &path.positions()[last]);
            match senders
                .iter_mut()
                .find(|(n, p, _)| (*n, *p) == (node, positions))
            {
                Some((.., ends)) => ends.push((path, last)),
                None => senders.push((node, positions, vec![(path, last)])),
            }
        }
        let changes = senders.into_iter().map(|(node, positions, ends)| Change {
            node,
            positions: positions.clone(),
            value: Value::of_ends(&ends, base, source),
            reach: Reach::Reader,
        });
        Self {
            input: base,
            changes: changes.collect(),
        }
    }

    pub(super) fn run_changes(&self) -> impl Iterator<Item = &Change> {
        let changes = self.changes.iter();
        changes.filter(|change| change.reach == Reach::Run)
    }

    pub(super) fn reader_changes(&self) -> impl Iterator<Item = &Change> {
        let changes = self.changes.iter();
        changes.filter(|change| change.reach == Reach::Reader)
    }
}

/// The beginning of a path, up to the output of the node with this index.
type End<'a> = (&'a Path, usize);

impl Value {
    /// What a node adds, if these beginnings of paths all end at it.
    fn of_ends(ends: &[End<'_>], base: usize, source: usize) -> Self {
        if ends.iter().any(|(_, last)| *last == 0) {
            return Self::Clean(source);
        }
        let stream = |input: Option<HeadInput>| {
            let before = ends.iter().filter_map(|(path, last)| {
                (path.hops()[last - 1].input() == input).then_some((*path, last - 1))
            });
            let before: Vec<End<'_>> = before.collect();
            Box::new(Stream::of_ends(&before, base, source))
        };
        let (path, last) = ends[0];
        match path.hops()[last - 1].input() {
            None => Self::Mlp(stream(None)),
            Some(_) => Self::Attention {
                query: stream(Some(HeadInput::Query)),
                key: stream(Some(HeadInput::Key)),
                value: stream(Some(HeadInput::Value)),
            },
        }
    }

    /// The streams that it is computed from, each with its input.
    pub(super) fn streams(&self) -> Vec<(Option<HeadInput>, &Stream)> {
        match self {
            Self::Clean(_) => Vec::new(),
            Self::Attention { query, key, value } => vec![
                (Some(HeadInput::Query), &**query),
                (Some(HeadInput::Key), &**key),
                (Some(HeadInput::Value), &**value),
            ],
            Self::Mlp(stream) => vec![(None, &**stream)],
        }
    }
}
