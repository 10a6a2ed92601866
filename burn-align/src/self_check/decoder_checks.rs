//! Small decoders from tokens to logits: plain, under interchanges, continued, and backwards.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use burn_align_models::{AlignableTransformer, Component, ModelInput, Site, TokenBatch};

use super::Operation;
use super::array::Array;
use super::checks::Checks;
use super::decoder::HostDecoder;
use super::primitives::Primitives;
use crate::engine::{
    CachedRow, Edit, LogitPositions, Operand, Plan, ReadId, Results, RunOptions, Units,
};
use crate::interventions::{AdditionIntervention, VanillaIntervention};

const BASE: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];
const SOURCE: [u32; 9] = [2, 7, 1, 8, 2, 8, 1, 8, 2];

/// `(layer, position)` of interchanges of block outputs.
const CELLS: [(usize, usize); 6] = [(0, 0), (0, 4), (0, 8), (1, 1), (1, 7), (1, 8)];

/// How many tokens the steps of a continued run add.
const STEPS: [usize; 4] = [5, 1, 2, 1];

/// Where a steering vector is added.
const STEERED: (usize, usize) = (0, 1);

pub(super) fn check<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for host in decoders(checks.cx.dtype) {
        forward(checks, &host);
        interchanges(checks, &host);
        continued(checks, &host);
    }
}

pub(super) fn check_gradients<B: AutodiffBackend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>) {
    for host in decoders(checks.cx.dtype) {
        steering_gradient(checks, &host);
    }
}

fn decoders(dtype: DType) -> [HostDecoder; 2] {
    [
        HostDecoder::gpt2_like(dtype),
        HostDecoder::llama_like(dtype),
    ]
}

fn batch(rows: &[&[u32]]) -> TokenBatch {
    let rows = rows.iter().map(|row| row.to_vec()).collect();
    TokenBatch::new(rows).expect("rows of tokens")
}

/// Token ids, as an operand of a check.
fn ids(rows: &[&[u32]]) -> Array {
    let ids: Vec<f64> = rows
        .iter()
        .copied()
        .flatten()
        .map(|id| f64::from(*id))
        .collect();
    Array::new(&[rows.len(), ids.len() / rows.len()], &ids, DType::F32)
}

/// The last row of `[row, width]`.
fn last(rows: &[f64], width: usize) -> &[f64] {
    &rows[rows.len() - width..]
}

/// Logits of several reads one after the other, `[1, unit, vocab]`.
fn joined<B: Backend>(results: &Results<B>, reads: Vec<ReadId>) -> Tensor<B, 3> {
    Tensor::cat(reads.into_iter().map(|read| results.get(read)).collect(), 1)
}

fn forward<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, host: &HostDecoder) {
    let rows = [&BASE[..], &SOURCE[..]];
    let expected = rows.map(|row| host.logits(row)).concat();
    let operands = [&ids(&rows), &host.embedding];
    checks.check(Operation::DecoderForward, &operands, &expected, |cx| {
        let tokens = batch(&rows).to_tensor(cx.device);
        host.on_device(cx).forward(ModelInput::Tokens(tokens))
    });
}

fn interchanges<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, host: &HostDecoder) {
    let (d_model, vocab) = (host.dims().d_model, host.dims().vocab);
    let [base, source] = [BASE, SOURCE].map(|tokens| host.streams(&tokens));
    let expected = CELLS.map(|(layer, position)| {
        // The stream after a block is the one before the next.
        let (mut stream, donor) = (base[layer + 1].clone(), &source[layer + 1]);
        let place = position * d_model..(position + 1) * d_model;
        stream[place.clone()].copy_from_slice(&donor[place]);
        last(&host.logits_from(layer + 1, stream), vocab).to_vec()
    });
    let operands = [&ids(&[&BASE, &SOURCE]), &host.embedding];
    let (operation, expected) = (Operation::DecoderInterchange, expected.concat());
    checks.check(operation, &operands, &expected, |cx| {
        let mut plan = Plan::new();
        let [base, source] = [BASE, SOURCE].map(|tokens| plan.tokens(&batch(&[&tokens])));
        let source = plan.world(source, []);
        let reads = CELLS.map(|(layer, position)| {
            let site = Site::Block(layer, Component::BlockOutput);
            let edit = Edit::from_world(source, site, Units::position(position), 0);
            let world = plan.world(base, [edit]);
            plan.read_logits(world, LogitPositions::Last)
        });
        let results = plan.run(&host.on_device(cx), &[VanillaIntervention]);
        joined(&results.expect("a valid plan"), reads.to_vec())
    });
}

