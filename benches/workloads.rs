//! Named workloads on a random GPT-2 small, the same on every backend.
//!
//! ```sh
//! cargo bench --bench workloads -- [--backend B] [--dtype T] [--fused] [--json FILE] [NAME…]
//! ```
//!
//! The `das_…` ones are seconds per step of the optimizer, layer 6, position 15, once what does not
//! change in training is kept. The `paths_…` ones patch paths from each of the heads, one at a time:
//! to the logits, with MLPs frozen or recomputed, and to the queries of head 9.9; in
//! `paths_nodes_25x5` what each attention or MLP reads at each position is the source's, and once
//! nothing.
//!
//! Prints, and writes to the file, one JSON line per workload: the median of the repeats in
//! seconds after a warm-up, and the spread, (slowest - fastest) / median. The device is waited
//! for before and after every repeat. Names say batch × tokens.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn_align::engine::{Edit, LogitPositions, Plan, RunOptions, Units, WorldId};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType,
};
use burn_align::interventions::{BuiltinIntervention, VanillaIntervention};
use burn_align::methods::{Mlps, ReceiverInput, head_effects, logit_difference};
use burn_align::training::{InterchangeData, TrainingConfig, TrainingEvent, losses, train};
use burn_align_models::{Component, Gpt2, Gpt2Config, Site, TokenBatch};
use clap::Parser;
use serde_json::json;
use workbench::{BackendArgs, on_backend, out};

/// Times named workloads.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    /// Also write the lines to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Seconds of repeats per workload, at least.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Use the backend's fused attention.
    #[arg(long)]
    fused: bool,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Workloads to run [default: all].
    names: Vec<String>,
}

/// What a workload computes, on a model of this many layers and heads.
struct Workload<B: Backend> {
    name: &'static str,
    plan: fn() -> Plan<B>,
}

const LAYERS: usize = 12;
const HEADS: usize = 12;

fn workloads<B: Backend>() -> [Workload<B>; 9] {
    let workload = |name, plan| Workload { name, plan };
    [
        workload("forward_1x5", || forward(1, 5)),
        workload("forward_8x64", || forward(8, 64)),
        workload("forward_8x128", || forward(8, 128)),
        workload("single_1x5", || {
            sweep(
                1,
                5,
                [(Site::Block(6, Component::BlockOutput), Units::position(4))],
            )
        }),
        workload("sweep_block_output_12x5", || {
            sweep(1, 5, grid(&[Component::BlockOutput], 5))
        }),
        workload("sweep_attn_mlp_24x5", || {
            sweep(
                1,
                5,
                grid(&[Component::AttentionOutput, Component::MlpOutput], 5),
            )
        }),
        workload("head_sweep_12x12", || {
            let heads = (0..LAYERS).flat_map(|layer| {
                let site = Site::Block(layer, Component::AttentionValueOutput);
                (0..HEADS).map(move |head| (site, Units::position(4).of_head(head)))
            });
            sweep(1, 5, heads)
        }),
        workload("paths_nodes_25x5", nodes),
        workload("batch_32x32", || {
            sweep(
                32,
                32,
                [(Site::Block(6, Component::BlockOutput), Units::position(15))],
            )
        }),
    ]
}

/// Every layer's components at every position.
fn grid(components: &[Component], pos: usize) -> impl Iterator<Item = (Site, Units)> {
    (0..LAYERS).flat_map(move |layer| {
        components.iter().flat_map(move |component| {
            let site = Site::Block(layer, *component);
            (0..pos).map(move |position| (site, Units::position(position)))
        })
    })
}

/// Token ids that look like text to nobody, but are the same each time.
fn tokens(batch: usize, pos: usize, seed: usize) -> TokenBatch {
    let row = |row| (0..pos).map(move |p| ((seed + row * 7919 + p * 104_729) % 50_257) as u32);
    TokenBatch::new((0..batch).map(|b| row(b).collect()).collect()).expect("a batch")
}

