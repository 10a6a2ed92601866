//! Queries and keys, whose effect on attention weights is computed and not linearised.

use std::collections::HashSet;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn_align_models::{AlignableTransformer, Component, ModelDims, Site};

use super::atp::difference;
use super::gradients::{Part, REPLACE, interventions};
use super::parts::{tracked_plan_of, units_of};
use super::{AttributionError, Metric, Patching};
use crate::engine::{Edit, Units, read_numbers};

/// Which of a layer's attention weights a node changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Those of its own positions.
    Query,
    /// Those of all positions that attend to its own.
    Key,
}

/// The side of a site, if it is one of queries or keys.
pub(super) fn side(site: Site) -> Option<Side> {
    use Component::*;
    match site {
        Site::Block(_, QueryOutput | QueryNorm | RotaryQuery) => Some(Side::Query),
        Site::Block(_, KeyOutput | KeyNorm | RotaryKey) => Some(Side::Key),
        _ => None,
    }
}

/// The nodes that are queries or keys.
pub(super) struct QkFix<'a> {
    nodes: &'a [(Site, Units)],
    /// Layers, with indices of their nodes.
    layers: Vec<(usize, Vec<usize>)>,
}

/// Nodes that change different attention weights, and so can be patched in one world.
struct Group {
    site: Site,
    nodes: Vec<usize>,
    /// Example, head and position that are taken.
    taken: HashSet<[usize; 3]>,
}

/// For each of the passes: the effect on each example.
type ByPass = Vec<Vec<f64>>;

impl<'a> QkFix<'a> {
    /// - chosen: indices of the nodes that have a [`side`]
    pub(super) fn new(nodes: &'a [(Site, Units)], chosen: &[usize]) -> Self {
        let mut layers: Vec<(usize, Vec<usize>)> = Vec::new();
        for node in chosen {
            let Site::Block(layer, _) = nodes[*node].0 else {
                continue;
            };
            match layers.iter_mut().find(|(other, _)| *other == layer) {
                Some((_, own)) => own.push(*node),
                None => layers.push((layer, vec![*node])),
            }
        }
        Self { nodes, layers }
    }

