//! Which edges of a model carry the indirect object, and who finds them?
//!
//! "When Mary and John went to the store, John gave a drink to" → " Mary" (Wang et al. 2022, arXiv
//! 2211.00593). Every edge of the residual graph gets a score, by edge attribution patching (EAP;
//! Syed et al. 2023, arXiv 2310.10348), by EAP with integrated gradients of inputs (EAP-IG; Hanna
//! et al. 2024, arXiv 2403.17806), and exactly: each edge patched alone. Circuits of ten sizes are
//! then chosen by each and evaluated by patching all other edges at once, as in the Mechanistic
//! Interpretability Benchmark (MIB; Mueller et al. 2025, arXiv 2504.13151).
//!
//! ```sh
//! bash tests/real/fetch.sh                                  # SmolLM2-135M-Instruct, 98 MB
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf
//! cargo run --release --example circuit -- --model $model
//! cargo run --release --example circuit -- --model $model --prompts 8 --no-exact --graph ioi.svg
//! cargo run --release --example circuit -- --model $model --prompts 8 --exact-edges 200
//! cargo run --release --example circuit -- --request FILE --output FOLDER
//! ```
//!
//! Prints the heads whose edges to the logits score highest exactly, with their rank by each
//! method; how the scores of edges agree with the exact ones, and where EAP-IG misses most; and the
//! curve of each method, with CMD and CPR and their bootstrap intervals. Without `--model`, the
//! model is in the folder that `BURN_ALIGN_REAL` names.
//!
//! The exact scores of all edges of SmolLM2 take hours on a laptop's CPU. With `--exact-edges N`,
//! only those that EAP-IG ranks highest are patched, as well as all from heads to the logits; the
//! third curve, "refined", then takes the exact score of these, and EAP-IG's of all others.
//!
//! With `--request`, a JSON file says what to do, for use from the shell or another language:
//!
//! ```json
//! {"model": "bundled:capitals",
//!  "clean": {"text": ["The capital of Spain is"]},
//!  "corrupt": {"text": ["The capital of Italy is"]},
//!  "metric": {"logit_difference": [[35], [36]]},
//!  "method": "eap_ig_inputs", "steps": 5,
//!  "top_n": 100, "absolute": true,
//!  "evaluate": true}
//! ```
//!
//! - `model`: a Hugging Face folder, absolute or relative to the request file, a hub id, or a
//!   bundled model;
//! - `clean`, `corrupt`: `{"text": [...]}` or `{"input_ids": [[...]]}`, as many tokens in both of
//!   a pair;
//! - `metric`: `{"logit_difference": [[good ids], [bad ids]]}` after the last token, one id for
//!   each example or one for all;
//! - `method`: `eap`, `eap_ig_inputs`, `eap_ig_activations`, `clean_corrupted`, `ifr` or `exact`;
//!   `steps` of the two with integrated gradients (5);
//! - `ablation`: what ablated edges carry: `counterfactual` (the default), `mean` or `zero`;
//! - `top_n` or `threshold`: which edges are in the circuit, which is pruned; `absolute` says
//!   whether they are ranked by the magnitude of their score. Without both, no edge is;
//! - `evaluate`: whether to evaluate circuits of MIB's ten sizes, in the signed and in the
//!   absolute ranking; `seed` of the intervals (0).
//!
//! `FOLDER/circuit.json` gets the scores of all edges and the circuit in MIB's form, and
//! `FOLDER/curve.json` the curves. A bad request gets one line on standard error and exit status
//! 2, and nothing is written.

mod compare;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use burn::backend::Autodiff;
use clap::Parser;
use workbench::plot::{diagram_file, picture_file};
use workbench::{BackendArgs, ModelArgs, backends, complain, on_backend};

/// Scores edges, and evaluates circuits of them.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Number of prompts.
    #[arg(long, default_value_t = 32)]
    prompts: usize,
    /// Seed of the prompts and of resamples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of EAP-IG.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Leave out the exact scores, which take a run for each edge.
    #[arg(long)]
    no_exact: bool,
    /// Score exactly only the edges of largest magnitude by EAP-IG, as many as this, and the heads'
    /// edges to the logits.
    #[arg(long, value_name = "EDGES", conflicts_with = "no_exact")]
    exact_edges: Option<usize>,
    /// Number of edges of the circuit that is drawn and saved.
    #[arg(long, default_value_t = 200)]
    edges: usize,
    /// Draw the circuit of EAP-IG into this file (SVG, PNG or DOT).
    #[arg(long, value_name = "FILE", value_parser = diagram_file)]
    graph: Option<PathBuf>,
    /// Draw the curves into this file (SVG or PNG).
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    plot: Option<PathBuf>,
    /// A request as JSON, instead of the experiment.
    #[arg(long, value_name = "FILE", requires = "output")]
    request: Option<PathBuf>,
    /// Folder for the answer to the request; without a request, for the circuit of EAP-IG.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    backends::answer_probe();
    let args = Args::parse();
    let run = || -> anyhow::Result<()> {
        args.backend.check()?;
        match (&args.request, &args.output) {
            (Some(request), Some(output)) => on_backend!(args.backend.backend, |B, device| {
                serve::serve::<Autodiff<B>>(&args, request, output, &device)
            }),
            _ => on_backend!(args.backend.backend, |B, device| {
                compare::compare::<Autodiff<B>>(&args, &device)
            }),
        }
    };
    match (run(), &args.request) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(error), Some(file)) => {
            let line = format!("{error:#}");
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            complain!("{}: {line}", file.display());
            ExitCode::from(2)
        }
        (Err(error), None) => {
            complain!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
