//! Automatic circuit discovery.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::super::{Circuit, CircuitAblation, CircuitError, Edge, EdgeGraph, EdgeMasking, Reader};
use super::objective::{check_count, divergences};
use crate::engine::{LogitPositions, RunOptions, read_numbers};
use crate::methods::attribution::Patching;

/// How edges are tried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcdcOptions {
    /// By how much the divergence may grow when an edge is taken out, in nats. Default: 0.01.
    pub threshold: f64,
    /// Most edges to try together: if all of them go, their runs were one. It changes no result.
    /// Default: 8.
    pub at_once: usize,
    /// What edges outside of the circuit carry. Default: the writers' outputs on the source.
    pub ablation: CircuitAblation,
    /// Budgets for the runs that are made once.
    pub run: RunOptions,
}

impl Default for AcdcOptions {
    fn default() -> Self {
        Self {
            threshold: 0.01,
            at_once: 8,
            ablation: CircuitAblation::default(),
            run: RunOptions::default(),
        }
    }
}

impl AcdcOptions {
    /// Sets by how much the divergence may grow.
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Sets how many edges are tried together.
    pub fn with_at_once(mut self, at_once: usize) -> Self {
        self.at_once = at_once;
        self
    }

    /// Sets what edges outside of the circuit carry.
    pub fn with_ablation(mut self, ablation: CircuitAblation) -> Self {
        self.ablation = ablation;
        self
    }

    /// Sets the budgets.
    pub fn with_run(mut self, run: RunOptions) -> Self {
        self.run = run;
        self
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Acdc {
    /// The edges that are left. Not pruned.
    pub circuit: Circuit,
    /// The divergence of its predictions from the model's, in nats.
    pub divergence: f64,
    /// Number of circuits that were run.
    pub runs: usize,
}

/// Takes out edge after edge if nothing much depends on it (ACDC; Conmy et al. 2023, arXiv
/// 2304.14997, algorithm 1): readers from the logits down, of each reader the later writers first.
/// An edge is left out if `KL(model ‖ circuit)` after the last token, averaged over examples,
/// grows by less than the threshold.
///
/// While the edges of a reader are tried, everything before it is still as in the model, so runs
/// start at its layer. Several edges are tried together: without the first, without the first two,
/// and so on, until one must stay.
///
/// # When it misleads
/// The order decides between edges that do the same work: the first one tried goes, the last one
/// stays. And a threshold that many edges stay just below lets the divergence grow without a
/// bound.
///
/// # Errors
/// If the threshold is not a number, the prompts do not fit the model, or a run is not finite.
#[doc(alias = "ACDC")]
pub fn acdc<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    patching: &Patching<B>,
    options: &AcdcOptions,
) -> Result<Acdc, CircuitError> {
    check_count("at_once", options.at_once)?;
    if options.threshold.is_nan() {
        return Err(CircuitError::Setting {
            what: "threshold",
            expected: "a number",
            found: options.threshold.to_string(),
        });
    }
    let positions = LogitPositions::Last;
    let masking = EdgeMasking::new(model, patching, options.ablation, &positions, &options.run)?;
    let whole = masking.whole_changes()?;
    let base = masking.base_logits();
    let mut found = Acdc {
        circuit: Circuit::full(masking.graph().clone()),
        divergence: 0.0,
        runs: 0,
    };
    let graph = masking.graph();
    for reader in (0..graph.readers().len()).rev() {
        let mut open: Vec<usize> = (0..graph.before(reader)).rev().collect();
        let mut at_once = 1;
        while !open.is_empty() {
            // Without the first, the first two, …
            let mut circuits: Vec<Circuit> = Vec::new();
            for writer in open.iter().take(at_once) {
                let last = circuits.last().unwrap_or(&found.circuit).clone();
                circuits.push(last.with_edge(
                    Edge {
                        writer: *writer,
                        reader,
                    },
                    false,
                )?);
            }
            let sublayer = sublayer_of(graph, reader);
            let logits = masking.logits_from(&circuits, sublayer, &whole)?;
            let each = divergences(base.clone().repeat_dim(0, circuits.len()), logits);
            let numbers = read_numbers(each)?;
            let values = numbers.chunks(patching.batch());
            let values = values.map(|own| own.iter().sum::<f64>() / own.len() as f64);
            found.runs += circuits.len();
            let mut stays = false;
            let mut tried = 0;
            for (circuit, value) in circuits.into_iter().zip(values) {
                if !value.is_finite() {
                    return Err(CircuitError::Diverged { step: found.runs });
                }
                tried += 1;
                if value - found.divergence >= options.threshold {
                    stays = true;
                    break;
                }
                found.circuit = circuit;
                found.divergence = value;
            }
            open.drain(..tried);
            at_once = match stays {
                true => 1,
                false => (2 * at_once).min(options.at_once),
            };
        }
    }
    Ok(found)
}

/// The sublayer that a reader belongs to: attention of each layer, then its MLP; last the logits.
fn sublayer_of(graph: &EdgeGraph, reader: usize) -> usize {
    match graph.readers()[reader] {
        Reader::Query { layer, .. } | Reader::Key { layer, .. } | Reader::Value { layer, .. } => {
            2 * layer
        }
        Reader::Mlp { layer } => 2 * layer + 1,
        Reader::Logits => 2 * graph.layers(),
    }
}
