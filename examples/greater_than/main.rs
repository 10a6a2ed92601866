//! Which edges of a model know that a war does not end before it begins?
//!
//! "The war lasted from the year 1732 to the year 17" → later than 32 (Hanna et al. 2023, arXiv
//! 2305.00586). SmolLM2 reads and writes years digit by digit, so that here the prompt ends in the
//! decade, "… from the year 1732 to the year 173", and the question is which digits come next. The
//! metric is the probability of later years less that of the others, `P(digit > 2) − P(digit ≤ 2)`.
//! In the other prompt of a pair the first year ends with 0, as it ends with 01 in the paper.
//!
//! Every edge of the residual graph gets a score by EAP with integrated gradients of inputs
//! (EAP-IG; Hanna et al. 2024, arXiv 2403.17806). Circuits of ten sizes are then chosen by it and
//! evaluated by patching all other edges at once, as in the Mechanistic Interpretability Benchmark
//! (MIB; Mueller et al. 2025, arXiv 2504.13151).
//!
//! ```sh
//! bash tests/real/fetch.sh                                  # SmolLM2-135M-Instruct, 98 MB
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf
//! cargo run --release --example greater_than -- --model $model
//! cargo run --release --example greater_than -- --model $model --graph years.svg --plot curve.svg
//! cargo run --release --example greater_than -- --model $model --heat-map nodes.svg --tracer DIR
//! ```
//!
//! Prints what the model answers by the digit that it starts from; the heads and MLPs with the
//! highest scores; the curve, with CMD and CPR and their bootstrap intervals; and what a circuit
//! alone answers. Without `--model`, the model is in the folder that `BURN_ALIGN_REAL` names.
//!
//! It checks its claims: the model prefers later years, it does so less after the other prompt, and
//! the circuit of all edges is the model.

mod report;
mod years;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_align::engine::{LogitPositions, Plan};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::attribution::Patching;
use burn_align::methods::circuits::{
    Circuit, CircuitAblation, CurveOptions, EdgeChoice, EdgeOptions, EdgeRanking,
    FaithfulnessCurve, TracerGraph, TracerPrompt, TracerTarget, eap_ig_inputs, evaluate_circuits,
    faithfulness_curves,
};
use burn_align_models::{Decoder, Tokenizer};
use clap::Parser;
use workbench::circuit_curves::{check_curves, plot_curves, print_curves};
use workbench::circuit_requests::ranking_name;
use workbench::plot::{diagram_file, heat_map, picture_file, write_diagram};
use workbench::{BackendArgs, ModelArgs, on_backend};

use years::Years;

/// Scores edges by what they do for later years, and evaluates circuits of them.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Number of prompts.
    #[arg(long, default_value_t = 16)]
    prompts: usize,
    /// Seed of the prompts and of resamples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of EAP-IG.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Number of edges of the circuit that is printed and drawn.
    #[arg(long, default_value_t = 200)]
    edges: usize,
    /// Draw the circuit into this file (SVG, PNG or DOT).
    #[arg(long, value_name = "FILE", value_parser = diagram_file)]
    graph: Option<PathBuf>,
    /// Draw the curves into this file (SVG or PNG).
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    plot: Option<PathBuf>,
    /// Draw the scores of heads and MLPs by layer into this file (SVG or PNG).
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    heat_map: Option<PathBuf>,
    /// Add the circuit to the graphs for circuit-tracer's viewer in this folder.
    #[arg(long, value_name = "FOLDER")]
    tracer: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| find::<Autodiff<B>>(
            &args, &device
        ))
    })
}

