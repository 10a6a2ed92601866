//! Completeness and minimality: the other criteria for a circuit, beside faithfulness.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Circuit, CircuitAblation, CircuitError, GraphNode, evaluate_circuits};
use crate::engine::RunOptions;
use crate::methods::attribution::{Metric, Patching};

/// What is left without some nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Completeness {
    /// The nodes that were taken out, as indices of writers.
    pub without: Vec<usize>,
    /// The mean metric of the circuit without them.
    pub circuit: f64,
    /// The mean metric of the model without them.
    pub model: f64,
}

impl Completeness {
    /// `|m(C ∖ K) − m(M ∖ K)|`: by how much circuit and model differ without the nodes `K`.
    pub fn incompleteness(&self) -> f64 {
        (self.circuit - self.model).abs()
    }
}

/// How much a node adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimality {
    /// The node, as the index of a writer.
    pub node: usize,
    /// The nodes that were taken out before it.
    pub without: Vec<usize>,
    /// The mean metric of the circuit without these.
    pub before: f64,
    /// The mean metric without the node as well.
    pub after: f64,
}

impl Minimality {
    /// `|m(C ∖ (K ∪ {v})) − m(C ∖ K)|`: what the node `v` adds to the circuit without `K`.
    pub fn change(&self) -> f64 {
        (self.after - self.before).abs()
    }
}

/// Sets of nodes of a circuit, each of which is in a set with probability 1/2: what the authors of
/// the IOI circuit measured completeness on, beside sets that they searched for.
pub fn random_node_sets(circuit: &Circuit, count: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let writers = writers_of(circuit);
    let mut one = || -> Vec<usize> {
        let drawn = writers.iter().copied().filter(|_| rng.random::<bool>());
        drawn.collect()
    };
    (0..count).map(|_| one()).collect()
}

/// The writers of a circuit, by their indices.
fn writers_of(circuit: &Circuit) -> Vec<usize> {
    let nodes = circuit.nodes().into_iter();
    let writers = nodes.filter_map(|node| match node {
        GraphNode::Writer(writer) => Some(writer),
        GraphNode::Logits => None,
    });
    writers.collect()
}

/// Whether a circuit misses what the model falls back on: for each set of nodes `K`, the metric of
/// circuit and model without them, which are close if the circuit is complete (Wang et al. 2022,
/// arXiv 2211.00593, §4.1).
///
/// A node is taken out by ablating all edges from and to it.
///
/// # When it misleads
/// Random sets are easy: the circuit of IOI differs from the model by a few per cent on them, and
/// by half on sets that were searched for.
///
/// # Errors
/// As [`evaluate_circuits`], or if there is no such writer.
pub fn completeness<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    circuit: &Circuit,
    sets: &[Vec<usize>],
    ablation: CircuitAblation,
    metric: &T,
    options: &RunOptions,
) -> Result<Vec<Completeness>, CircuitError> {
    let whole = Circuit::full(circuit.graph().clone());
    let pairs = sets.iter().flat_map(|set| [(circuit, set), (&whole, set)]);
    let means = means_without(model, patching, pairs, ablation, metric, options)?;
    let pairs = sets.iter().zip(means.chunks(2));
    let found = pairs.map(|(set, means)| Completeness {
        without: set.clone(),
        circuit: means[0],
        model: means[1],
    });
    Ok(found.collect())
}

/// Whether every node of a circuit is needed: for each, what it adds to the circuit without some
/// other nodes `K` (Wang et al. 2022, arXiv 2211.00593, §4.2). A circuit is minimal if for each
/// node there is a `K` for which it adds much.
///
/// - sets: a node, and the others that are taken out before it; [`alone`] takes none out
///
/// # When it misleads
/// Nodes that do the same work each add nothing while the others are there: take these out, too.
///
/// # Errors
/// As [`evaluate_circuits`], or if there is no such writer.
pub fn minimality<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    circuit: &Circuit,
    sets: &[(usize, Vec<usize>)],
    ablation: CircuitAblation,
    metric: &T,
    options: &RunOptions,
) -> Result<Vec<Minimality>, CircuitError> {
    let with_node = sets.iter().map(|(node, set)| {
        let node = [*node].into_iter();
        set.iter().copied().chain(node).collect::<Vec<usize>>()
    });
    let with_node: Vec<Vec<usize>> = with_node.collect();
    let both = sets.iter().zip(&with_node);
    let pairs = both.flat_map(|((_, set), with_node)| [(circuit, set), (circuit, with_node)]);
    let means = means_without(model, patching, pairs, ablation, metric, options)?;
    let pairs = sets.iter().zip(means.chunks(2));
    let found = pairs.map(|((node, set), means)| Minimality {
        node: *node,
        without: set.clone(),
        before: means[0],
        after: means[1],
    });
    Ok(found.collect())
}

/// Each node of a circuit, with nothing taken out before it.
pub fn alone(circuit: &Circuit) -> Vec<(usize, Vec<usize>)> {
    let writers = writers_of(circuit).into_iter();
    writers.map(|writer| (writer, Vec::new())).collect()
}

/// The mean metric of circuits without some nodes.
fn means_without<'a, B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    pairs: impl Iterator<Item = (&'a Circuit, &'a Vec<usize>)>,
    ablation: CircuitAblation,
    metric: &T,
    options: &RunOptions,
) -> Result<Vec<f64>, CircuitError> {
    let circuits = pairs.map(|(circuit, set)| {
        let writers = circuit.graph().writers().len();
        match set.iter().find(|writer| **writer >= writers) {
            Some(writer) => Err(CircuitError::NoSuchWriter {
                writer: *writer,
                writers,
            }),
            None => Ok(circuit.without(set).pruned()),
        }
    });
    let circuits: Vec<Circuit> = circuits.collect::<Result<_, _>>()?;
    let found = evaluate_circuits(model, patching, &circuits, ablation, metric, options)?;
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    Ok(found.circuits.iter().map(mean).collect())
}
