//! The meaning of a stream, written from the definition: recursion over the tree, with a plain
//! forward pass for each node under a tap that replaces activations. Independent of plans, worlds,
//! differences and output projections.

use std::cell::Cell;
use std::collections::HashMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::paths::{Change, Node, Reach, Stream, Value};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, ModelDims, ModelInput, Site, TokenBatch,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{FAMILIES, depth, inputs, logits_of};
use crate::support::{Replacing, load, values};

on_every_backend!(random_streams_mean_what_their_definition_says);

/// The activations of one forward pass.
type Seen<B> = HashMap<Site, Tensor<B, 4>>;

struct Reference<'a, B: Backend> {
    model: &'a Decoder<B>,
    inputs: &'a [TokenBatch],
    device: &'a B::Device,
}

impl<B: Backend> Reference<'_, B> {
    fn forward(
        &self,
        input: usize,
        replaced: Vec<(Site, Tensor<B, 4>)>,
    ) -> (Seen<B>, Tensor<B, 3>) {
        let mut tap = Replacing::new(replaced);
        let tokens = ModelInput::Tokens(self.inputs[input].to_tensor(self.device));
        let logits = self.model.forward_tapped(tokens, &mut tap);
        (tap.seen, logits)
    }

    /// `new` at some positions, `old` at the others. `[batch, head, pos, width]`
    fn at(&self, positions: &Indices, old: Tensor<B, 4>, new: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, _head, pos, _width] = old.dims();
        let wanted = |example: usize| match positions {
            Indices::All => (0..pos).collect(),
            Indices::Same(same) => same.clone(),
            Indices::Each(each) => each[example].clone(),
        };
        let mut out = old;
        for example in 0..batch {
            for position in wanted(example) {
                let cell = new.clone().narrow(0, example, 1).narrow(2, position, 1);
                let [_, head, _, width] = cell.dims();
                let place = [
                    example..example + 1,
                    0..head,
                    position..position + 1,
                    0..width,
                ];
                out = out.slice_assign(place, cell);
            }
        }
        out
    }

    /// Where a node's output enters the residual stream.
    fn added_at(&self, node: Node) -> Site {
        let dims = self.model.dims();
        match node {
            Node::Embedding => Site::Embedding,
            Node::Attention { layer } => Site::Block(layer, dims.added_by_attention()),
            Node::Mlp { layer } => Site::Block(layer, dims.added_by_mlp()),
            Node::Head { .. } => unreachable!("heads enter together"),
        }
    }

    /// The run of a stream, including what it continues with.
    fn run(&self, stream: &Stream) -> Seen<B> {
        let mut replaced: Vec<(Site, Tensor<B, 4>)> = Vec::new();
        let mut changes: Vec<&Change> = stream.changes.iter().collect();
        changes.retain(|change| change.reach == Reach::Run);
        // Earlier ones first: a later position or head keeps what the run has there.
        changes.sort_by_key(|change| depth(change.node, self.model.dims()));
        for change in changes {
            let (seen, _) = self.forward(stream.input, replaced.clone());
            replaced.push(match change.node {
                Node::Head { layer, head } => {
                    let site = Site::Block(layer, Component::AttentionValueOutput);
                    let mixed = seen[&site].clone();
                    (site, self.exchange(layer, head, change, mixed))
                }
                node => {
                    let site = self.added_at(node);
                    let new = self.output(node, &change.value);
                    (site, self.at(&change.positions, seen[&site].clone(), new))
                }
            });
        }
        self.forward(stream.input, replaced).0
    }

    /// What a reader at a depth reads: the sum of everything added before it.
    fn residual(&self, stream: &Stream, reader: usize) -> Tensor<B, 4> {
        let run = self.run(stream);
        let dims = self.model.dims();
        let before = Node::all(dims).into_iter();
        let before = before.filter(|node| depth(*node, dims) < reader);
        let outputs = before.map(|node| {
            let mut output = run[&self.added_at(node)].clone();
            let changes = stream.changes.iter();
            let changes = changes.filter(|change| change.reach == Reach::Reader);
            for change in changes.filter(|change| change.node == node) {
                let new = self.output(node, &change.value);
                output = self.at(&change.positions, output, new);
            }
            match node {
                Node::Attention { layer } => self.with_heads(layer, stream, &run, output),
                _ => output,
            }
        });
        let sum = outputs.reduce(|sum, output| sum + output);
        sum.expect("the embedding lies before every reader")
    }

    /// The output of an attention of which a reader sees other heads: these alone are exchanged,
    /// all at once, and any norm comes after that.
    fn with_heads(
        &self,
        layer: usize,
        stream: &Stream,
        run: &Seen<B>,
        mut output: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let changes = stream.changes.iter();
        let changes = changes.filter_map(|change| match (change.reach, change.node) {
            (Reach::Reader, Node::Head { layer: own, head }) if own == layer => {
                Some((head, change))
            }
            _ => None,
        });
        let changes: Vec<(usize, &Change)> = changes.collect();
        if changes.is_empty() {
            return output;
        }
        let site = Site::Block(layer, Component::AttentionValueOutput);
        let mut mixed = run[&site].clone();
        for (head, change) in &changes {
            mixed = self.exchange(layer, *head, change, mixed);
        }
        let (seen, _) = self.forward(0, vec![(site, mixed)]);
        let new = &seen[&self.added_at(Node::Attention { layer })];
        for (_, change) in &changes {
            output = self.at(&change.positions, output, new.clone());
        }
        output
    }

    /// Mixed values in which one head's are those of a change, at its positions.
    fn exchange(
        &self,
        layer: usize,
        head: usize,
        change: &Change,
        mixed: Tensor<B, 4>,
    ) -> Tensor<B, 4> {
        let [batch, _, pos, width] = mixed.dims();
        let own = self.mixed(layer, &change.value).narrow(1, head, 1);
        let place = [0..batch, head..head + 1, 0..pos, 0..width];
        let new = mixed.clone().slice_assign(place, own);
        self.at(&change.positions, mixed, new)
    }

    /// The forward pass in which attention computes a value.
    fn attention(&self, layer: usize, value: &Value) -> Seen<B> {
        match value {
            Value::Clean(input) => self.forward(*input, Vec::new()).0,
            Value::Attention { query, key, value } => {
                let mut replaced = Vec::new();
                let inputs = [
                    (query, Component::QueryOutput),
                    (key, Component::KeyOutput),
                    (value, Component::ValueOutput),
                ];
                for (stream, component) in inputs {
                    let reader = depth(Node::Attention { layer }, self.model.dims());
                    let x = self.residual(stream, reader);
                    let site = Site::Block(layer, Component::BlockInput);
                    let (seen, _) = self.forward(0, vec![(site, x)]);
                    let site = Site::Block(layer, component);
                    replaced.push((site, seen[&site].clone()));
                }
                self.forward(0, replaced).0
            }
            Value::Mlp(_) => unreachable!("checked"),
        }
    }

    fn mixed(&self, layer: usize, value: &Value) -> Tensor<B, 4> {
        self.attention(layer, value)[&Site::Block(layer, Component::AttentionValueOutput)].clone()
    }

    /// What a node adds with this value, all heads together.
    fn output(&self, node: Node, value: &Value) -> Tensor<B, 4> {
        let seen = match (node, value) {
            (Node::Attention { layer }, value) => self.attention(layer, value),
            (_, Value::Clean(input)) => self.forward(*input, Vec::new()).0,
            (Node::Mlp { layer }, Value::Mlp(stream)) => {
                let dims = self.model.dims();
                let x = self.residual(stream, depth(node, dims));
                let site = Site::Block(layer, dims.read_by_mlp());
                self.forward(0, vec![(site, x)]).0
            }
            _ => unreachable!("checked"),
        };
        seen[&self.added_at(node)].clone()
    }

    /// Logits of a stream after the last token.
    fn logits(&self, stream: &Stream) -> Vec<f32> {
        let layers = self.model.dims().layers;
        let x = self.residual(stream, 2 * layers + 1);
        let site = Site::Block(layers - 1, Component::BlockOutput);
        let (_, logits) = self.forward(0, vec![(site, x)]);
        let [_, pos, _] = logits.dims();
        values(logits.narrow(1, pos - 1, 1))
    }
}