    /// The attention weights of the layers, whose gradients are needed.
    pub(super) fn weights(&self) -> impl Iterator<Item = (Site, Units)> + '_ {
        let layers = self.layers.iter();
        layers.map(|(layer, _)| (weights_of(*layer), Units::ALL))
    }

    /// `Σ (A′ − A) · ∂m/∂A` for each node: by backward pass, and then by example.
    ///
    /// # Shapes
    /// - base: for each layer, its attention weights, `[batch, pos, head * pos]`
    /// - gradients: for each pass and each layer, the same
    pub(super) fn effects<A, M, T>(
        &self,
        part: &Part<'_, M, T>,
        patching: &Patching<A::InnerBackend>,
        base: &[Tensor<A::InnerBackend, 3>],
        gradients: &[Vec<Tensor<A::InnerBackend, 3>>],
    ) -> Result<Vec<(usize, ByPass)>, AttributionError>
    where
        A: AutodiffBackend,
        M: AlignableTransformer<A>,
        T: Metric,
    {
        /// Numbers that are read at a time: 64 MiB.
        const AT_ONCE: usize = 1 << 24;
        let dims = part.model.dims();
        let [batch, pos] = part.size;
        let budget = part.options.memory_budget;
        // A sixteenth of the bytes, in numbers of four bytes.
        let budget = budget.map_or(AT_ONCE, |bytes| (bytes / 64) as usize);
        let of_world = batch * pos * dims.heads * pos;
        let at_once = (budget.min(AT_ONCE) / of_world.max(1)).max(1);
        let mut found = Vec::new();
        for (index, (layer, nodes)) in self.layers.iter().enumerate() {
            let groups = self.groups(nodes, dims, part.examples, pos);
            for groups in groups.chunks(at_once) {
                let inputs = [patching.base(), patching.source()];
                let (mut plan, [to, from]) = tracked_plan_of::<A, 2>(inputs, part.examples)?;
                let source = plan.world(from, []);
                let reads = groups.iter().map(|group| {
                    let edits = group.nodes.iter().map(|node| {
                        let units = units_of(&self.nodes[*node].1, part.examples);
                        Edit::from_world(source, group.site, units, REPLACE)
                    });
                    let edits: Vec<Edit> = edits.collect();
                    let world = plan.world(to, edits);
                    plan.read(world, weights_of(*layer), Units::ALL)
                });
                let reads: Vec<_> = reads.collect();
                let results = plan.run_with(part.model, &interventions::<A>(), part.options)?;
                for (group, read) in groups.iter().zip(reads) {
                    let patched = results.get(read).inner();
                    let change = difference(patched, base[index].clone());
                    let products = gradients.iter().map(|of_layers| {
                        let product = change.clone() * of_layers[index].clone();
                        let cells = product.reshape([of_world / pos, pos]);
                        cells.sum_dim(1).reshape([of_world / pos]) // [batch * pos * head]
                    });
                    let cells = read_numbers(Tensor::cat(products.collect(), 0))?;
                    let by_pass: Vec<&[f64]> = cells.chunks(of_world / pos).collect();
                    for node in &group.nodes {
                        let own = by_pass.iter();
                        let own =
                            own.map(|cells| self.sums(*node, cells, dims, part.examples, pos));
                        found.push((*node, own.collect()));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Groups of a layer's nodes, as few as a greedy choice gives.
    fn groups(
        &self,
        nodes: &[usize],
        dims: &ModelDims,
        examples: &[usize],
        pos: usize,
    ) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for node in nodes {
            let (site, units) = &self.nodes[*node];
            let cells = self.cells(*site, units, dims, examples, pos);
            let free = groups.iter_mut().find(|group| {
                group.site == *site && cells.iter().all(|cell| !group.taken.contains(cell))
            });
            match free {
                Some(group) => {
                    group.nodes.push(*node);
                    group.taken.extend(cells);
                }
                None => groups.push(Group {
                    site: *site,
                    nodes: vec![*node],
                    taken: cells.into_iter().collect(),
                }),
            }
        }
        groups
    }

    /// What a node takes of a world. Queries of one head at one position decide on weights of their
    /// own; keys of one head share the weights of all queries. A norm may mix the heads.
    fn cells(
        &self,
        site: Site,
        units: &Units,
        dims: &ModelDims,
        examples: &[usize],
        pos: usize,
    ) -> Vec<[usize; 3]> {
        let mixes = mixes_heads(site, dims);
        let (heads, positions) = match side(site) {
            Some(Side::Key) => (dims.kv_heads, false),
            _ => (dims.heads, true),
        };
        let mut cells = Vec::new();
        for example in examples {
            let heads = match mixes {
                true => vec![0],
                false => units.heads.of(*example, heads),
            };
            let positions = match positions {
                true => units.positions.of(*example, pos),
                false => vec![0],
            };
            for head in heads {
                cells.extend(positions.iter().map(|position| [*example, head, *position]));
            }
        }
        cells
    }

    /// The sum over the attention weights that a node changes, for each example.
    ///
    /// - cells: `[batch, pos, head]`
    fn sums(
        &self,
        node: usize,
        cells: &[f64],
        dims: &ModelDims,
        examples: &[usize],
        pos: usize,
    ) -> Vec<f64> {
        let (site, units) = &self.nodes[node];
        let shared = dims.heads / dims.kv_heads;
        let sums = examples.iter().enumerate().map(|(row, example)| {
            let heads: Vec<usize> = match side(*site) {
                _ if mixes_heads(*site, dims) => (0..dims.heads).collect(),
                Some(Side::Key) => {
                    let kv_heads = units.heads.of(*example, dims.kv_heads).into_iter();
                    let heads = kv_heads.flat_map(|kv| kv * shared..(kv + 1) * shared);
                    heads.collect()
                }
                _ => units.heads.of(*example, dims.heads),
            };
            let positions = match side(*site) {
                Some(Side::Key) => (0..pos).collect(),
                _ => units.positions.of(*example, pos),
            };
            let positions = positions.into_iter().map(|position| {
                let first = (row * pos + position) * dims.heads;
                heads.iter().map(|head| cells[first + head]).sum::<f64>()
            });
            positions.sum()
        });
        sums.collect()
    }
}

fn weights_of(layer: usize) -> Site {
    Site::Block(layer, Component::AttentionWeights)
}

/// Whether one head's vector may change other heads' attention weights, since the norm that follows
/// may run over the features of all heads.
fn mixes_heads(site: Site, dims: &ModelDims) -> bool {
    use Component::{KeyOutput, QueryOutput};
    dims.qk_norm && matches!(site, Site::Block(_, QueryOutput | KeyOutput))
}
