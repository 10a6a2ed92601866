//! The meaning of scrubbing, written from the definition (Chan et al. 2022, "Causal Scrubbing",
//! Algorithm 1): recursion over the tree, with plain forward passes for each node under a tap that
//! replaces activations. Independent of plans, worlds, streams and differences.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::methods::{
    Donors, Feature, Hypothesis, Part, Place, ScrubOptions, ScrubTree, Unimportant,
};
use burn_align::paths::{HeadInput, Node};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, ModelInput, Site, Tap, TokenBatch,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Example, dataset, loss, scrubbed, token};
use crate::paths::MODELS;
use crate::support::load;

on_every_backend!(random_trees_mean_what_their_definition_says);

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
        let replaced = self.replaced.iter().find(|(at, _)| *at == site);
        let activation = replaced.map_or(activation, |(_, value)| value.clone());
        self.seen.borrow_mut().insert(site, activation.clone());
        activation
    }
}

/// The activations of one forward pass.
type Seen<B> = HashMap<Site, Tensor<B, 4>>;

/// A part of the residual stream with a separate value: the embedding, a head, an MLP.
type Atom = Node;

struct Reference<'a, B: Backend> {
    model: &'a Decoder<B>,
    tokens: &'a TokenBatch,
    tree: &'a ScrubTree,
    apart: bool,
    device: &'a B::Device,
}

impl<B: Backend> Reference<'_, B> {
    fn forward(
        &self,
        rows: &[usize],
        replaced: Vec<(Site, Tensor<B, 4>)>,
    ) -> (Seen<B>, Tensor<B, 3>) {
        let mut tap = Replacing {
            replaced,
            seen: RefCell::default(),
        };
        let tokens = self.tokens.select(rows).expect("drawn");
        let tokens = ModelInput::Tokens(tokens.to_tensor(self.device));
        let logits = self.model.forward_tapped(tokens, &mut tap);
        (tap.seen.into_inner(), logits)
    }

    /// The activation at a site when some activation is replaced.
    fn with(&self, site: Site, replaced: Vec<(Site, Tensor<B, 4>)>) -> Tensor<B, 4> {
        let (seen, _) = self.forward(&self.tree.examples(), replaced);
        seen[&site].clone()
    }

    /// Where an atom's value is: a head's before the output projection.
    fn site(atom: Atom) -> Site {
        match atom {
            Node::Embedding => Site::Embedding,
            Node::Head { layer, .. } => Site::Block(layer, Component::AttentionValueOutput),
            Node::Mlp { layer } => Site::Block(layer, Component::MlpOutput),
            Node::Attention { .. } => unreachable!("not an atom"),
        }
    }

    /// An atom's value in a clean run.
    fn clean(&self, rows: &[usize], atom: Atom) -> Tensor<B, 4> {
        self.forward(rows, Vec::new()).0[&Self::site(atom)].clone()
    }

    /// An atom's value in a node of the tree.
    fn value(&self, index: usize, atom: Atom) -> Tensor<B, 4> {
        let node = &self.tree.nodes()[index];
        let place = node.place.as_ref().expect("not the output");
        if node.reads.is_empty() {
            return self.clean(self.tree.donors(index), atom);
        }
        match place.part {
            Part::Node(Node::Mlp { layer }) => {
                let x = self.residual(index, None, 2 * layer + 2);
                let replaced = vec![(Site::Block(layer, Component::ResidualMid), x)];
                self.with(Self::site(atom), replaced)
            }
            Part::Node(Node::Head { layer, .. } | Node::Attention { layer }) => {
                let inputs = [
                    (HeadInput::Query, Component::QueryOutput),
                    (HeadInput::Key, Component::KeyOutput),
                    (HeadInput::Value, Component::ValueOutput),
                ];
                let replaced = inputs.map(|(input, component)| {
                    let x = self.residual(index, Some(input), 2 * layer + 1);
                    let site = Site::Block(layer, component);
                    let replaced = vec![(Site::Block(layer, Component::BlockInput), x)];
                    (site, self.with(site, replaced))
                });
                self.with(Self::site(atom), replaced.to_vec())
            }
            Part::Node(Node::Embedding) | Part::Stream => unreachable!("these read nothing"),
        }
    }

    /// The value of an atom that a node reads, chosen row by row and position by position.
    fn read(&self, index: usize, input: Option<HeadInput>, atom: Atom) -> Tensor<B, 4> {
        let node = &self.tree.nodes()[index];
        let layer_of = match atom {
            Node::Head { layer, .. } => Some(Node::Attention { layer }),
            _ => None,
        };
        let reads = node.reads.iter().filter(|read| {
            let own = &self.tree.nodes()[**read];
            let part = own.place.as_ref().expect("not the output").part;
            let about = part == Part::Stream
                || part == Part::Node(atom)
                || layer_of.is_some_and(|layer| part == Part::Node(layer));
            own.input == input && about
        });
        let rows = match self.apart {
            false => self.tree.unimportant(index),
            true => {
                let own = self.tree.unimportant_part(index, input, atom);
                let own = own.or_else(|| self.tree.unimportant_part(index, input, layer_of?));
                own.expect("every part has one")
            }
        };
        let mut value = self.clean(rows, atom);
        for read in reads {
            let new = self.value(*read, atom);
            let place = self.tree.nodes()[*read].place.as_ref().expect("a place");
            let [_rows, heads, pos, width] = new.dims();
            for (row, example) in self.tree.examples().into_iter().enumerate() {
                let positions = match &place.positions {
                    Indices::All => (0..pos).collect(),
                    Indices::Same(same) => same.clone(),
                    Indices::Each(each) => each[example].clone(),
                };
                for position in positions {
                    let cell = [row..row + 1, 0..heads, position..position + 1, 0..width];
                    value = value.slice_assign(cell.clone(), new.clone().slice(cell));
                }
            }
        }
        value
    }

    /// The sum of all that a node reads by an input, up to a depth.
    fn residual(&self, index: usize, input: Option<HeadInput>, depth: usize) -> Tensor<B, 4> {
        let mut sum = self.read(index, input, Node::Embedding);
        for at in 1..depth {
            let layer = (at - 1) / 2;
            sum = sum
                + match at % 2 {
                    0 => self.read(index, input, Node::Mlp { layer }),
                    _ => {
                        let heads = 0..self.model.dims().heads;
                        let mixed = heads.map(|head| {
                            let atom = Node::Head { layer, head };
                            self.read(index, input, atom).narrow(1, head, 1)
                        });
                        let site = Site::Block(layer, Component::AttentionValueOutput);
                        let mixed = Tensor::cat(mixed.collect(), 1);
                        let output = Site::Block(layer, Component::AttentionOutput);
                        self.with(output, vec![(site, mixed)])
                    }
                };
        }
        sum
    }

    /// Loss and divergence from the model, `[row]` each.
    fn run(&self) -> [Vec<f64>; 2] {
        let layers = self.model.dims().layers;
        let x = self.residual(0, None, 2 * layers + 1);
        let site = Site::Block(layers - 1, Component::BlockOutput);
        let examples = self.tree.examples();
        let last = |logits: Tensor<B, 3>| logits.narrow(1, 4, 1).squeeze_dim::<2>(1);
        let logits = last(self.forward(&examples, vec![(site, x)]).1);
        let losses = loss(logits.clone(), &examples, self.tokens);
        let model = last(self.forward(&examples, Vec::new()).1);
        let probabilities = |logits: Tensor<B, 2>| -> Vec<f64> {
            let data = logits.into_data();
            let logits: Vec<f64> = data.iter::<f64>().collect();
            logits.iter().map(|logit| logit.exp()).collect()
        };
        let vocab = model.dims()[1];
        let [wanted, found] = [model, logits].map(probabilities);
        let divergences = wanted.chunks(vocab).zip(found.chunks(vocab)).map(|(p, q)| {
            let [p_sum, q_sum] = [p, q].map(|all| all.iter().sum::<f64>());
            let terms = p.iter().zip(q);
            terms
                .map(|(p, q)| p / p_sum * (p / p_sum * q_sum / q).ln())
                .sum()
        });
        [
            losses.into_data().iter::<f64>().collect(),
            divergences.collect(),
        ]
    }
}

