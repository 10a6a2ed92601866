//! Compares backends on the same named workloads.
//!
//! ```sh
//! cargo bench --bench workloads --features wgpu,cuda -- [NAME…]
//! cargo bench --bench workloads -- --list
//! ```
//!
//! Every workload runs on every backend that is compiled in and works here, and in several dtypes,
//! on a model of the shape `--model` with random weights, or on that of `--weights`. A table at the
//! end has the timings; `--json FILE` writes the same as lines, with what else a repeat takes and
//! what it cannot do without. A name is that of a workload (`forward_8x64`) or of a family of them
//! (`forward`). On GPT-2 small, the default, names and shapes are those that `benches/peers` runs
//! in PyTorch. `--batch`, `--pos` and `--layers` change the shapes, and the names with them. Work
//! that takes minutes runs only if it is named: long sweeps (`sweep_long`), a search on longer
//! prompts (`das_long`), texts (`generate`, `generate_chat`), and, computed once and without a
//! warm-up, a grid of searches (`das_grid`) and the exact effects of all edges (`circuits_exact`);
//! so do products of one matrix (`product`).
//!
//! The device is synchronised before and after every repeat. There are at least 5 repeats, after
//! two warm-ups. `das_…`, but for `das_grid`, are seconds per optimizer step, once everything that
//! does not change in training is cached. `load` reads a checkpoint that has just been written, so
//! it is in the operating system's memory.
//!
//! Files: `catalogue.rs`, `long.rs` (what there is) → `run.rs`, `generation.rs`, `circuits.rs`,
//! `planning.rs`, `products.rs`, `das_grid.rs`, `features.rs` (how it is computed) → `timing.rs`,
//! `memory.rs`, `usage.rs`, `work.rs` (what it takes, and must take); `columns.rs` (backends and
//! dtypes), `model.rs` (models), `report.rs`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use burn::tensor::backend::Backend;
use burn_align_models::ModelDims;
use clap::Parser;
use workbench::attempt::attempt;
use workbench::backends::{BackendChoice, DTypeChoice, cpu_name};
use workbench::table::table;
use workbench::{on_backend, out};

use crate::catalogue::{Choices, Workload, catalogue};
use crate::columns::{Column, Columns};
use crate::model::{Preset, Shape};
use crate::report::{Outcome, Report};
use crate::run::Bench;
use crate::timing::Repeats;

mod catalogue;
mod circuits;
mod columns;
mod das_grid;
mod features;
mod generation;
mod long;
mod memory;
mod model;
mod planning;
mod products;
mod report;
mod run;
mod timing;
mod usage;
mod work;

/// Times named workloads on backends, and compares them.
#[derive(Parser)]
struct Args {
    /// Backends, separated by commas [default: all that work here, except software GPUs].
    #[arg(long, value_enum, value_delimiter = ',')]
    backend: Vec<BackendChoice>,
    /// Dtypes, separated by commas [default: f32 on the CPU, all that a GPU computes in].
    #[arg(long, value_enum, value_delimiter = ',')]
    dtype: Vec<DTypeChoice>,
    /// The column that ratios refer to, for example `flex/f32` [default: the first one].
    #[arg(long)]
    baseline: Option<String>,
    /// The model's shape; its weights are random.
    #[arg(long, value_enum, default_value_t = Preset::Gpt2)]
    model: Preset,
    /// Use only this many of its layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Instead, the model of this folder or GGUF file, with its weights.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "layers"])]
    weights: Option<String>,
    #[command(flatten)]
    choices: Choices,
    /// Most rows (examples of worlds) that go through a layer together [default: what the device's
    /// memory allows; 1024 for paths].
    #[arg(long)]
    max_rows: Option<usize>,
    /// Minimum total seconds of repeats per workload.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Exactly this many repeats after one warm-up, for workloads that take minutes.
    #[arg(long, value_name = "N")]
    repeats: Option<usize>,
    /// Use the backend's fused attention.
    #[arg(long)]
    fused: bool,
    /// Also write a JSON line per workload, backend and dtype to this file (`-` for standard
    /// output, which then has no tables).
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also print the peak of memory; for an exact value, name one workload and one backend.
    #[arg(long)]
    memory: bool,
    /// List the workloads and exit.
    #[arg(long)]
    list: bool,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Workloads to run, or families of them [default: all but those that take minutes].
    names: Vec<String>,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        let shape = match &args.weights {
            None => args.model.shape(args.layers)?,
            Some(weights) => on_backend!(BackendChoice::default(), |B, device| {
                Shape::of_file::<B>(weights, &device)?
            }),
        };
        check(&args, &shape.dims())?;
        let workloads = select(catalogue(&shape.dims(), &args.choices), &args.names)?;
        if args.list {
            return list(&workloads);
        }
        let columns = columns::choose(&args.backend, &args.dtype)?;
        let baseline = columns.position(args.baseline.as_deref())?;
        let setting = setting(&args, &shape, &columns);
        let names = workloads.iter().map(|workload| workload.name.as_str());
        let model = format!("{}:{}", shape.preset, shape.dims().layers);
        let mut report = Report::new(model, names.collect(), &columns, args.json.as_deref())?;
        for (index, column) in columns.usable.iter().enumerate() {
            on_backend!(column.backend, |B, device| bench::<B>(
                &args,
                &shape,
                &workloads,
                (index, column),
                &device,
                &mut report
            ))?;
        }
        if args
            .json
            .as_deref()
            .is_none_or(|path| path != Path::new("-"))
        {
            out!("{setting}")?;
            report.print(baseline, args.memory)?;
        }
        ensure!(report.has_times(), "no workload could be run");
        Ok(())
    })
}

