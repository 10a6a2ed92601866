//! From a tree with inputs to the stream that its output reads.

use std::collections::HashMap;
use std::ops::Range;

use burn_align_models::{ModelDims, TokenBatch};

use super::tree::{Draws, ScrubTree};
use super::{Part, Unimportant};
use crate::engine::Indices;
use crate::paths::{Change, HeadInput, Node, Reach, Stream, Value};

/// The parts of the model that a node of a tree reads, by each of its inputs, and that may need
/// their own input because they do not matter. A leaf reads none.
pub(super) fn pieces(
    tree: &ScrubTree,
    index: usize,
    dims: &ModelDims,
) -> Vec<(Option<HeadInput>, Node)> {
    let node = &tree.nodes[index];
    if node.reads.is_empty() && node.reader.is_some() {
        return Vec::new();
    }
    let depth = tree.depth(index, dims);
    let inputs = inputs(node.place.as_ref().map(|place| place.part));
    let mut pieces = Vec::new();
    for input in inputs {
        let has_head_in = |layer: usize| {
            let reads = node.reads.iter().map(|read| &tree.nodes[*read]);
            let mut reads = reads.filter(|read| read.input == input);
            reads.any(|read| {
                let part = read.place.as_ref().map(|place| place.part);
                matches!(part, Some(Part::Node(Node::Head { layer: l, .. })) if l == layer)
            })
        };
        for part in Node::all(dims) {
            if part.depth(dims) >= depth {
                continue;
            }
            match part {
                Node::Attention { layer } if has_head_in(layer) => {
                    let heads = 0..dims.heads;
                    let heads = heads.map(|head| (input, Node::Head { layer, head }));
                    pieces.extend(heads);
                }
                _ => pieces.push((input, part)),
            }
        }
    }
    pieces
}

/// The inputs by which a part of the model reads.
fn inputs(part: Option<Part>) -> Vec<Option<HeadInput>> {
    match part {
        None | Some(Part::Node(Node::Mlp { .. })) => vec![None],
        Some(Part::Node(Node::Embedding) | Part::Stream) => Vec::new(),
        Some(Part::Node(Node::Attention { .. } | Node::Head { .. })) => {
            HeadInput::ALL.map(Some).to_vec()
        }
    }
}

/// The inputs of streams: an example for each row. Equal inputs are stored once.
#[derive(Default)]
pub(super) struct Inputs {
    numbers: HashMap<Vec<usize>, usize>,
    examples: Vec<Vec<usize>>,
}

impl Inputs {
    pub(super) fn number(&mut self, examples: &[usize]) -> usize {
        if let Some(number) = self.numbers.get(examples) {
            return *number;
        }
        let number = self.examples.len();
        self.numbers.insert(examples.to_vec(), number);
        self.examples.push(examples.to_vec());
        number
    }

    /// The prompts of each input.
    pub(super) fn tokens(&self, tokens: &TokenBatch) -> Vec<TokenBatch> {
        let inputs = self.examples.iter();
        let inputs = inputs.map(|examples| tokens.select(examples).expect("drawn from them"));
        inputs.collect()
    }
}

/// What the output of a tree reads in some of the rows.
pub(super) struct Streams<'a> {
    pub(super) tree: &'a ScrubTree,
    pub(super) draws: &'a Draws,
    pub(super) dims: &'a ModelDims,
    pub(super) rows: Range<usize>,
    /// The example of each row.
    pub(super) examples: &'a [usize],
}

