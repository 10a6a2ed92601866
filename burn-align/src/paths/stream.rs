use super::{HeadInput, Node, Path};
use crate::engine::Indices;

/// What a node reads, as a tree: the residual stream of a clean run, with some outputs changed.
///
/// Inputs are numbered; what they are is said to [`Worlds`](super::Worlds).
///
/// In the words of nano-causal-interventions: `which` is the input of a stream or of a clean value.
/// Where `branch` is false, node and residual share their upstream, and the run just goes on. Where
/// it is true, the node's output is a change that reaches the [run](Reach::Run), with a value
/// computed from a stream of its own; for `"heads"` there is one such change for each head. For
/// `"positions"` it is this stream that comes from several inputs, one for each position: what the
/// node *reads* there is another input's, so that attention still finds the keys and values of the
/// others. To change an input at a position, change all outputs that it is the sum of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Whose run it is.
    pub input: usize,
    /// Which outputs are others than that run's.
    pub changes: Vec<Change>,
}

/// A node's output that is another one than in the run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// Whose output.
    pub node: Node,
    /// At which positions.
    pub positions: Indices,
    /// What it is instead.
    pub value: Value,
    /// Who sees it.
    pub reach: Reach,
}

/// A node's output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// That of the clean run on this input.
    Clean(usize),
    /// What a head, or all heads of a layer, compute from these streams.
    Attention {
        /// What queries are made of.
        query: Box<Stream>,
        /// What keys are made of.
        key: Box<Stream>,
        /// What values are made of.
        value: Box<Stream>,
    },
    /// What an MLP computes from this stream.
    Mlp(Box<Stream>),
}

/// Who sees a changed output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The stream's reader alone, by the direct path: what others compute stays as it is.
    #[default]
    Reader,
    /// Every node between, too: the run goes on with the changed output, and the reader sees what
    /// has become of it.
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

    /// The same stream with one more changed output, seen by the reader alone.
    pub fn with(mut self, node: Node, positions: Indices, value: Value) -> Self {
        self.changes.push(Change {
            node,
            positions,
            value,
            reach: Reach::Reader,
        });
        self
    }

    /// The same stream with one more changed output, with which the run goes on.
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
    /// Of two paths of which one is the end of the other, the shorter one counts: where it starts,
    /// the whole output is the source's.
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

    /// The stream that the first parts of paths lead into.
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

/// The first part of a path, up to the output of the node with this index.
type End<'a> = (&'a Path, usize);

impl Value {
    /// What one node adds that all these parts of paths end at.
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

    /// The streams that it is computed from, each with the name of the input.
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