/// Makes a tree of a list of choices; where the list ends, all choices are the first.
struct Choices<'a> {
    choices: std::slice::Iter<'a, u8>,
    dims: &'a ModelDims,
}

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(*self.choices.next().unwrap_or(&0)) % count
    }

    fn stream(&mut self, reader: usize) -> Stream {
        let mut stream = Stream::clean(self.below(3));
        let mut taken: Vec<(Node, Reach)> = Vec::new();
        for _ in 0..self.below(4) {
            let node = self.node(reader);
            let reach = [Reach::Reader, Reach::Run][self.below(2)];
            // Two changes of one output would need positions that differ.
            let layer = |node| match node {
                Node::Embedding => (0, 0, 0),
                Node::Attention { layer } => (1, layer, 99),
                Node::Head { layer, head } => (1, layer, head),
                Node::Mlp { layer } => (2, layer, 0),
            };
            let clash = taken.iter().any(|(other, r)| {
                let (a, b) = (layer(*other), layer(node));
                let same = a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2 == 99 || b.2 == 99);
                let whole = (a.2 == 99 && *r == Reach::Run) || (b.2 == 99 && reach == Reach::Run);
                same && (*r == reach || (a.2 != b.2 && whole))
            });
            if clash {
                continue;
            }
            taken.push((node, reach));
            let positions = [
                Indices::All,
                Indices::Same(vec![4]),
                Indices::Same(vec![1, 3]),
                Indices::Each(vec![vec![2], vec![4]]),
            ][self.below(4)]
            .clone();
            let value = self.value(node);
            stream.changes.push(Change {
                node,
                positions,
                value,
                reach,
            });
        }
        stream
    }

    /// A node before a depth.
    fn node(&mut self, reader: usize) -> Node {
        let dims = self.dims;
        let before = Node::all(dims).into_iter();
        let before: Vec<Node> = before.filter(|node| depth(*node, dims) < reader).collect();
        let at = self.below(before.len());
        match before[at] {
            Node::Attention { layer } => match self.below(dims.heads + 1) {
                head if head < dims.heads => Node::Head { layer, head },
                _ => Node::Attention { layer },
            },
            node => node,
        }
    }

    fn value(&mut self, node: Node) -> Value {
        if self.below(3) == 0 {
            return Value::Clean(self.below(3));
        }
        let reader = depth(node, self.dims);
        match node {
            Node::Embedding => Value::Clean(self.below(3)),
            Node::Attention { .. } | Node::Head { .. } => {
                let query = self.stream(reader);
                let key = match self.below(2) {
                    0 => query.clone(),
                    _ => self.stream(reader),
                };
                Value::Attention {
                    query: Box::new(query),
                    key: Box::new(key),
                    value: Box::new(self.stream(reader)),
                }
            }
            Node::Mlp { .. } => Value::Mlp(Box::new(self.stream(reader))),
        }
    }
}