/// One clean world, its logits at the last position.
fn forward<B: Backend>(batch: usize, pos: usize) -> Plan<B> {
    let mut plan = Plan::new();
    let input = plan.tokens(&tokens(batch, pos, 1));
    let world = plan.world(input, []);
    plan.read_logits(world, LogitPositions::Last);
    plan
}

/// One interchange per site and units, each in a world of its own.
fn sweep<B: Backend>(
    batch: usize,
    pos: usize,
    cells: impl IntoIterator<Item = (Site, Units)>,
) -> Plan<B> {
    let mut plan = Plan::new();
    let base = plan.tokens(&tokens(batch, pos, 1));
    let source = plan.tokens(&tokens(batch, pos, 2));
    let source = plan.world(source, []);
    let worlds: Vec<WorldId> = cells
        .into_iter()
        .map(|(site, units)| plan.world(base, [Edit::from_world(source, site, units, 0)]))
        .collect();
    for world in worlds {
        plan.read_logits(world, LogitPositions::Last);
    }
    plan
}

/// A sweep over what attentions and MLPs read, with a clean run of the base.
fn nodes<B: Backend>() -> Plan<B> {
    let reads = [Component::AttentionInput, Component::MlpInput];
    let mut plan = sweep(1, 5, grid(&reads, 5));
    let base = plan.tokens(&tokens(1, 5, 1));
    let clean = plan.world(base, []);
    plan.read_logits(clean, LogitPositions::Last);
    plan
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| bench::<B>(&args, &device))
    })
}

fn bench<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    let workloads = workloads::<B>();
    let known = workloads.iter().map(|workload| workload.name);
    let known: Vec<&str> = known
        .chain(PATHS.map(|(name, ..)| name))
        .chain(DAS.map(|(name, _)| name))
        .collect();
    if let Some(unknown) = args
        .names
        .iter()
        .find(|name| !known.contains(&name.as_str()))
    {
        bail!("no workload `{unknown}`; expected {}", known.join(", "));
    }
    let config = Gpt2Config::gpt2();
    ensure!(
        (config.n_layer, config.n_head) == (LAYERS, HEADS),
        "GPT-2 small has changed"
    );
    let model: Gpt2<B> = config
        .init_seeded(0, args.backend.dtype.dtype(), device)
        .with_fused_attention(args.fused);
    let mut file = match &args.json {
        Some(path) => Some(File::create(path).with_context(|| path.display().to_string())?),
        None => None,
    };
    let wanted =
        |name: &str| args.names.is_empty() || args.names.iter().any(|wanted| wanted == name);
    let mut report = |name: &str, times: &[f64]| -> Result<()> {
        let median = times[times.len() / 2];
        let line = json!({
            "workload": name,
            "backend": args.backend.backend.name(),
            "dtype": args.backend.dtype.to_string(),
            "seconds": median,
            "spread": (times[times.len() - 1] - times[0]) / median,
        });
        out!("{line}")?;
        if let Some(file) = &mut file {
            writeln!(file, "{line}")?;
        }
        Ok(())
    };
    for workload in workloads.iter().filter(|workload| wanted(workload.name)) {
        let plan = (workload.plan)();
        let interventions = [BuiltinIntervention::<B>::from(VanillaIntervention)];
        let run = || Ok(plan.run(&model, &interventions)?);
        report(workload.name, &time::<B, _>(run, args.seconds, device)?)?;
    }
    for (name, receiver, mlps) in PATHS.into_iter().filter(|(name, ..)| wanted(name)) {
        let inputs = [tokens(16, 15, 1), tokens(16, 15, 2)];
        let run = || {
            let effects = head_effects(
                &model,
                [&inputs[0], &inputs[1]],
                &[receiver.into()],
                mlps,
                |logits| logit_difference(logits, 5, 6),
                &RunOptions::default().with_max_rows(ROWS),
            );
            Ok(effects?)
        };
        report(name, &time::<B, _>(run, args.seconds, device)?)?;
    }
    for (name, representation) in DAS.into_iter().filter(|(name, _)| wanted(name)) {
        report(
            name,
            &time_das(representation(), &model, args.seconds, device)?,
        )?;
    }
    Ok(())
}