/// Makes a hypothesis of a list of choices; where the list ends, all choices are the first.
struct Choices<'a> {
    choices: std::slice::Iter<'a, u8>,
    hypothesis: Hypothesis<Example>,
    /// Nodes made so far: name, place, and whether it reads others.
    nodes: Vec<(String, Place)>,
}

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(*self.choices.next().unwrap_or(&0)) % count
    }

    /// The names of nodes that one reads before a depth, none of which meet.
    fn reads(&mut self, depth: usize, count: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..count {
            let known = self.below(4) == 0 && !self.nodes.is_empty();
            let (name, place) = match known {
                true => {
                    let index = self.below(self.nodes.len());
                    self.nodes[index].clone()
                }
                false => (String::new(), self.place(depth)),
            };
            let fits = match place.part {
                Part::Node(node) => depth_of(node) < depth,
                Part::Stream => true,
            };
            if !fits || places.iter().any(|other| meet(other, &place)) {
                continue;
            }
            places.push(place.clone());
            names.push(match known {
                true => name,
                false => self.node(place),
            });
        }
        names
    }

    fn node(&mut self, place: Place) -> String {
        // Nodes below come first, so that none reads itself.
        let mut reads = Vec::new();
        if let Part::Node(node) = place.part
            && self.below(3) > 0
        {
            let inputs = match node {
                Node::Embedding => Vec::new(),
                Node::Mlp { .. } => vec![None],
                _ => HeadInput::ALL.map(Some).to_vec(),
            };
            for input in inputs {
                let count = self.below(3);
                reads.push((input, self.reads(depth_of(node), count)));
            }
        }
        let name = format!("n{}", self.nodes.len());
        let feature = match self.below(4) {
            0 => Feature::input(),
            1 => Feature::nothing(),
            2 => token(0),
            _ => Feature::new("parity", |tokens: &Example| tokens[3] % 2),
        };
        let mut hypothesis = std::mem::take(&mut self.hypothesis);
        hypothesis = hypothesis.node(name.clone(), place.clone(), feature);
        for (input, reads) in reads {
            hypothesis = match input {
                None => hypothesis.mlp_reads(name.clone(), reads),
                Some(input) => hypothesis.head_reads(name.clone(), input, reads),
            };
        }
        self.hypothesis = hypothesis;
        self.nodes.push((name.clone(), place));
        name
    }

    fn place(&mut self, depth: usize) -> Place {
        let at = self.below(depth + 1);
        let place = match (at, at % 2) {
            (0, _) => Node::Embedding.into(),
            (at, _) if at == depth => Place::stream(),
            (_, 0) => Node::Mlp { layer: at / 2 - 1 }.into(),
            _ => match self.below(5) {
                4 => Node::Attention { layer: at / 2 }.into(),
                head => Place::from(Node::Head {
                    layer: at / 2,
                    head,
                }),
            },
        };
        let each = (0..ROWS).map(|row| vec![row % 5]);
        let positions = [
            Indices::All,
            Indices::Same(vec![4]),
            Indices::Same(vec![1, 3]),
            Indices::Each(each.collect()),
        ];
        place.at(positions[self.below(4)].clone())
    }
}