fn continued<B: Backend, P: Primitives<B>>(checks: &mut Checks<'_, B, P>, host: &HostDecoder) {
    let vocab = host.dims().vocab;
    let all = host.logits(&BASE);
    let ends = STEPS.iter().scan(0_usize, |end, step| {
        *end += step;
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    let rows = ends.iter().map(|end| &all[(end - 1) * vocab..end * vocab]);
    let expected = rows.collect::<Vec<_>>().concat();
    let operands = [&ids(&[&BASE]), &host.embedding];
    checks.check(Operation::DecoderContinued, &operands, &expected, |cx| {
        let model = host.on_device(cx);
        let (mut logits, mut start) = (Vec::new(), 0);
        let mut row: Option<CachedRow<B>> = None;
        for end in ends {
            let mut plan = Plan::new();
            let tokens = &BASE[start..end];
            let input = match &row {
                None => plan.tokens(&batch(&[tokens])),
                Some(row) => plan.input(row.then(tokens)),
            };
            let world = plan.world(input, []);
            let read = plan.read_logits(world, LogitPositions::Last);
            let options = RunOptions::default();
            let run = plan.run_to_continue(&model, &[VanillaIntervention], &[world], &options);
            let (results, rows) = run.expect("a valid plan");
            logits.push(results.get(read));
            row = rows.into_iter().flatten().next();
            start = end;
        }
        Tensor::cat(logits, 1)
    });
}

/// The derivative of `Σ upstream · logits` at the last position with respect to a vector that is
/// added to the stream, against central differences.
fn steering_gradient<B: AutodiffBackend, P: Primitives<B>>(
    checks: &mut Checks<'_, B, P>,
    host: &HostDecoder,
) {
    let (d_model, vocab) = (host.dims().d_model, host.dims().vocab);
    let steering = checks.draw_scaled(&[1, 1, d_model], 0.5);
    let upstream = checks.draw(&[1, 1, vocab]);
    let expected = differences(host, &steering.values, &upstream.values);
    let operands = [&ids(&[&BASE]), &host.embedding];
    checks.check(Operation::DecoderGradient, &operands, &expected, |cx| {
        let steering = cx.tensor::<3>(&steering).require_grad();
        let mut plan = Plan::new();
        let input = plan.tokens(&batch(&[&BASE]));
        let operand = Operand::Constant(plan.constant(steering.clone()));
        let (layer, position) = STEERED;
        let site = Site::Block(layer, Component::BlockOutput);
        let steer = Edit::new(site, Units::position(position), 0, operand);
        let world = plan.world(input, [steer]);
        let read = plan.read_logits(world, LogitPositions::Last);
        let results = plan.run(&host.on_device(cx), &[AdditionIntervention]);
        let logits = results.expect("a valid plan").get(read);
        let gradients = (logits * cx.tensor::<3>(&upstream)).sum().backward();
        steering.grad(&gradients).expect("the vector is tracked")
    });
}

/// Central differences of the weighted logits with respect to each feature of the steering vector.
fn differences(host: &HostDecoder, steering: &[f64], upstream: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-4;
    let (layer, position) = STEERED;
    let width = steering.len();
    let mut stream = host.streams(&BASE).swap_remove(layer + 1);
    for (value, added) in stream[position * width..].iter_mut().zip(steering) {
        *value += added;
    }
    let moved = |feature: usize, by: f64| -> f64 {
        let mut stream = stream.clone();
        stream[position * width + feature] += by;
        let logits = host.logits_from(layer + 1, stream);
        let logits = last(&logits, upstream.len());
        logits
            .iter()
            .zip(upstream)
            .map(|(logit, weight)| logit * weight)
            .sum()
    };
    let slope = |feature| (moved(feature, STEP) - moved(feature, -STEP)) / (2.0 * STEP);
    (0..width).map(slope).collect()
}