/// Path patching from all heads: names, receivers and what MLPs do.
const PATHS: [(&str, ReceiverInput, Mlps); 3] = [
    (
        "paths_heads_to_logits_16x15",
        ReceiverInput::Logits,
        Mlps::Frozen,
    ),
    (
        "paths_heads_mlps_to_logits_16x15",
        ReceiverInput::Logits,
        Mlps::Recomputed,
    ),
    (
        "paths_heads_to_query_16x15",
        ReceiverInput::Query { layer: 9, head: 9 },
        Mlps::Frozen,
    ),
];

/// Most rows of a path sweep at a time.
const ROWS: usize = 1024;

type Representation = fn() -> AlignableRepresentationConfig;

/// Distributed alignment search: names and what is trained.
const DAS: [(&str, Representation); 3] = [
    ("das_rotated_step_16x32", || {
        residual().with_intervention(InterventionType::RotatedSpace)
    }),
    ("das_lowrank64_step_16x32", || residual().with_low_rank(64)),
    ("das_boundless_step_16x32", || {
        residual().with_intervention(InterventionType::BoundlessRotatedSpace)
    }),
];

fn residual() -> AlignableRepresentationConfig {
    AlignableRepresentationConfig::new(6, Component::BlockOutput)
}

/// Seconds of every step of the optimizer, ascending.
fn time_das<B: Backend>(
    representation: AlignableRepresentationConfig,
    model: &Gpt2<B>,
    seconds: f64,
    device: &B::Device,
) -> Result<Vec<f64>> {
    const WARM_UP: usize = 3;
    const LEAST: usize = 5;
    let inputs = AlignableInputs::new(tokens(16, 32, 1))
        .with_sources([tokens(16, 32, 2)])
        .with_locations(15);
    let data = [InterchangeData::new(
        inputs,
        (0..16).map(|label| label * 3001),
    )];
    let model = Gpt2::<Autodiff<B>>::from_inner(model.clone());
    let model = AlignableModel::new(AlignableConfig::new([representation]), model)?;
    // One batch: an epoch is a step. Without a limit on steps, the number of epochs is guessed
    // from the first few.
    let mut steps = WARM_UP + LEAST;
    loop {
        let mut times = Vec::new();
        let mut start = Instant::now();
        let config = TrainingConfig::default().with_epochs(steps);
        train(
            model.clone(),
            &data,
            &[],
            &config,
            losses::cross_entropy,
            |event| {
                if let TrainingEvent::Step(_) = event {
                    // The step has read its loss from the device, but its update may still run.
                    let synchronised = B::sync(device).is_ok();
                    times.push(if synchronised {
                        start.elapsed().as_secs_f64()
                    } else {
                        f64::NAN
                    });
                    start = Instant::now();
                }
            },
        )?;
        let mut times = times.split_off(WARM_UP);
        let all: f64 = times.iter().sum();
        ensure!(all.is_finite(), "the device was lost");
        if all >= seconds || times.len() >= 200 {
            times.sort_by(f64::total_cmp);
            return Ok(times);
        }
        let wanted = (seconds / all * times.len() as f64).ceil() as usize;
        steps = WARM_UP + wanted.clamp(times.len() + 1, 200);
    }
}

/// Seconds of every repeat, ascending.
fn time<B: Backend, T>(
    run: impl Fn() -> Result<T>,
    seconds: f64,
    device: &B::Device,
) -> Result<Vec<f64>> {
    const LEAST: usize = 5;
    const MOST: usize = 200;
    let run = || -> Result<Duration> {
        B::sync(device)?;
        let start = Instant::now();
        let results = run()?;
        B::sync(device)?;
        let elapsed = start.elapsed();
        drop(results);
        Ok(elapsed)
    };
    run()?;
    run()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < LEAST || (times.len() < MOST && start.elapsed().as_secs_f64() < seconds) {
        times.push(run()?.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