fn find<A: AutodiffBackend>(args: &Args, device: &A::Device) -> Result<()> {
    // 1. The model and the prompts.
    let source = args
        .model
        .or_smollm2("a model that reads years digit by digit")?;
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<A, Decoder<A>>(&source, dtype, device)?;
    let tokenizer = loaded.tokenizer()?;
    let plain = loaded.model.valid();
    let run = args.backend.run_options();
    ensure!(args.prompts > 0, "--prompts: expected at least 1, found 0");
    let years = Years::draw(tokenizer, args.prompts, args.seed)?;
    let metric = &years.metric;

    // 2. What the model answers.
    let mut plan = Plan::<A::InnerBackend>::new();
    let worlds = [&years.prompts, &years.from_zero].map(|prompts| {
        let input = plan.tokens(prompts);
        plan.world(input, [])
    });
    let reads = worlds.map(|world| plan.read_logits(world, LogitPositions::Last));
    let results = plan.run_with(&plain, &[VanillaIntervention; 0], &run)?;
    let [answers, others] = reads.map(|read| metric.read(results.get(read)));
    let answers = answers?;
    let [of_model, of_other] = report::answers(metric, &answers, &others?)?;

    // 3. A score for each edge.
    let patching = Patching::<A::InnerBackend>::noising(years.prompts.clone(), years.from_zero);
    let options = EdgeOptions::default()
        .with_steps(args.steps)
        .with_run(run.clone());
    let scores = eap_ig_inputs(&loaded.model, &patching, metric, &options)?;
    report::nodes(&scores)?;
    if let Some(file) = &args.heat_map {
        let title = "score of all edges from a node";
        heat_map(file, title, ["node", "layer"], &scores.node_grid())?;
    }

    // 4. Circuits of ten sizes, in both rankings.
    let rankings = [EdgeRanking::Signed, EdgeRanking::Absolute];
    let options = CurveOptions::default().with_run(run.clone());
    let curves = faithfulness_curves(&plain, &patching, &scores, &rankings, metric, &options)?;
    let named = curves.iter();
    let named = named.map(|curve| (ranking_name(curve.by).to_owned(), curve));
    let named: Vec<(String, &FaithfulnessCurve)> = named.collect();
    print_curves("ranking", &named, args.seed)?;
    if let Some(file) = &args.plot {
        let title = "faithfulness of circuits for later years, EAP-IG";
        plot_curves(file, title, &named)?;
    }

    // 5. The circuit.
    let choice = EdgeChoice::TopN {
        edges: args.edges,
        by: EdgeRanking::Absolute,
    };
    let circuit = Circuit::choose(&scores, choice)?.pruned();
    let ablation = CircuitAblation::Counterfactual;
    let circuits = [circuit.clone()];
    let values = evaluate_circuits(&plain, &patching, &circuits, ablation, metric, &run)?;
    report::circuit(&circuit, &values)?;
    if let Some(file) = &args.graph {
        write_diagram(file, &circuit.diagram())?;
    }
    if let Some(folder) = &args.tracer {
        let prompt = tracer_prompt(&source, tokenizer, &years.prompts.ids()[0], &answers[0])?;
        TracerGraph::new(&circuit, &prompt)?.save(folder)?;
    }

    // Check the claims made at the top.
    ensure!(
        of_model > 0.0,
        "the model prefers earlier years: {of_model}"
    );
    ensure!(
        of_model > of_other,
        "the first year makes no difference: {of_model} and {of_other}"
    );
    check_curves(&named)
}

/// The first prompt, with the most probable digit after it.
fn tracer_prompt(
    source: &str,
    tokenizer: &Tokenizer,
    ids: &[u32],
    digits: &[f64],
) -> Result<TracerPrompt> {
    let tokens = ids.iter().map(|id| -> Result<(u32, String)> {
        let text = tokenizer.decode(&[*id])?;
        Ok((*id, text))
    });
    let best = digits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let (digit, probability) = best.context("no digits")?;
    let model = Path::new(source).file_stem().and_then(|name| name.to_str());
    Ok(TracerPrompt {
        slug: "greater-than".to_owned(),
        scan: model.unwrap_or(source).to_owned(),
        text: tokenizer.decode(ids)?,
        tokens: tokens.collect::<Result<_>>()?,
        target: TracerTarget {
            id: tokenizer.single_token(&digit.to_string())?,
            text: digit.to_string(),
            probability: *probability,
        },
    })
}
