//! The meaning of scrubbing, written from the definition (Chan et al. 2022, "Causal Scrubbing",
//! Algorithm 1): recursion over the tree, with plain forward passes for each node under a tap that
//! replaces activations. Independent of plans, worlds, streams and differences.

use std::collections::HashMap;

use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::Indices;
use burn_align::methods::{
    Donors, Feature, Hypothesis, Part, Place, ScrubOptions, ScrubTree, Unimportant,
};
use burn_align::paths::{HeadInput, Node};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, ModelDims, ModelInput, Site, TokenBatch,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Example, dataset, loss, scrubbed, token};
use crate::paths::{FAMILIES, depth};
use crate::support::{Replacing, load};

on_every_backend!(random_trees_mean_what_their_definition_says);

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
        let mut tap = Replacing::new(replaced);
        let tokens = self.tokens.select(rows).expect("drawn");
        let tokens = ModelInput::Tokens(tokens.to_tensor(self.device));
        let logits = self.model.forward_tapped(tokens, &mut tap);
        (tap.seen, logits)
    }

    /// The activation at a site when some activation is replaced.
    fn with(&self, site: Site, replaced: Vec<(Site, Tensor<B, 4>)>) -> Tensor<B, 4> {
        let (seen, _) = self.forward(&self.tree.examples(), replaced);
        seen[&site].clone()
    }

    /// Where an atom's value is: a head's before the output projection.
    fn site(&self, atom: Atom) -> Site {
        match atom {
            Node::Embedding => Site::Embedding,
            Node::Head { layer, .. } => Site::Block(layer, Component::AttentionValueOutput),
            Node::Mlp { layer } => Site::Block(layer, self.model.dims().added_by_mlp()),
            Node::Attention { .. } => unreachable!("not an atom"),
        }
    }

    /// An atom's value in a clean run.
    fn clean(&self, rows: &[usize], atom: Atom) -> Tensor<B, 4> {
        self.forward(rows, Vec::new()).0[&self.site(atom)].clone()
    }

    /// An atom's value in a node of the tree.
    fn value(&self, index: usize, atom: Atom) -> Tensor<B, 4> {
        let node = &self.tree.nodes()[index];
        let place = node.place.as_ref().expect("not the output");
        if node.reads.is_empty() {
            return self.clean(self.tree.donors(index), atom);
        }
        let dims = self.model.dims();
        match place.part {
            Part::Node(node @ Node::Mlp { layer }) => {
                let x = self.residual(index, None, depth(node, dims));
                let replaced = vec![(Site::Block(layer, dims.read_by_mlp()), x)];
                self.with(self.site(atom), replaced)
            }
            Part::Node(node @ (Node::Head { layer, .. } | Node::Attention { layer })) => {
                let inputs = [
                    (HeadInput::Query, Component::QueryOutput),
                    (HeadInput::Key, Component::KeyOutput),
                    (HeadInput::Value, Component::ValueOutput),
                ];
                let replaced = inputs.map(|(input, component)| {
                    let x = self.residual(index, Some(input), depth(node, dims));
                    let site = Site::Block(layer, component);
                    let replaced = vec![(Site::Block(layer, Component::BlockInput), x)];
                    (site, self.with(site, replaced))
                });
                self.with(self.site(atom), replaced.to_vec())
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

    /// The sum of all that a node at a depth reads by an input.
    fn residual(&self, index: usize, input: Option<HeadInput>, reader: usize) -> Tensor<B, 4> {
        let dims = self.model.dims();
        let before = Node::all(dims).into_iter();
        let before = before.filter(|node| depth(*node, dims) < reader);
        let outputs = before.map(|node| match node {
            Node::Attention { layer } => {
                let mixed = (0..dims.heads).map(|head| {
                    let atom = Node::Head { layer, head };
                    self.read(index, input, atom).narrow(1, head, 1)
                });
                let mixed = Tensor::cat(mixed.collect(), 1);
                let site = Site::Block(layer, Component::AttentionValueOutput);
                let output = Site::Block(layer, dims.added_by_attention());
                self.with(output, vec![(site, mixed)])
            }
            atom => self.read(index, input, atom),
        });
        let sum = outputs.reduce(|sum, output| sum + output);
        sum.expect("the embedding lies before every reader")
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
    dims: &'a ModelDims,
    hypothesis: Hypothesis<Example>,
    /// Nodes made so far: name, place, and whether it reads others.
    nodes: Vec<(String, Place)>,
}

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(*self.choices.next().unwrap_or(&0)) % count
    }

    /// The names of nodes that one reads before a depth, none of which meet.
    fn reads(&mut self, reader: usize, count: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..count {
            let known = self.below(4) == 0 && !self.nodes.is_empty();
            let (name, place) = match known {
                true => {
                    let index = self.below(self.nodes.len());
                    self.nodes[index].clone()
                }
                false => (String::new(), self.place(reader)),
            };
            let fits = match place.part {
                Part::Node(node) => depth(node, self.dims) < reader,
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
            let reader = depth(node, self.dims);
            let inputs = match node {
                Node::Embedding => Vec::new(),
                Node::Mlp { .. } => vec![None],
                _ => HeadInput::ALL.map(Some).to_vec(),
            };
            for input in inputs {
                let count = self.below(3);
                reads.push((input, self.reads(reader, count)));
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

    fn place(&mut self, reader: usize) -> Place {
        let dims = self.dims;
        let before = Node::all(dims).into_iter();
        let before: Vec<Node> = before.filter(|node| depth(*node, dims) < reader).collect();
        let at = self.below(before.len() + 1);
        let place = match before.get(at).copied() {
            None => Place::stream(),
            Some(Node::Attention { layer }) => match self.below(dims.heads + 1) {
                head if head < dims.heads => Place::from(Node::Head { layer, head }),
                _ => Place::from(Node::Attention { layer }),
            },
            Some(node) => Place::from(node),
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

/// The node with whose output its own enters the residual stream.
fn whole(node: Node) -> Node {
    match node {
        Node::Head { layer, .. } => Node::Attention { layer },
        node => node,
    }
}

/// Whether two places have something in common, or may have.
fn meet(a: &Place, b: &Place) -> bool {
    let apart = match (a.part, b.part) {
        (
            Part::Node(Node::Head { layer: a, head: c }),
            Part::Node(Node::Head { layer: b, head: d }),
        ) => (a, c) != (b, d),
        (Part::Node(a), Part::Node(b)) => whole(a) != whole(b),
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
    for name in FAMILIES {
        let model = load::<B>(name, device);
        // Many of the trees are small, and those that are not have many forward passes.
        let config = Config {
            cases: Config::default().cases.min(42),
            failure_persistence: None,
            ..Config::default()
        };
        let strategy = (prop::collection::vec(any::<u8>(), 1..80), any::<u64>());
        let mut runner = TestRunner::new(config);
        let run = runner.run(&strategy, |(choices, seed)| {
            let mut choices = Choices {
                choices: choices.iter(),
                dims: model.dims(),
                hypothesis: Hypothesis::new(),
                nodes: Vec::new(),
            };
            let samples = 1 + choices.below(2);
            let unimportant = [Unimportant::Shared, Unimportant::Apart][choices.below(2)];
            let count = 1 + choices.below(3);
            let reads = choices.reads(2 * model.dims().layers + 1, count);
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