impl Streams<'_> {
    pub(super) fn output(&self, inputs: &mut Inputs) -> Stream {
        self.stream(0, None, inputs)
    }

    fn input(&self, examples: &[usize], inputs: &mut Inputs) -> usize {
        inputs.number(&examples[self.rows.clone()])
    }

    /// What a node of the tree reads by one of its inputs.
    fn stream(&self, node: usize, input: Option<HeadInput>, inputs: &mut Inputs) -> Stream {
        let mut changes = Vec::new();
        let mut change = |node, positions, value| {
            changes.push(Change {
                node,
                positions,
                value,
                reach: Reach::Reader,
            });
        };
        for &read in &self.tree.nodes[node].reads {
            let own = &self.tree.nodes[read];
            let Some(place) = own.place.as_ref().filter(|_| own.input == input) else {
                continue;
            };
            let positions = self.of_rows(&place.positions);
            match place.part {
                Part::Node(part) => change(part, positions, self.value(read, part, inputs)),
                Part::Stream => {
                    let value = self.input(&self.draws.donors[read], inputs);
                    for part in self.before(node) {
                        change(part, positions.clone(), Value::Clean(value));
                    }
                }
            }
        }
        if self.tree.options.unimportant == Unimportant::Apart {
            let pieces = self.draws.apart[node].iter();
            for piece in pieces.filter(|piece| piece.input == input) {
                let rest = self.rest(piece.node, &changes);
                if let Some(positions) = rest {
                    let value = Value::Clean(self.input(&piece.examples, inputs));
                    changes.push(Change {
                        node: piece.node,
                        positions,
                        value,
                        reach: Reach::Reader,
                    });
                }
            }
        }
        // Start the stream from the run of what does not matter. If everything matters, start from
        // one of the other runs, so that equal values need no arithmetic.
        let clean = |change: &Change| match change.value {
            Value::Clean(input) => Some(input),
            _ => None,
        };
        let covered = self
            .before(node)
            .all(|part| self.rest(part, &changes).is_none());
        let first = changes.iter().find_map(clean).filter(|_| covered);
        let start = first.unwrap_or_else(|| self.input(&self.draws.random[node], inputs));
        changes.retain(|change| clean(change) != Some(start));
        Stream {
            input: start,
            changes,
        }
    }

    /// What a part of the model passes to its reader.
    fn value(&self, index: usize, part: Node, inputs: &mut Inputs) -> Value {
        if self.tree.nodes[index].reads.is_empty() {
            return Value::Clean(self.input(&self.draws.donors[index], inputs));
        }
        let mut stream = |input| Box::new(self.stream(index, input, inputs));
        let value = match part {
            Node::Mlp { .. } => Value::Mlp(stream(None)),
            _ => Value::Attention {
                query: stream(Some(HeadInput::Query)),
                key: stream(Some(HeadInput::Key)),
                value: stream(Some(HeadInput::Value)),
            },
        };
        match clean_run(&value) {
            Some(input) => Value::Clean(input),
            None => value,
        }
    }

    /// The parts whose sum a node of the tree reads.
    fn before(&self, node: usize) -> impl Iterator<Item = Node> {
        let depth = self.tree.depth(node, self.dims);
        let all = Node::all(self.dims).into_iter();
        all.filter(move |part| part.depth(self.dims) < depth)
    }

    /// Positions at which no change covers a part of the model; `None` if there are none.
    fn rest(&self, part: Node, changes: &[Change]) -> Option<Indices> {
        let of = |part: Node| {
            let changes = changes.iter();
            let taken = changes.filter(move |change| change.node.overlaps(part));
            taken.map(|change| &change.positions)
        };
        let taken: Vec<&Indices> = match part {
            // A layer is covered if each of its heads is.
            Node::Attention { layer } => {
                let heads = (0..self.dims.heads).map(|head| Node::Head { layer, head });
                let mut heads = heads.map(|head| self.free(of(head).collect()));
                return heads.find(Option::is_some).flatten();
            }
            _ => of(part).collect(),
        };
        self.free(taken)
    }

    /// Positions that are in none of these.
    fn free(&self, taken: Vec<&Indices>) -> Option<Indices> {
        if taken.is_empty() {
            return Some(Indices::All);
        }
        if taken.contains(&&Indices::All) {
            return None;
        }
        let lengths = self.tree.tokens.lengths();
        let rows = self.examples[self.rows.clone()].iter().enumerate();
        let free: Vec<Vec<usize>> = rows
            .map(|(row, example)| {
                let length = lengths[*example];
                let taken: Vec<usize> = taken.iter().flat_map(|i| i.of(row, length)).collect();
                (0..length).filter(|p| !taken.contains(p)).collect()
            })
            .collect();
        let first = free.first()?;
        match free.iter().all(|positions| positions == first) {
            true if first.is_empty() => None,
            true => Some(Indices::Same(first.clone())),
            false => Some(Indices::Each(free)),
        }
    }

    /// Positions of the dataset's examples, arranged by row.
    fn of_rows(&self, positions: &Indices) -> Indices {
        match positions {
            Indices::Each(each) => {
                let rows = self.examples[self.rows.clone()].iter();
                Indices::Each(rows.map(|example| each[*example].clone()).collect())
            }
            same => same.clone(),
        }
    }
}

/// The clean run that computes a value, if there is one.
fn clean_run(value: &Value) -> Option<usize> {
    let streams: Vec<&Stream> = match value {
        Value::Clean(input) => return Some(*input),
        Value::Attention { query, key, value } => vec![query, key, value],
        Value::Mlp(stream) => vec![stream],
    };
    let input = streams.first()?.input;
    let clean = |stream: &&Stream| stream.changes.is_empty() && stream.input == input;
    streams.iter().all(clean).then_some(input)
}