fn depth_of(node: Node) -> usize {
    match node {
        Node::Embedding => 0,
        Node::Attention { layer } | Node::Head { layer, .. } => 2 * layer + 1,
        Node::Mlp { layer } => 2 * layer + 2,
    }
}

/// Whether two places have something in common, or may have.
fn meet(a: &Place, b: &Place) -> bool {
    let apart = match (a.part, b.part) {
        (
            Part::Node(Node::Head { layer: a, head: c }),
            Part::Node(Node::Head { layer: b, head: d }),
        ) => (a, c) != (b, d),
        (Part::Node(a), Part::Node(b)) => depth_of(a) != depth_of(b),
        _ => false,
    };
    let positions = match (&a.positions, &b.positions) {
        (Indices::Same(a), Indices::Same(b)) => a.iter().any(|position| b.contains(position)),
        _ => true,
    };
    !apart && positions
}

const ROWS: usize = 6;

fn random_trees_mean_what_their_definition_says<B: Backend>(device: &B::Device) {
    let tokens = dataset(ROWS);
    for name in MODELS {
        let model = load::<B>(name, device);
        // Many of the trees are small, and those that are not have many forward passes.
        let config = Config {
            cases: Config::default().cases.min(64),
            failure_persistence: None,
            ..Config::default()
        };
        let strategy = (prop::collection::vec(any::<u8>(), 1..80), any::<u64>());
        let mut runner = TestRunner::new(config);
        let run = runner.run(&strategy, |(choices, seed)| {
            let mut choices = Choices {
                choices: choices.iter(),
                hypothesis: Hypothesis::new(),
                nodes: Vec::new(),
            };
            let samples = 1 + choices.below(2);
            let unimportant = [Unimportant::Shared, Unimportant::Apart][choices.below(2)];
            let count = 1 + choices.below(3);
            let reads = choices.reads(5, count);
            let hypothesis = choices.hypothesis.output_reads(reads);
            let options = ScrubOptions::default()
                .with_seed(seed)
                .with_samples(samples)
                .with_donors(Donors::WithSelf)
                .with_unimportant(unimportant);
            let tree = hypothesis.treeify(model.dims(), &tokens, tokens.ids(), &options);
            let tree = tree.expect("a hypothesis about the model");
            let reference = Reference {
                model: &model,
                tokens: &tokens,
                tree: &tree,
                apart: unimportant == Unimportant::Apart,
                device,
            };
            let [losses, divergences] = reference.run();
            let found = scrubbed(&model, &tree, &tokens);
            for (found, expected) in found.losses.iter().zip(losses.chunks(samples)) {
                let expected = expected.iter().sum::<f64>() / samples as f64;
                let difference = (found[2] - expected).abs() / expected.max(1.0);
                prop_assert!(
                    difference <= 1e-5,
                    "{found:?} is not {expected}: {hypothesis:?}"
                );
            }
            let expected = divergences.iter().sum::<f64>() / divergences.len() as f64;
            prop_assert!(
                (found.kl - expected).abs() <= 1e-5,
                "{} is not {expected}",
                found.kl
            );
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
