//! The meaning of a stream, written from the definition: recursion over the tree, with a plain
//! forward pass for each node under a tap that replaces activations. Independent of plans, worlds,
//! differences and output projections.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::paths::{Change, Node, Reach, Stream, Value};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, ModelInput, Site, Tap, TokenBatch,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{MODELS, inputs, logits_of};
use crate::support::{load, values};

on_every_backend!(random_streams_mean_what_their_definition_says);

/// Replaces activations and keeps all.
#[derive(Default)]
struct Replacing<B: Backend> {
    replaced: Vec<(Site, Tensor<B, 4>)>,
    seen: RefCell<HashMap<Site, Tensor<B, 4>>>,
}

impl<B: Backend> Tap<B> for Replacing<B> {
    fn wants(&self, _site: Site) -> bool {
        true
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let replaced = self.replaced.iter().rev().find(|(at, _)| *at == site);
        let activation = replaced.map_or(activation, |(_, value)| value.clone());
        self.seen.borrow_mut().insert(site, activation.clone());
        activation
    }
}

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
        let mut tap = Replacing {
            replaced,
            seen: RefCell::default(),
        };
        let tokens = ModelInput::Tokens(self.inputs[input].to_tensor(self.device));
        let logits = self.model.forward_tapped(tokens, &mut tap);
        (tap.seen.into_inner(), logits)
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

    /// The run of a stream, including what it continues with.
    fn run(&self, stream: &Stream) -> Seen<B> {
        let mut replaced: Vec<(Site, Tensor<B, 4>)> = Vec::new();
        let mut changes: Vec<&Change> = stream.changes.iter().collect();
        changes.retain(|change| change.reach == Reach::Run);
        // Earlier ones first: a later position or head keeps what the run has there.
        changes.sort_by_key(|change| match change.node {
            Node::Embedding => 0,
            Node::Attention { layer } | Node::Head { layer, .. } => 2 * layer + 1,
            Node::Mlp { layer } => 2 * layer + 2,
        });
        for change in changes {
            let (seen, _) = self.forward(stream.input, replaced.clone());
            let (site, new) = match change.node {
                Node::Embedding => (Site::Embedding, None),
                Node::Attention { layer } => (Site::Block(layer, Component::AttentionOutput), None),
                Node::Mlp { layer } => (Site::Block(layer, Component::MlpOutput), None),
                Node::Head { layer, head } => {
                    let site = Site::Block(layer, Component::AttentionValueOutput);
                    let mixed = self.mixed(layer, &change.value);
                    let [batch, _, pos, width] = mixed.dims();
                    let own = mixed.narrow(1, head, 1);
                    let place = [0..batch, head..head + 1, 0..pos, 0..width];
                    (site, Some(seen[&site].clone().slice_assign(place, own)))
                }
            };
            let new = new.unwrap_or_else(|| self.output(change.node, &change.value));
            replaced.push((site, self.at(&change.positions, seen[&site].clone(), new)));
        }
        self.forward(stream.input, replaced).0
    }

    /// What a reader at a depth reads: the sum of everything added before it.
    fn residual(&self, stream: &Stream, depth: usize) -> Tensor<B, 4> {
        let run = self.run(stream);
        let layers = self.model.dims().layers;
        let mut nodes = vec![(0, Node::Embedding)];
        for layer in 0..layers {
            nodes.push((2 * layer + 1, Node::Attention { layer }));
            nodes.push((2 * layer + 2, Node::Mlp { layer }));
        }
        let mut sum: Option<Tensor<B, 4>> = None;
        for (_, node) in nodes.into_iter().filter(|(at, _)| *at < depth) {
            let mut output = match node {
                Node::Embedding => run[&Site::Embedding].clone(),
                Node::Attention { layer } => {
                    run[&Site::Block(layer, Component::AttentionOutput)].clone()
                }
                Node::Mlp { layer } => run[&Site::Block(layer, Component::MlpOutput)].clone(),
                Node::Head { .. } => unreachable!("not in the list"),
            };
            for change in stream.changes.iter().filter(|c| c.reach == Reach::Reader) {
                match (node, change.node) {
                    (Node::Attention { layer }, Node::Head { layer: own, head })
                        if own == layer =>
                    {
                        // The head alone is exchanged.
                        let mixed =
                            run[&Site::Block(layer, Component::AttentionValueOutput)].clone();
                        let old = self.head(layer, head, mixed);
                        let new = self.head(layer, head, self.mixed(layer, &change.value));
                        let exchanged = output.clone() - old + new;
                        output = self.at(&change.positions, output, exchanged);
                    }
                    (node, changed) if node == changed => {
                        let new = self.output(node, &change.value);
                        output = self.at(&change.positions, output, new);
                    }
                    _ => {}
                }
            }
            sum = Some(match sum {
                None => output,
                Some(sum) => sum + output,
            });
        }
        sum.expect("the embedding lies before every reader")
    }

    /// What one head adds: the output of the attention with it alone, less that with none.
    fn head(&self, layer: usize, head: usize, mixed: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, _, pos, width] = mixed.dims();
        let none = mixed.zeros_like();
        let place = [0..batch, head..head + 1, 0..pos, 0..width];
        let alone = none.clone().slice_assign(place, mixed.narrow(1, head, 1));
        let site = Site::Block(layer, Component::AttentionValueOutput);
        let [alone, none] = [alone, none].map(|mixed| {
            let (seen, _) = self.forward(0, vec![(site, mixed)]);
            seen[&Site::Block(layer, Component::AttentionOutput)].clone()
        });
        alone - none
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
                    let x = self.residual(stream, 2 * layer + 1);
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

    /// A node's output with this value, of all heads together.
    fn output(&self, node: Node, value: &Value) -> Tensor<B, 4> {
        match (node, value) {
            (Node::Attention { layer }, value) => self.attention(layer, value)
                [&Site::Block(layer, Component::AttentionOutput)]
                .clone(),
            (Node::Embedding, Value::Clean(input)) => {
                self.forward(*input, Vec::new()).0[&Site::Embedding].clone()
            }
            (Node::Mlp { layer }, Value::Clean(input)) => {
                let (seen, _) = self.forward(*input, Vec::new());
                seen[&Site::Block(layer, Component::MlpOutput)].clone()
            }
            (Node::Mlp { layer }, Value::Mlp(stream)) => {
                let x = self.residual(stream, 2 * layer + 2);
                let site = Site::Block(layer, Component::ResidualMid);
                let (seen, _) = self.forward(0, vec![(site, x)]);
                seen[&Site::Block(layer, Component::MlpOutput)].clone()
            }
            _ => unreachable!("checked"),
        }
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
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(*self.0.next().unwrap_or(&0)) % count
    }

    fn stream(&mut self, depth: usize) -> Stream {
        let mut stream = Stream::clean(self.below(3));
        let mut taken: Vec<(Node, Reach)> = Vec::new();
        for _ in 0..self.below(4) {
            let node = self.node(depth);
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
    fn node(&mut self, depth: usize) -> Node {
        let at = self.below(depth);
        match (at, at % 2) {
            (0, _) => Node::Embedding,
            (_, 0) => Node::Mlp { layer: at / 2 - 1 },
            _ => match self.below(5) {
                4 => Node::Attention { layer: at / 2 },
                head => Node::Head {
                    layer: at / 2,
                    head,
                },
            },
        }
    }

    fn value(&mut self, node: Node) -> Value {
        if self.below(3) == 0 {
            return Value::Clean(self.below(3));
        }
        match node {
            Node::Embedding => Value::Clean(self.below(3)),
            Node::Attention { layer } | Node::Head { layer, .. } => {
                let query = self.stream(2 * layer + 1);
                let key = match self.below(2) {
                    0 => query.clone(),
                    _ => self.stream(2 * layer + 1),
                };
                Value::Attention {
                    query: Box::new(query),
                    key: Box::new(key),
                    value: Box::new(self.stream(2 * layer + 1)),
                }
            }
            Node::Mlp { layer } => Value::Mlp(Box::new(self.stream(2 * layer + 2))),
        }
    }
}

fn random_streams_mean_what_their_definition_says<B: Backend>(device: &B::Device) {
    let inputs = inputs();
    for name in MODELS {
        let model = load::<B>(name, device);
        let reference = Reference {
            model: &model,
            inputs: &inputs,
            device,
        };
        let config = Config {
            failure_persistence: None,
            ..Config::default()
        };
        let cases = config.cases;
        let strategy = prop::collection::vec(any::<u8>(), 1..60);
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let computed = Cell::new(0);
        let run = runner.run(&strategy, |choices| {
            let stream = Choices(choices.iter()).stream(5);
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
        assert!(computed.get() > cases / 3, "most trees compute nothing");
    }
}
