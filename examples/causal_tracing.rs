//! Where does the model keep a fact?
//!
//! Causal tracing (Meng et al. 2022, arXiv 2202.05262): noise on the subject's embedding makes the
//! model forget; restoring one activation of the clean run, at one layer and position, brings the
//! answer back where that activation carries the fact.
//!
//! ```sh
//! cargo run --release --example causal_tracing                                      # seconds
//! cargo run --release --example causal_tracing -- --model gpt2 \
//!     --prompt "The Space Needle is in downtown" --subject "The Space Needle" --answer " Seattle"
//! ```
//!
//! Prints the probability of the answer for the clean and the corrupted run, and when restored at
//! every layer and position: the residual stream, and windows of MLP and attention outputs. `--plot
//! trace.svg` (or `.png`) draws the three grids, `--json FILE` writes them as data. With the
//! default question it checks its own claim: the corrupted model has forgotten, and restoring one
//! residual brings the answer back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use burn_align::methods::{CausalTraceConfig, causal_trace};
use burn_align_models::{AlignableTransformer, Component, Decoder};
use clap::Parser;
use workbench::plot::{heat_maps, picture_file};
use workbench::table::heat_map_text;
use workbench::{BackendArgs, ModelArgs, on_backend, out, progress};

const MODEL: &str = "bundled:capitals";

/// Traces which activations carry a fact.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt.
    #[arg(long, default_value = "The capital of Spain is")]
    prompt: String,
    /// The part of the prompt that is corrupted.
    #[arg(long, default_value = "Spain")]
    subject: String,
    /// The next token whose probability is traced.
    #[arg(long, default_value = "Madrid")]
    answer: String,
    /// Noise, in standard deviations of the token embeddings.
    #[arg(long, default_value_t = 3.0)]
    noise: f64,
    /// Layers restored together, for MLP and attention outputs [default: a fifth of all].
    #[arg(long)]
    window: Option<usize>,
    /// Maximum number of rows at a time [default: as memory allows].
    #[arg(long)]
    max_rows: Option<usize>,
    /// Draw the three grids into this file (SVG or PNG).
    #[arg(long, value_parser = picture_file)]
    plot: Option<PathBuf>,
    /// File for the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| trace::<B>(&args, &device))
    })
}

fn trace<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and how large its embeddings are.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let tokenizer = loaded.tokenizer()?;
    let layers = loaded.model.dims().layers;
    let embeddings = loaded.model.token_embedding().flatten::<1>(0, 1);
    let deviation = embeddings.var(0).sqrt().into_data();
    let deviation = deviation.iter::<f64>().next().context("no embeddings")?;

    // 2. The prompt, its subject, and the answer.
    let prompt = tokenizer.encode(&args.prompt)?;
    let subject = tokenizer.positions_of(&args.prompt, &args.subject)?;
    let answer = tokenizer.single_token(&args.answer)?;
    let config = CausalTraceConfig::new(subject.clone(), answer, args.noise * deviation);

    // 3. One plan for each component.
    let window = args.window.unwrap_or(layers.div_ceil(5));
    let mut run = args.backend.run_options();
    run.max_rows = args.max_rows;
    let traced = [
        ("residual stream", Component::BlockOutput, 1),
        ("MLP output", Component::MlpOutput, window),
        ("attention output", Component::AttentionOutput, window),
    ];
    let bar = progress::bar(traced.len() as u64, "tracing");
    let mut traces = Vec::new();
    for (name, component, window) in traced {
        let config = config.clone().with_component(component, window);
        let mut trace = causal_trace(&loaded.model, &prompt, &config, &run)?;
        trace.restored.columns = tokenizer.token_marks(&prompt);
        traces.push((name, window, trace));
        bar.inc(1);
    }
    bar.finish_and_clear();

    // 4. What was restored.
    out!(
        "P({}) clean {:.4}, with `{}` corrupted {:.4}",
        args.answer.trim(),
        traces[0].2.clean,
        args.subject,
        traces[0].2.corrupted
    )?;
    for (name, window, trace) in &traces {
        out!("\nrestored: {name}, {window} layers at a time")?;
        out!("{}", heat_map_text(&trace.restored))?;
    }
    if let Some(file) = &args.plot {
        let title = |name| format!("P({}), {name} restored", args.answer.trim());
        let titles = traced.map(|(name, ..)| title(name));
        let grids = traces.iter().map(|(.., trace)| &trace.restored);
        let maps: Vec<_> = titles.iter().map(String::as_str).zip(grids).collect();
        heat_maps(file, ["token", "layer"], &maps)?;
    }
    if let Some(file) = &args.json {
        let named: Vec<_> = traces
            .iter()
            .map(|(name, _, trace)| (name, trace))
            .collect();
        workbench::files::write(file, serde_json::to_string_pretty(&named)?)?;
    }

    // 5. Check the claims made at the top.
    if args.model.source(MODEL) == MODEL && args.subject == "Spain" {
        let residual = &traces[0].2;
        let best = residual.restored.max().context("no cells")?;
        ensure!(
            residual.corrupted < 0.5 * residual.clean,
            "the corrupted model still gives the answer"
        );
        ensure!(
            best.2 > 0.9 * residual.clean,
            "no restoration brings the answer back"
        );
    }
    Ok(())
}
