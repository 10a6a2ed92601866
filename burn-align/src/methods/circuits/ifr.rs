//! Information flow routes: how close each writer is to what is read.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::AlignableTransformer;

use super::changes::{Written, narrowed};
use super::gradients::check_finite;
use super::memory::Shares;
use super::runs::{Outputs, Read, Streams, Wiring};
use super::sums::Widened;
use super::{
    CircuitError, Edge, EdgeGraph, EdgeMethod, EdgeOptions, EdgeProvenance, EdgeScores, Reader,
};
use crate::engine::{RunOptions, WorldInput, read_numbers};
use crate::interventions::VanillaIntervention;
use crate::methods::attribution::{numbers_of, parts, plan_of, read_all, size_of, unlimited};

/// Information flow routes (Ferrando & Voita 2024, arXiv 2403.00824): how much of what a reader
/// reads comes from each writer, without any metric or gradient. At each position, the importance
/// of a writer `u` for a reader of the stream `x` is its proximity
///
/// ```text
/// max(0, ‖x‖₁ − ‖a_u − x‖₁)
/// ```
///
/// as a share of that of all writers before the reader; a score is the mean over positions, then
/// over examples. Queries, keys and values of all heads of a layer read the same stream and have
/// the same scores. Biases and learned positions are written by nobody.
///
/// Only [`EdgeOptions::run`] is used.
///
/// In models with a norm after the attention, a head's part of the norm's output is its output with
/// the scale of the norm held. If no writer is close to the stream at some position, all shares
/// are 0 there; the reference code divides by zero.
///
/// # When it misleads
/// Nothing here depends on a task: the scores describe what is written on these prompts, and how
/// much of it, not what it does to the prediction.
///
/// # Errors
/// If the model's heads cannot be told apart, or its layers are not attention and an MLP; if the
/// input does not fit the model; if the budget is too small for one example; or if the run is not
/// finite.
#[doc(alias = "IFR")]
pub fn information_flow_routes<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: impl Into<WorldInput<B>>,
    options: &EdgeOptions,
) -> Result<EdgeScores, CircuitError> {
    let input = input.into();
    let model = &model.clone().no_grad();
    let graph = EdgeGraph::of::<B, M>(model)?;
    let wiring = Wiring::of(model)?;
    let dims = model.dims();
    let run = &options.run;
    let sites = Read::<B>::sites(dims);
    let (batch, pos) = (input.batch(), input.pos());
    // They are read once and widened, not kept for gradients.
    let read = numbers_of::<B, M>(model, &sites, pos)?;
    let shares = Shares::of(model, &graph, [batch, pos], 0, read, run)?;
    let lengths = input.lengths();
    let mut values = vec![0.0; graph.edge_count()];
    for examples in parts(batch, shares.rows) {
        let (mut plan, [id]) = plan_of([&input], &examples)?;
        let world = plan.world(id, []);
        let reads = read_all(&mut plan, world, &sites);
        let results = plan.run_with(model, &[VanillaIntervention; 0], &unlimited(run))?;
        let Read { outputs, streams } = Read::of(&results, reads, dims);
        let size = size_of(&input, &examples);
        let own = examples.iter().map(|example| lengths[*example]);
        let flow = Flow {
            graph: &graph,
            lengths: own.collect(),
            batch,
            positions: shares.positions,
        };
        let outputs = without_positions(&wiring, outputs, size, run);
        let written = Written::parts(&wiring, &outputs);
        let found = flow.add(&mut values, &written, &streams)?;
        if !found {
            plan.check_finite(&[f64::NAN], model, &[VanillaIntervention; 0], run)?;
        }
    }
    check_finite(&graph, graph.edges(), &values)?;
    let provenance = EdgeProvenance {
        method: EdgeMethod::InformationFlowRoutes,
        direction: None,
        ablation: None,
        examples: batch,
    };
    EdgeScores::new(graph, values, provenance)
}

/// The same outputs, the embedding without learned positions.
fn without_positions<B: Backend, M: AlignableTransformer<B>>(
    wiring: &Wiring<'_, B, M>,
    mut outputs: Outputs<B>,
    [_batch, pos]: [usize; 2],
    options: &RunOptions,
) -> Outputs<B> {
    let dtype = outputs.embedding.dtype();
    let positions = wiring.positions(pos, dtype, &options.tables);
    let positions = positions.detach().cast(DType::F32);
    outputs.embedding = outputs.embedding.cast(DType::F32) - positions;
    outputs
}

/// Shares of some examples.
struct Flow<'a> {
    graph: &'a EdgeGraph,
    /// Number of positions of each of these examples.
    lengths: Vec<usize>,
    /// Number of all examples.
    batch: usize,
    /// How many positions are widened at a time.
    positions: usize,
}

impl Flow<'_> {
    /// Adds the shares of these examples to the scores. False if some are not finite.
    fn add<B: Backend>(
        &self,
        values: &mut [f64],
        written: &Written<'_, B>,
        streams: &Streams<B>,
    ) -> Result<bool, CircuitError> {
        let graph = self.graph;
        let all = 0..graph.writers().len();
        let widened = Widened::new(graph, written, all, self.positions);
        let mut are_finite = true;
        let mut add = |first: Reader, count: usize, stream: &Tensor<B, 3>| {
            let first = graph.reader(first).unwrap_or_default();
            let shares = self.shares(&widened, graph.before(first), stream)?;
            are_finite &= shares.iter().all(|share| share.is_finite());
            for reader in first..first + count {
                for (writer, share) in shares.iter().enumerate() {
                    let edge = Edge { writer, reader };
                    values[graph.check(edge)?] += share / self.batch as f64;
                }
            }
            Ok::<(), CircuitError>(())
        };
        for layer in 0..graph.layers() {
            let head = Reader::Query { layer, head: 0 };
            add(head, 3 * graph.heads(), &streams.attention[layer])?;
            add(Reader::Mlp { layer }, 1, &streams.mlps[layer])?;
        }
        add(Reader::Logits, 1, &streams.last)?;
        Ok(are_finite)
    }

    /// For each writer before a reader, the sum over examples of its mean share of the stream.
    fn shares<B: Backend>(
        &self,
        widened: &Widened<'_, '_, B>,
        before: usize,
        stream: &Tensor<B, 3>,
    ) -> Result<Vec<f64>, CircuitError> {
        let mut found = vec![0.0; before];
        for positions in widened.chunks() {
            let x = narrowed(stream, &positions).cast(DType::F32);
            let [batch, pos, d_model] = x.dims();
            let cells = batch * pos;
            let norm = x.clone().abs().reshape([cells, d_model]).sum_dim(1); // [cell, 1]
            let x = x.reshape([1, cells * d_model]);
            let away = (widened.at(before, &positions) - x).abs(); // [writer, cell * d_model]
            let away = away.reshape([before, cells, d_model]).sum_dim(2); // [writer, cell, 1]
            let near = norm.unsqueeze::<3>().expand([before, cells, 1]) - away;
            let near = read_numbers(near)?;
            for cell in 0..cells {
                let (example, position) = (cell / pos, positions.start + cell % pos);
                let length = self.lengths[example];
                let own = (0..before).map(|writer| match near[writer * cells + cell] {
                    near if near < 0.0 => 0.0,
                    near => near, // or NaN
                });
                let total: f64 = own.clone().sum();
                if position >= length || total == 0.0 {
                    continue;
                }
                for (share, near) in found.iter_mut().zip(own) {
                    *share += near / total / length as f64;
                }
            }
        }
        Ok(found)
    }
}
