//! How do you align a family of models that the library does not have, from its own crate?
//!
//! `model.rs` defines StarCoder2 (arXiv 2402.19173) in 150 lines without blank ones: the model,
//! made of the parts in `burn_align_models::nn`, and how it is stored. Nothing more is needed to
//! load and save checkpoints, to share prefixes in a sweep, to see every activation, and to patch
//! paths.
//!
//! ```sh
//! cargo run --release --example starcoder2          # a tiny random model, less than a second
//! cargo run --release --example starcoder2 -- --model bigcode/starcoder2-3b --dtype bf16
//! ```
//!
//! Prints what a sweep over layers and positions will run, the sweep itself (interchange
//! interventions, Geiger et al. 2021, arXiv 2106.02997), and every head's direct effect on the
//! logits (path patching, Wang et al. 2022, arXiv 2211.00593). It checks its own claims: positions
//! that no window reaches from the end have no effect, and the direct effects of all nodes add up
//! to the whole difference.

mod model;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Plan, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Grid, Mlps, Receiver, ReceiverInput, head_effects, logit_difference, patch_paths,
};
use burn_align::paths::{Node, Path};
use burn_align_models::{
    AlignableTransformer, Component, Mixing, ModelInput, Site, TokenBatch, Tokenizer, top_tokens,
};
use clap::Parser;
use model::Starcoder2;
use workbench::table::heat_map_text;
use workbench::{BackendArgs, ModelArgs, fixtures, on_backend, out};

/// For a model without a tokenizer.
const IDS: [[u32; 10]; 2] = [
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 35],
    [3, 1, 4, 30, 5, 9, 12, 6, 5, 35],
];

/// Sweeps over a StarCoder2 model and patches the paths from its heads.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt that is changed.
    #[arg(long, default_value = "def add(first, second):\n    return first +")]
    base: String,
    /// The prompt that activations are taken from, with the same number of tokens.
    #[arg(long, default_value = "def add(first, third):\n    return first +")]
    source: String,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| story::<B>(&args, &device))
    })
}

fn story<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, two prompts, and what follows them.
    let tiny = fixtures::fixtures().join("starcoder2");
    let tiny = tiny.to_str().context("the checkout's path is not UTF-8")?;
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Starcoder2<B>>(tiny, dtype, device)?;
    let (model, tokenizer) = (&loaded.model, loaded.tokenizer.as_ref());
    let inputs = prompts(args, tokenizer)?;
    let [base, source] = &inputs;
    let next = |tokens: &TokenBatch| -> Result<u32> {
        let logits = model.forward(ModelInput::Tokens(tokens.to_tensor(device)));
        let last = logits.narrow(1, tokens.pos() - 1, 1); // [1, 1, vocab]
        let best = top_tokens(last, 1).concat();
        Ok(best.first().context("the logits are not finite")?.0)
    };
    let (of_base, of_source) = (next(base)?, next(source)?);
    let names = marks(tokenizer, &[of_base, of_source]);
    ensure!(
        of_base != of_source,
        "`{}` follows both prompts: give others with --base and --source",
        names[0]
    );
    let metric = |logits: Tensor<B, 2>| logit_difference(logits, of_source, of_base);

    // 2. A world for each layer and position, whose residual stream there comes from the source.
    let (layers, pos) = (model.dims().layers, base.pos());
    let mut plan = Plan::new();
    let [base_input, source_input] = [base, source].map(|tokens| plan.tokens(tokens));
    let source_world = plan.world(source_input, []);
    let mut reads = Vec::new();
    for layer in 0..layers {
        let site = Site::Block(layer, Component::BlockOutput);
        for position in 0..pos {
            let edit = Edit::from_world(source_world, site, Units::position(position), 0);
            let world = plan.world(base_input, [edit]);
            reads.push(plan.read_logits(world, LogitPositions::Last));
        }
    }
    out!("{}", plan.explain(model)?)?;
    let run = args.backend.run_options();
    let results = plan.run_with(model, &[VanillaIntervention], &run)?;
    let effects = reads.iter();
    let effects = effects.map(|read| metric(results.get(*read).squeeze_dim(1)));
    let effects = Tensor::cat(effects.collect(), 0)
        .cast(DType::F32)
        .into_data();
    let effects: Vec<f64> = effects.iter::<f64>().collect();
    let sweep = Grid {
        rows: (0..layers).map(|layer| layer.to_string()).collect(),
        columns: marks(tokenizer, &base.ids()[0]),
        values: effects.chunks(pos).map(<[f64]>::to_vec).collect(),
    };
    out!(
        "\nlogit({}) - logit({}), residual stream from the source, by layer and token\n{}",
        names[1],
        names[0],
        heat_map_text(&sweep)
    )?;

    // 3. What each head adds to the residual stream, read by the logits alone.
    let direct = [Receiver::from(ReceiverInput::Logits)];
    let heads = head_effects(model, [base, source], &direct, Mlps::Frozen, metric, &run)?;
    out!(
        "\ndirect effect of each head, as a share of {:.2} for the source - {:.2} for the base\n{}",
        heads.source,
        heads.base,
        heat_map_text(&heads.shares())
    )?;

    // 4. Check the claims made at the top.
    let everything = Node::heads(model.dims()).into_iter().chain(
        Node::all(model.dims())
            .into_iter()
            .filter(|node| !matches!(node, Node::Attention { .. })),
    );
    let everything: Vec<Path> = everything.map(Path::new).collect();
    let all = patch_paths(model, [base, source], &[everything], metric, &run)?;
    let tolerance = if dtype == DType::F32 { 1e-3 } else { 0.1 };
    ensure!(
        (all.shares()[0] - 1.0).abs() < tolerance,
        "the nodes add up to {:.4} of the difference",
        all.shares()[0]
    );
    let way = (heads.source - heads.base).abs();
    for (layer, row) in sweep.values.iter().enumerate() {
        let reach: usize = (layer + 1..layers)
            .map(|later| reach(model, later, pos))
            .sum();
        let hidden = &row[..pos.saturating_sub(reach + 1)];
        ensure!(
            hidden
                .iter()
                .all(|found| (found - heads.base).abs() < tolerance * way),
            "after layer {layer}, the end does not see the first {} positions",
            hidden.len()
        );
    }
    Ok(())
}

/// How far back a layer looks.
fn reach<B: Backend>(model: &Starcoder2<B>, layer: usize, pos: usize) -> usize {
    match model.layout().sublayer(layer, 0).mixing() {
        Mixing::Causal {
            window: Some(window),
        } => window - 1,
        _ => pos,
    }
}

/// Base and source, as token ids.
fn prompts(args: &Args, tokenizer: Option<&Tokenizer>) -> Result<[TokenBatch; 2]> {
    let Some(tokenizer) = tokenizer else {
        let [base, source] = IDS.map(|ids| TokenBatch::new(vec![ids.to_vec()]));
        return Ok([base?, source?]);
    };
    let base = tokenizer.encode_batch([&args.base])?;
    let source = tokenizer.encode_batch([&args.source])?;
    ensure!(
        base.pos() == source.pos(),
        "expected prompts of equally many tokens, found {} in --base and {} in --source",
        base.pos(),
        source.pos()
    );
    Ok([base, source])
}

/// Tokens for display.
fn marks(tokenizer: Option<&Tokenizer>, ids: &[u32]) -> Vec<String> {
    match tokenizer {
        Some(tokenizer) => tokenizer.token_marks(ids),
        None => ids.iter().map(u32::to_string).collect(),
    }
}
