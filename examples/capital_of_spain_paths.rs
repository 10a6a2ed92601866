//! Which node carries the country, and does it affect the logits directly?
//!
//! The experiment of nano-causal-interventions: every node of the residual graph (embedding,
//! attention and MLP of each layer) at every position gets its output from "The capital of Italy
//! is" in a run on "The capital of Spain is". (There, attention's input at the position is taken
//! from the other run; here, its output.) First, everything after the node reacts. Then only the
//! logits read the patched node, on the direct path (path patching, Wang et al. 2022, arXiv
//! 2211.00593): what remains of the effect is the node's own contribution.
//!
//! ```sh
//! cargo run --release --example capital_of_spain_paths                  # seconds
//! cargo run --release --example capital_of_spain_paths -- --model gpt2  # real GPT-2, from the hub
//! ```
//!
//! Prints P(Rome) for every node and position, both ways. With the default question it checks its
//! own claim: the country's embedding carries all of it, but not on the direct path, where only
//! nodes at the last position have an effect.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use burn_align::engine::Indices;
use burn_align::methods::{Grid, patch_streams, probability};
use burn_align::models::{AlignableTransformer, Decoder};
use burn_align::paths::{Node, Stream, Value};
use clap::Parser;
use workbench::plot::{heat_maps, picture_file};
use workbench::table::heat_map_text;
use workbench::{BackendArgs, ModelArgs, on_backend, out};

const MODEL: &str = "bundled:capitals";
const BASE: &str = "The capital of Spain is";
const SOURCE: &str = "The capital of Italy is";

/// Patches every node at every position, through everything after it and directly.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt that is changed.
    #[arg(long, default_value = BASE)]
    base: String,
    /// The prompt that nodes are taken from, with the same number of tokens.
    #[arg(long, default_value = SOURCE)]
    source: String,
    /// The next token whose probability is measured [default: Rome, or ` Rome`].
    #[arg(long)]
    answer: Option<String>,
    /// Draw both grids into this file (SVG or PNG).
    #[arg(long, value_parser = picture_file)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| patch::<B>(&args, &device))
    })
}

fn patch<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model and the prompts.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let tokenizer = loaded.tokenizer()?;
    let base = tokenizer.encode_batch([&args.base])?;
    let source = tokenizer.encode_batch([&args.source])?;
    let answer = match &args.answer {
        Some(answer) => tokenizer.single_token(answer)?,
        None => tokenizer
            .single_token(" Rome")
            .or_else(|_| tokenizer.single_token("Rome"))?,
    };

    // 2. A stream for each node and position: the node's output from the source, read either by
    //    everything after it, or by the logits alone.
    let mut nodes = Node::all(loaded.model.dims());
    nodes.reverse();
    let cells = || {
        nodes.iter().flat_map(|node| {
            let positions = (0..base.pos()).map(|position| Indices::Same(vec![position]));
            positions.map(|positions| (*node, positions))
        })
    };
    let clean = || Stream::clean(0);
    let run = cells().map(|(node, at)| clean().with_run(node, at, Value::Clean(1)));
    let direct = cells().map(|(node, at)| clean().with(node, at, Value::Clean(1)));
    let ends = [clean(), Stream::clean(1)];
    let streams: Vec<Stream> = ends.into_iter().chain(run).chain(direct).collect();

    // 3. One plan for all.
    let started = Instant::now();
    let mut values = patch_streams(
        &loaded.model,
        &[&base, &source],
        &streams,
        |logits| probability(logits, answer),
        &args.backend.run_options(),
    )?;
    let took = started.elapsed().as_secs_f64() * 1000.0;
    let cells = values.split_off(2);
    let (of_base, of_source) = (values[0], values[1]);

    // 4. The results.
    let grid = |values: &[f64]| Grid {
        rows: nodes.iter().map(Node::to_string).collect(),
        columns: tokenizer.token_marks(&base.ids()[0]),
        values: values.chunks(base.pos()).map(<[f64]>::to_vec).collect(),
    };
    let (run, direct) = cells.split_at(cells.len() / 2);
    let (run, direct) = (grid(run), grid(direct));
    let name = tokenizer.token_marks(&[answer]).concat();
    let name = name.trim();
    out!(
        "P({name}): base {of_base:.6}, source {of_source:.6} ({} patches in one pass, \
         {took:.0} ms)",
        streams.len() - 2
    )?;
    let titles = [
        "everything after the node reacts",
        "direct path to the logits",
    ]
    .map(|title| format!("P({name}), {title}"));
    for (title, grid) in titles.iter().zip([&run, &direct]) {
        out!("\n{title}\n{}", heat_map_text(grid))?;
    }
    if let Some(file) = &args.plot {
        let maps = [(&*titles[0], &run), (&*titles[1], &direct)];
        heat_maps(file, ["token", "node"], &maps)?;
    }

    // 5. Check the claim made at the top, for its question.
    if (args.model.source(MODEL), &*args.base, &*args.source) == (MODEL, BASE, SOURCE) {
        let (country, last) = (3, base.pos() - 1);
        let embedding = nodes.len() - 1;
        ensure!(
            (run.values[embedding][country] - of_source).abs() < 1e-4 && of_source > 0.5,
            "the country's embedding does not carry the answer"
        );
        for (node, row) in nodes.iter().zip(&direct.values) {
            for (position, value) in row.iter().enumerate().filter(|(p, _)| *p != last) {
                ensure!(
                    (value - of_base).abs() < 1e-6,
                    "{node} at position {position} reaches the logits directly"
                );
            }
        }
        let best = direct.max().context("no nodes")?;
        ensure!(
            best.1 == last && best.2 > 2.0 * of_base,
            "no node affects the logits directly"
        );
    }
    Ok(())
}