/// Checks the choices against the model.
fn check(args: &Args, dims: &ModelDims) -> Result<()> {
    let Choices {
        batch,
        pos,
        layer,
        rank,
    } = args.choices;
    let within = |option: &str, value: Option<usize>, least: usize, most: usize| {
        let fits = value.is_none_or(|value| (least..=most).contains(&value));
        let value = value.unwrap_or_default();
        ensure!(fits, "{option} {value}: expected {least} to {most}");
        Ok(())
    };
    within("--batch", batch, 1, usize::MAX)?;
    within("--pos", pos, 1, dims.max_positions.unwrap_or(usize::MAX))?;
    within("--layer", layer, 0, dims.layers - 1)?;
    within("--rank", Some(rank), 1, dims.d_model)?;
    within("--max-rows", args.max_rows, 1, usize::MAX)?;
    within("--repeats", args.repeats, 1, usize::MAX)?;
    ensure!(
        args.seconds.is_finite() && args.seconds >= 0.0,
        "--seconds {}: expected a number of seconds",
        args.seconds
    );
    Ok(())
}

/// The workloads with these names, or all that need not be asked for.
fn select(all: Vec<Workload>, names: &[String]) -> Result<Vec<Workload>> {
    let is = |workload: &Workload, name: &str| workload.name == name || workload.family == name;
    for name in names {
        if !all.iter().any(|workload| is(workload, name)) {
            let known: Vec<&str> = all.iter().map(|workload| workload.name.as_str()).collect();
            bail!(
                "no workload `{name}` on this shape; expected {}, or a family as --list tells",
                known.join(", ")
            );
        }
    }
    let wanted = |workload: &Workload| names.iter().any(|name| is(workload, name));
    Ok(all
        .into_iter()
        .filter(|workload| match names.is_empty() {
            true => !workload.is_on_request(),
            false => wanted(workload),
        })
        .collect())
}

fn list(workloads: &[Workload]) -> Result<()> {
    let mut table = table(["workload", "family", "what"]);
    for workload in workloads {
        table.add_row([&workload.name, workload.family, &workload.what]);
    }
    out!("{table}")
}

/// Where and with what this is measured.
fn setting(args: &Args, shape: &Shape, columns: &Columns) -> String {
    let cpu = cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let mut parts = vec![
        format!("{cpu}, {} threads", rayon::current_num_threads()),
        format!("burn-align {}", env!("CARGO_PKG_VERSION")),
        format!("burn {}", burn_version().unwrap_or("of unknown version")),
        format!("{} with {} layers", shape.preset, shape.dims().layers),
        match args.repeats {
            Some(repeats) => format!("{repeats} repeats"),
            None => format!("{} s of repeats or more", args.seconds),
        },
    ];
    if args.fused {
        parts.push("fused attention".to_owned());
    }
    for column in columns
        .usable
        .iter()
        .filter(|column| !column.backend.is_cpu())
    {
        parts.push(format!("{column} on {}", column.device));
    }
    // Other load makes all figures worse, and not equally.
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg")
        && let Some(load) = load.split(' ').next()
    {
        parts.push(format!("load {load} before"));
    }
    parts.join("; ")
}

/// The version of Burn that this was built with.
fn burn_version() -> Option<&'static str> {
    let lock = include_str!("../../Cargo.lock");
    let (_, rest) = lock.split_once("name = \"burn\"\nversion = \"")?;
    Some(rest.split_once('"')?.0)
}

/// Runs the workloads on one backend in one dtype. A workload that cannot run is not an error.
fn bench<B: Backend>(
    args: &Args,
    shape: &Shape,
    workloads: &[Workload],
    (number, column): (usize, &Column),
    device: &B::Device,
    report: &mut Report<'_>,
) -> Result<()> {
    let dtype = column.dtype.dtype();
    let bench = Bench::<B> {
        shape,
        model: shape.init(dtype, args.fused, device)?,
        dtype,
        device,
        repeats: Repeats {
            seconds: args.seconds,
            exactly: args.repeats,
        },
        backend: column.backend,
        max_rows: args.max_rows,
    };
    // What fails here fails in each workload, which tells.
    let _ = attempt(|| bench.draw());
    for (row, workload) in workloads.iter().enumerate() {
        let work = bench.work(&workload.task);
        B::memory_cleanup(device);
        let before = memory::begin_peak();
        let times = attempt(|| bench.run(&workload.task));
        report.add(Outcome {
            row,
            column: number,
            times,
            peak: memory::peak(column.backend),
            before,
            work,
        })?;
    }
    drop(bench);
    B::memory_cleanup(device);
    Ok(())
}
