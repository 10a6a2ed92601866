//! The tree that a hypothesis unfolds into, and the inputs drawn for its nodes.

use burn_align_models::{ModelDims, TokenBatch};

use super::check::{Graph, output_depth};
use super::draw::{Classes, rng};
use super::streams::pieces;
use super::{Feature, Hypothesis, Part, Place, ScrubError, ScrubOptions, Unimportant};
use crate::engine::Indices;
use crate::paths::{HeadInput, Node};

/// A treeified [`Hypothesis`]: one node for each way from a node of the hypothesis to the output,
/// with the inputs drawn for it.
///
/// There is one row per example and sample: example `i` has rows `i × samples` up to
/// `(i + 1) × samples`.
#[derive(Clone, Debug)]
pub struct ScrubTree {
    pub(super) tokens: TokenBatch,
    pub(super) options: ScrubOptions,
    /// The names of the hypothesis's nodes.
    names: Vec<String>,
    /// The output comes first, and every node after its reader.
    pub(super) nodes: Vec<ScrubNode>,
    /// For each node of the tree: its number in the hypothesis. `None` for the output.
    origins: Vec<Option<usize>>,
    /// Which examples can replace each other at the output, at each node of the hypothesis, and
    /// where nothing matters.
    output: Option<Classes>,
    classes: Vec<Classes>,
    nothing: Classes,
    /// The inputs drawn.
    pub(super) draws: Draws,
}

/// A node of a [`ScrubTree`], without its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubNode {
    /// Its name in the hypothesis, or `output` for the first one.
    pub name: String,
    /// The name of its feature. `None` for the output, unless it has one.
    pub feature: Option<String>,
    /// Its part of the model. `None` for the output.
    pub place: Option<Place>,
    /// The index of the node that reads it. `None` for the output.
    pub reader: Option<usize>,
    /// The input by which a head reads it.
    pub input: Option<HeadInput>,
    /// The nodes that it reads.
    pub reads: Vec<usize>,
    /// The names on the way from the output to it.
    way: String,
}

/// The inputs of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draws {
    /// `[node][row]`: the example that a node's feature is taken from.
    pub(super) donors: Vec<Vec<usize>>,
    /// `[node][row]`: the example that everything unimportant to a node is taken from.
    pub(super) random: Vec<Vec<usize>>,
    /// Like `random`, if each part has its own, in the order of [`pieces`].
    pub(super) apart: Vec<Vec<Piece>>,
}

/// A part of the model that does not matter to a node that reads it, and the examples it is taken
/// from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) input: Option<HeadInput>,
    pub(super) node: Node,
    /// `[row]`
    pub(super) examples: Vec<usize>,
}

