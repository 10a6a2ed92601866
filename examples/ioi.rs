//! Which heads of GPT-2 small predict the indirect object?
//!
//! Figure 3b of Wang et al. 2022 (arXiv 2211.00593) on real weights: after "When Mary and John went
//! to the store, John gave a drink to", every head's direct effect on the difference between the
//! logits of " Mary" and " John", by path patching from prompts with three other names. All other
//! heads are frozen, MLPs react.
//!
//! ```sh
//! cargo run --release --example ioi                        # GPT-2 small from the hub
//! cargo run --release --example ioi -- --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts 8 \
//!     --plot ioi.svg
//! ```
//!
//! Needs GPT-2's weights (500 MB). Prints the heads with the largest effects next to the paper's
//! figures, and the grid of all. With GPT-2 small it checks its own claim: heads 9.9, 9.6 and 10.0
//! favour the object, 10.7 and 11.10 oppose it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align::methods::{Mlps, ReceiverInput, head_effects, logit_differences};
use burn_align::models::Decoder;
use clap::Parser;
use workbench::ioi::{Ioi, PUBLISHED};
use workbench::plot::{heat_map, picture_file};
use workbench::table::{align_numbers, heat_map_text, table};
use workbench::{BackendArgs, ModelArgs, on_backend, out};

/// GPT-2 small, from the hub.
const MODEL: &str = "gpt2";

/// Finds the name movers.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Number of prompts.
    #[arg(long, default_value_t = 32)]
    prompts: usize,
    /// Seed of the prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Maximum number of rows at a time [default: as memory allows].
    #[arg(long)]
    max_rows: Option<usize>,
    /// Picture of the effects, .svg or .png.
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| figure::<B>(
            &args, &device
        ))
    })
}

fn figure<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model and the prompts.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let ioi = Ioi::draw(loaded.tokenizer()?, args.prompts, args.seed)?;

    // 2. All heads, in one call.
    let mut run = args.backend.run_options();
    run.max_rows = args.max_rows;
    let effects = head_effects(
        &loaded.model,
        [&ioi.prompts, &ioi.others],
        &[ReceiverInput::Logits.into()],
        Mlps::Recomputed,
        |logits: Tensor<B, 2>| logit_differences(logits, &ioi.indirect_objects, &ioi.subjects),
        &run,
    )?;

    // 3. The change, relative to the unpatched difference.
    let changes = effects.relative_changes();
    let of_the_paper = args.model.source(MODEL) == MODEL;
    out!(
        "logit difference {:.2}{}\n\nRelative change (layers × heads)\n{}",
        effects.base,
        if of_the_paper {
            " (in the paper 3.56)"
        } else {
            ""
        },
        heat_map_text(&changes)
    )?;
    let rows = changes.values.iter().enumerate();
    let mut heads: Vec<(usize, usize, f64)> = rows
        .flat_map(|(layer, row)| {
            let heads = row.iter().enumerate();
            heads.map(move |(head, change)| (layer, head, *change))
        })
        .collect();
    heads.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()));
    let columns = ["head", "change", "in the paper"];
    let columns = &columns[..if of_the_paper { 3 } else { 2 }];
    let mut report = table(columns.iter().copied());
    for (layer, head, change) in heads.iter().take(PUBLISHED.len()) {
        let paper = PUBLISHED.iter().find(|(l, h, _)| (l, h) == (layer, head));
        let paper = paper.map_or(String::new(), |(.., change)| format!("{change:+.3}"));
        let row = [format!("{layer}.{head}"), format!("{change:+.3}"), paper];
        report.add_row(row.into_iter().take(columns.len()));
    }
    align_numbers(&mut report);
    out!("\n{report}")?;
    if let Some(file) = &args.plot {
        heat_map(
            file,
            "relative change of the logit difference",
            ["head", "layer"],
            &changes,
        )?;
    }

    // 4. Check the claims made at the top.
    if of_the_paper {
        for (layer, head) in [(9, 9), (9, 6), (10, 0)] {
            let change = changes.values[layer][head];
            ensure!(change < -0.1, "{layer}.{head} changes {change:+.3}");
        }
        for (layer, head) in [(10, 7), (11, 10)] {
            let change = changes.values[layer][head];
            ensure!(change > 0.1, "{layer}.{head} changes {change:+.3}");
        }
    }
    Ok(())
}
