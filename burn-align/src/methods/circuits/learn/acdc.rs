//! Automatic circuit discovery.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::super::{Circuit, CircuitAblation, CircuitError, Edge, EdgeGraph, EdgeMasking, Reader};
use super::objective::{check_count, divergences};
use crate::engine::{LogitPositions, RunOptions, read_numbers};
use crate::methods::attribution::{Metric, Patching};

/// How edges are tried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcdcOptions {
    /// By how much the loss may grow when an edge is taken out: nats of divergence, or units of
    /// the metric. Default: 0.01.
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
    /// Sets by how much the loss may grow.
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

/// What must not grow, given a metric `m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricLoss {
    /// `−m`: an edge stays if the metric falls without it. Edges that work against the metric go,
    /// so the circuit may do better than the model.
    #[default]
    Negative,
    /// `|m(model) − m|` of each example: an edge stays if the metric leaves that of the model
    /// without it, in whichever direction.
    Deviation,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Acdc {
    /// The edges that are left. Not pruned.
    pub circuit: Circuit,
    /// Its loss, averaged over examples: the divergence of its predictions from the model's in
    /// nats, or that of the metric.
    pub loss: f64,
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
    let masking = masking(model, patching, &LogitPositions::Last, options)?;
    let batch = patching.batch();
    let base = masking.base_logits();
    let losses = |logits: Tensor<B, 3>| {
        let [rows, _unit, _vocab] = logits.dims();
        divergences(base.clone().repeat_dim(0, rows / batch), logits)
    };
    take_out(&masking, base.clone(), losses, options)
}

/// The same by a metric of the task, such as a logit difference, in place of the divergence.
///
/// The threshold is in units of the metric, so the default may be far too small or too large: a
/// hundredth of the difference between base and source is a start.
///
/// # When it misleads
/// As [`acdc`]. By [`MetricLoss::Negative`], what the circuit predicts beside the tokens of the
/// metric may be anything, and taking out an edge that works against the metric makes room for
/// taking out others.
///
/// # Errors
/// As [`acdc`], or if the metric does not fit the prompts or the model.
pub fn acdc_by_metric<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    metric: &T,
    loss: MetricLoss,
    options: &AcdcOptions,
) -> Result<Acdc, CircuitError> {
    let batch = patching.batch();
    metric.check(batch, model.dims().vocab)?;
    let masking = masking(model, patching, &metric.positions(), options)?;
    let examples: Vec<usize> = (0..batch).collect();
    let values = |logits: Tensor<B, 3>| {
        let [rows, _unit, _vocab] = logits.dims();
        let circuits = 0..rows / batch;
        let values = circuits.map(|circuit| {
            let own = logits.clone().narrow(0, circuit * batch, batch);
            metric.values(own, &examples)
        });
        Tensor::cat(values.collect(), 0) // [circuit * batch]
    };
    let base = masking.base_logits();
    match loss {
        MetricLoss::Negative => {
            let losses = |logits: Tensor<B, 3>| values(logits).neg();
            take_out(&masking, base, losses, options)
        }
        MetricLoss::Deviation => {
            let whole = values(base.clone());
            let losses = |logits: Tensor<B, 3>| {
                let [rows, _unit, _vocab] = logits.dims();
                (values(logits) - whole.clone().repeat_dim(0, rows / batch)).abs()
            };
            take_out(&masking, base, losses, options)
        }
    }
}

/// What all runs have in common, once the options are checked.
fn masking<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    patching: &Patching<B>,
    positions: &LogitPositions,
    options: &AcdcOptions,
) -> Result<EdgeMasking<B, M>, CircuitError> {
    check_count("at_once", options.at_once)?;
    if options.threshold.is_nan() {
        return Err(CircuitError::Setting {
            what: "threshold",
            expected: "a number",
            found: options.threshold.to_string(),
        });
    }
    EdgeMasking::new(model, patching, options.ablation, positions, &options.run)
}

/// Takes out the edges whose loss is below the threshold.
///
/// # Shapes
/// - base: the model's own logits, `[batch, unit, vocab]`
/// - losses: from `[circuit * batch, unit, vocab]` to `[circuit * batch]`
fn take_out<B: Backend, M: AlignableTransformer<B>>(
    masking: &EdgeMasking<B, M>,
    base: Tensor<B, 3>,
    losses: impl Fn(Tensor<B, 3>) -> Tensor<B, 1>,
    options: &AcdcOptions,
) -> Result<Acdc, CircuitError> {
    let [batch, _unit, _vocab] = base.dims();
    // The mean loss of each circuit.
    let means = |logits: Tensor<B, 3>| -> Result<Vec<f64>, CircuitError> {
        let numbers = read_numbers(losses(logits))?;
        let circuits = numbers.chunks(batch);
        let means = circuits.map(|own| own.iter().sum::<f64>() / own.len() as f64);
        Ok(means.collect())
    };
    let whole = masking.whole_changes()?;
    let graph = masking.graph();
    let mut found = Acdc {
        circuit: Circuit::full(graph.clone()),
        loss: means(base)?.first().copied().unwrap_or_default(),
        runs: 0,
    };
    if !found.loss.is_finite() {
        return Err(CircuitError::Diverged { step: 0 });
    }
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
            let values = means(masking.logits_from(&circuits, sublayer, &whole)?)?;
            found.runs += circuits.len();
            let mut stays = false;
            let mut tried = 0;
            for (circuit, value) in circuits.into_iter().zip(values) {
                if !value.is_finite() {
                    return Err(CircuitError::Diverged { step: found.runs });
                }
                tried += 1;
                if value - found.loss >= options.threshold {
                    stays = true;
                    break;
                }
                found.circuit = circuit;
                found.loss = value;
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