impl<E> Hypothesis<E> {
    /// Checks the hypothesis and draws the inputs of its tree, by the algorithm of the paper:
    ///
    /// - The output takes an example of the dataset, or one that agrees with it on the [output's
    ///   feature](Self::output_feature).
    /// - Each node takes an example that agrees, on its feature, with the example of its reader.
    /// - Everything else that a node reads is taken from a random example, either the same for all
    ///   of it ([`Unimportant::Shared`]) or not ([`Unimportant::Apart`]).
    ///
    /// Draws are independent, and restricted to examples of the same length. Features are computed
    /// from `examples`, one for each prompt; these may be the prompts' token ids
    /// ([`TokenBatch::ids`]).
    ///
    /// # Errors
    /// If a name is unknown or used twice, nodes read each other, a node has no way to the output,
    /// the model does not have a part or does not read it at a later place, two nodes with the same
    /// reader overlap, or an example has no donor.
    pub fn treeify(
        &self,
        dims: &ModelDims,
        tokens: &TokenBatch,
        examples: &[E],
        options: &ScrubOptions,
    ) -> Result<ScrubTree, ScrubError> {
        let graph = self.check(dims)?;
        if options.samples == 0 {
            return Err(ScrubError::NoSample);
        }
        if examples.len() != tokens.batch() {
            return Err(ScrubError::Examples {
                expected: tokens.batch(),
                found: examples.len(),
            });
        }
        self.check_positions(tokens)?;
        let classes = |name: &str, feature: &Feature<E>| {
            let classes = Classes::new(&feature.number(examples), tokens);
            match classes.without_donor(options.donors) {
                None => Ok(classes),
                Some(example) => Err(ScrubError::NoDonor {
                    name: name.to_owned(),
                    feature: feature.name().to_owned(),
                    example,
                }),
            }
        };
        let output = self.output.as_ref();
        let output = output.map(|feature| classes("the output", feature));
        let output = output.transpose()?;
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|node| classes(&format!("{:?}", node.name), &node.feature));
        let classes_of_nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let nothing = classes("what does not matter", &Feature::nothing())?;
        let (nodes, origins) = self.expand(&graph);
        if options.unimportant == Unimportant::Apart {
            self.check_apart(&graph, tokens)?;
        }
        let mut tree = ScrubTree {
            tokens: tokens.clone(),
            options: options.clone(),
            names: self.nodes.iter().map(|node| node.name.clone()).collect(),
            nodes,
            origins,
            output,
            classes: classes_of_nodes,
            nothing,
            draws: Draws {
                donors: Vec::new(),
                random: Vec::new(),
                apart: Vec::new(),
            },
        };
        tree.draws = tree.draw(dims, &[]);
        Ok(tree)
    }

    /// The nodes of the tree, and the node of the hypothesis that each of them comes from.
    fn expand(&self, graph: &Graph) -> (Vec<ScrubNode>, Vec<Option<usize>>) {
        let mut nodes = vec![ScrubNode {
            name: "output".to_owned(),
            feature: self.output.as_ref().map(|f| f.name().to_owned()),
            place: None,
            reader: None,
            input: None,
            reads: Vec::new(),
            way: String::new(),
        }];
        let mut origins = vec![None];
        let mut next = 0;
        while let Some(&origin) = origins.get(next) {
            let reads = match origin {
                None => &graph.output,
                Some(node) => &graph.nodes[node],
            };
            for &(input, read) in reads {
                let node = &self.nodes[read];
                let by = input.map_or_else(String::new, |input| input.to_string());
                let way = format!("{}/{by}/{}", nodes[next].way, node.name);
                let index = nodes.len();
                nodes[next].reads.push(index);
                nodes.push(ScrubNode {
                    name: node.name.clone(),
                    feature: Some(node.feature.name().to_owned()),
                    place: Some(node.place.clone()),
                    reader: Some(next),
                    input,
                    reads: Vec::new(),
                    way,
                });
                origins.push(Some(read));
            }
            next += 1;
        }
        (nodes, origins)
    }

    /// Unimportant parts can be distinguished by position only if all examples have the same
    /// length.
    fn check_apart(&self, graph: &Graph, tokens: &TokenBatch) -> Result<(), ScrubError> {
        let lengths = tokens.lengths();
        if lengths.iter().all(|length| *length == lengths[0]) {
            return Ok(());
        }
        let readers = graph.nodes.iter().enumerate();
        let readers = readers.map(|(reader, reads)| (Some(reader), reads));
        for (reader, reads) in readers.chain([(None, &graph.output)]) {
            for (_, read) in reads {
                let node = &self.nodes[*read];
                if node.place.positions != Indices::All {
                    return Err(ScrubError::ApartLengths {
                        reader: self.reader_name(reader),
                        name: node.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl ScrubTree {
    /// The nodes; the output is the first, and every other one comes after its reader.
    pub fn nodes(&self) -> &[ScrubNode] {
        &self.nodes
    }

    /// The example that each row starts from and whose label it is compared with.
    pub fn examples(&self) -> Vec<usize> {
        let rows = 0..self.rows();
        rows.map(|row| row / self.options.samples).collect()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.batch() * self.options.samples
    }

    /// The example that each row takes at a node. It agrees, on the node's feature, with the
    /// example of the node's reader.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn donors(&self, node: usize) -> &[usize] {
        &self.draws.donors[node]
    }

    /// The random example that each row takes for everything that does not matter to a node, if
    /// these parts share one.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn unimportant(&self, node: usize) -> &[usize] {
        &self.draws.random[node]
    }

    /// The random example that each row takes for one part of the model that does not matter to a
    /// node. `None` if there is no such part, or all parts share one.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn unimportant_part(
        &self,
        node: usize,
        input: Option<HeadInput>,
        part: Node,
    ) -> Option<&[usize]> {
        let mut pieces = self.draws.apart[node].iter();
        let piece = pieces.find(|piece| piece.input == input && piece.node == part)?;
        Some(&piece.examples)
    }

    /// Each node of the hypothesis in a set of its own: sets for
    /// [`scrub_ablations`](super::scrub_ablations).
    pub fn each_node(&self) -> Vec<Vec<String>> {
        self.names.iter().map(|name| vec![name.clone()]).collect()
    }

    /// Looks up nodes of the hypothesis by name.
    pub(super) fn numbers(&self, names: &[String]) -> Result<Vec<usize>, ScrubError> {
        let numbers = names.iter().map(|name| {
            let number = self.names.iter().position(|other| other == name);
            number.ok_or_else(|| ScrubError::UnknownAblation { name: name.clone() })
        });
        numbers.collect()
    }

    /// The depth at which a node of the tree reads.
    pub(super) fn depth(&self, node: usize, dims: &ModelDims) -> usize {
        match &self.nodes[node].place {
            None => output_depth(dims),
            Some(place) => match place.part {
                Part::Node(node) => node.depth(dims),
                Part::Stream => 0,
            },
        }
    }

    /// Draws the inputs, with the features of some nodes of the hypothesis replaced by nothing.
    pub(super) fn draw(&self, dims: &ModelDims, ablated: &[usize]) -> Draws {
        let options = &self.options;
        let mut draws = Draws {
            donors: Vec::new(),
            random: Vec::new(),
            apart: Vec::new(),
        };
        for (index, (node, origin)) in self.nodes.iter().zip(&self.origins).enumerate() {
            let rng = |what: &str| rng(options.seed, &node.way, what);
            let donors = match (origin, node.reader) {
                (Some(origin), Some(reader)) => {
                    let classes = match ablated.contains(origin) {
                        true => &self.nothing,
                        false => &self.classes[*origin],
                    };
                    let from: &[usize] = &draws.donors[reader];
                    classes.draw(from, options.donors, &mut rng("donor"))
                }
                _ => match &self.output {
                    Some(classes) => {
                        classes.draw(&self.examples(), options.donors, &mut rng("donor"))
                    }
                    None => self.examples(),
                },
            };
            let random = |what: &str| self.nothing.draw(&donors, options.donors, &mut rng(what));
            draws.random.push(random("random"));
            draws.apart.push(match options.unimportant {
                Unimportant::Shared => Vec::new(),
                Unimportant::Apart => {
                    let pieces = pieces(self, index, dims).into_iter();
                    let pieces = pieces.map(|(input, node)| Piece {
                        input,
                        node,
                        examples: random(&match input {
                            Some(input) => format!("{input} {node}"),
                            None => node.to_string(),
                        }),
                    });
                    pieces.collect()
                }
            });
            draws.donors.push(donors);
        }
        draws
    }
}