fn random_streams_mean_what_their_definition_says<B: Backend>(device: &B::Device) {
    let inputs = inputs();
    for name in FAMILIES {
        let model = load::<B>(name, device);
        let reference = Reference {
            model: &model,
            inputs: &inputs,
            device,
        };
        let config = Config {
            cases: (2 * Config::default().cases).div_ceil(3),
            failure_persistence: None,
            ..Config::default()
        };
        let cases = config.cases;
        let strategy = prop::collection::vec(any::<u8>(), 1..60);
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let computed = Cell::new(0);
        let run = runner.run(&strategy, |choices| {
            let mut choices = Choices {
                choices: choices.iter(),
                dims: model.dims(),
            };
            let stream = choices.stream(2 * model.dims().layers + 1);
            let computes = |change: &Change| !matches!(change.value, Value::Clean(_));
            computed.set(computed.get() + u32::from(stream.changes.iter().any(computes)));
            let expected = reference.logits(&stream);
            let found = logits_of(&model, &inputs, std::slice::from_ref(&stream)).remove(0);
            let scale = expected.iter().fold(1.0_f32, |max, x| max.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let difference = (found - expected).abs() / scale;
                prop_assert!(difference <= 1e-5, "{found} is not {expected}: {stream:?}");
            }
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(computed.get() > cases / 6, "most trees compute nothing");
    }
}
