//! The exact effects of edges.

mod single_edges;

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;

use super::ablation::Replacement;
use super::changes::{PostNorm, Written};
use super::gradients::check_finite;
use super::memory::Shares;
use super::runs::{Read, Wiring, first_differences};
use super::{
    CircuitError, Edge, EdgeAblation, EdgeGraph, EdgeMethod, EdgeOptions, EdgeProvenance,
    EdgeScores, Reader,
};
use crate::engine::{InputId, Plan, PlanError, WorldInput, read_numbers};
use crate::methods::attribution::{
    Measured, Metric, Patching, check_patching, interventions, logit_count, numbers_of, parts,
    plan_of, read_all, size_of, unlimited,
};
use single_edges::{Reading, SingleEdges, Wanted};

/// The exact score of every edge: what [`eap`](super::eap) estimates. See [`patch_edges`].
///
/// # Errors
/// As [`patch_edges`].
#[doc(alias = "EActP")]
pub fn patch_all_edges<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    metric: &T,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    let graph = EdgeGraph::of::<B, M>(model)?;
    let edges: Vec<Edge> = graph.edges().collect();
    let values = patch_edges(model, patching, &edges, metric, options)?;
    let provenance = EdgeProvenance {
        method: EdgeMethod::Exact,
        direction: Some(patching.direction()),
        ablation: Some(options.ablation),
        examples: patching.batch(),
    };
    EdgeScores::new(graph, values, provenance)
}

/// Patches each of these edges alone, and measures what it costs: `m(base) − m(base with the edge
/// patched)`, averaged over examples, in the order of the edges.
///
/// The reader of an edge sees the stream with the writer's replaced output, and nobody else does;
/// everything after the reader is recomputed. The writer's own inputs are those of the base.
///
/// What a reader computes from the changed stream is arithmetic on the base's activations: one
/// head, or one MLP. The rest of the model runs from there on, for many edges together, from the
/// first position that differs in the two prompts, and up to the logits that the metric
/// [reads](Metric::narrowed). [`EdgeOptions::steps`] has no meaning here.
///
/// # When it misleads
/// An edge that could be patched without loss may matter if another one is patched too: effects of
/// edges do not add up.
///
/// # Errors
/// If the graph has no such edge or there are none; otherwise as [`eap`](super::eap).
pub fn patch_edges<B: Backend, M: AlignableTransformer<B>, T: Metric>(
    model: &M,
    patching: &Patching<B>,
    edges: &[Edge],
    metric: &T,
    options: &EdgeOptions,
) -> Result<Vec<f64>, CircuitError> {
    let model = &model.clone().no_grad();
    let graph = EdgeGraph::of::<B, M>(model)?;
    let wiring = Wiring::of(model)?;
    let wanted = by_reading(&graph, edges)?;
    let dims = model.dims();
    let sites = Read::<B>::sites(dims);
    check_patching(model, patching, &sites, metric)?;
    let run = &options.run;
    let measured = Measured::<B, M, T>::new(model, metric);
    let base = patching.base();
    let (batch, pos) = (patching.batch(), base.pos());
    let lengths = base.lengths();
    let logits = logit_count(&metric.positions(), pos);
    let read = 2 * numbers_of::<B, M>(model, &sites, pos)?;
    let shares = Shares::of(model, &graph, [batch, pos], logits, read, run)?;
    let plan = |examples: &[usize]| -> Result<(Plan<B>, InputId), PlanError> {
        let (plan, [id]) = plan_of([base], examples)?;
        Ok((plan, id))
    };
    let replacement = Replacement::new(&wiring, base, plan, options.ablation, shares.rows, run)?;

    let mut values = vec![0.0; edges.len()];
    for examples in parts(batch, shares.rows) {
        let [_rows, pos] = size_of(base, &examples);
        let own: Vec<usize> = examples.iter().map(|example| lengths[*example]).collect();
        let run_on = |input: &WorldInput<B>| {
            let (mut plan, [id]) = plan_of([input], &examples)?;
            let world = plan.world(id, []);
            let reads = read_all(&mut plan, world, &sites);
            let last = measured.read(&mut plan, world, &examples, &own);
            let results = plan.run_with(model, &interventions::<B>(), &unlimited(run))?;
            let values = measured.of_reads(vec![results.get(last)], &examples);
            let values = read_numbers(values.detach())?;
            plan.check_finite(&values, model, &interventions::<B>(), run)?;
            Ok::<_, CircuitError>((Read::of(&results, reads, dims), values))
        };
        let (Read { outputs, streams }, unpatched) = run_on(base)?;
        let other = match replacement.of(&wiring, &outputs, run) {
            Some(other) => other,
            None => run_on(patching.source())?.0.outputs,
        };
        let first = match options.ablation {
            EdgeAblation::Counterfactual => first_difference(patching, &examples),
            EdgeAblation::Mean | EdgeAblation::Zero => 0,
        };
        let patched = SingleEdges {
            wiring: &wiring,
            graph: &graph,
            metric,
            measured: &measured,
            base,
            examples: &examples,
            lengths: &own,
            unpatched,
            from: start(base, &examples, first, pos),
            pos,
            changes: Written::changes(&wiring, &outputs, &other, PostNorm::Exact),
            streams,
            options: run,
        };
        for (reading, wanted) in &wanted {
            patched.add(&mut values, *reading, wanted)?;
        }
    }
    for value in &mut values {
        *value /= batch as f64;
    }
    check_finite(&graph, edges.iter().copied(), &values)?;
    Ok(values)
}

/// The edges by what computes from the changed stream.
fn by_reading(
    graph: &EdgeGraph,
    edges: &[Edge],
) -> Result<BTreeMap<Reading, Wanted>, CircuitError> {
    if edges.is_empty() {
        return Err(CircuitError::Nothing { what: "edge" });
    }
    let mut wanted: BTreeMap<Reading, Wanted> = BTreeMap::new();
    for (index, edge) in edges.iter().enumerate() {
        graph.check(*edge)?;
        let reader = graph.readers()[edge.reader];
        let reading = match reader {
            Reader::Query { layer, .. }
            | Reader::Key { layer, .. }
            | Reader::Value { layer, .. } => Reading::Attention(layer),
            Reader::Mlp { layer } => Reading::Mlp(layer),
            Reader::Logits => Reading::Logits,
        };
        let of_writers = wanted.entry(reading).or_default();
        of_writers
            .entry(edge.writer)
            .or_default()
            .push((index, reader));
    }
    Ok(wanted)
}

/// The first position at which some examples of base and source differ.
fn first_difference<B: Backend>(patching: &Patching<B>, examples: &[usize]) -> usize {
    let (WorldInput::Tokens(base), WorldInput::Tokens(source)) =
        (patching.base(), patching.source())
    else {
        return 0;
    };
    let firsts = first_differences(base, source);
    let own = examples.iter().map(|example| firsts[*example]);
    own.min().unwrap_or(0)
}

/// The first position that is computed: that of the first difference, if all examples end together.
fn start<B: Backend>(base: &WorldInput<B>, examples: &[usize], first: usize, pos: usize) -> usize {
    let lengths = base.lengths();
    let end_together = examples.iter().all(|example| lengths[*example] == pos);
    match end_together && first < pos {
        true => first,
        false => 0,
    }
}
