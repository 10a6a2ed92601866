//! Which activation carries the country?
//!
//! The recipe of the align-transformers README: an interchange intervention (Geiger et al. 2021,
//! arXiv 2106.02997) swaps one activation of "The capital of Italy is" into a run on "The capital
//! of Spain is". First a single one, in layer 0; then, in one pass, the residual stream after each
//! layer at each position. Where the prediction moves from Madrid to Rome, the swapped activation
//! carries the country.
//!
//! ```sh
//! cargo run --release --example capital_of_spain                  # the bundled model, seconds
//! cargo run --release --example capital_of_spain -- --model gpt2  # real GPT-2, from the hub
//! cargo run --release --features cuda --example capital_of_spain -- --backend cuda --device 0,1
//! cargo run --release --example capital_of_spain -- --plot capitals.svg
//! ```
//!
//! Prints the next words of base, source and counterfactual, and P(Rome) as a grid. With the
//! default question it checks its own claim: some swap turns Madrid into Rome.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Tensor};
use burn_align::engine::{Edit, LogitPositions, Plan, Units, replicate};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
};
use burn_align::methods::{Grid, probability};
use burn_align_models::{AlignableTransformer, Component, Decoder, Site};
use clap::Parser;
use workbench::plot::{heat_map, picture_file};
use workbench::table::{heat_map_text, table};
use workbench::{BackendArgs, DeviceArgs, ModelArgs, on_backend, out};

const MODEL: &str = "bundled:capitals";
const BASE: &str = "The capital of Spain is";
const SOURCE: &str = "The capital of Italy is";

/// Swaps activations between two prompts and shows what the model then predicts.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt that is changed.
    #[arg(long, default_value = BASE)]
    base: String,
    /// The prompt that activations are taken from.
    #[arg(long, default_value = SOURCE)]
    source: String,
    /// Layer of the single swap.
    #[arg(long, default_value_t = 0)]
    layer: usize,
    /// The component to swap.
    #[arg(long, default_value_t = Component::MlpOutput)]
    component: Component,
    /// Token position of the single swap, from 0 [default: the last one of the base].
    #[arg(long)]
    position: Option<usize>,
    /// Show what the grid's pass will run, and what sharing saves.
    #[arg(long)]
    explain: bool,
    /// Draw the grid into this file (SVG or PNG).
    #[arg(long, value_parser = picture_file)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    devices: DeviceArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.devices.check(&args.backend)?;
        on_backend!(args.backend.backend, |B, _device| swap::<B>(&args))
    })
}

fn swap<B: Backend>(args: &Args) -> Result<()> {
    // 1. The model and its tokenizer, on the first device.
    let devices = args.devices.of::<B>(args.backend.backend)?;
    let device = &devices[0];
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let tokenizer = loaded.tokenizer()?.clone();
    let layers = loaded.model.dims().layers;

    // 2. The prompts.
    let base = tokenizer.encode_batch([&args.base])?;
    let source = tokenizer.encode_batch([&args.source])?;
    let words = tokenizer.token_marks(&base.ids()[0]);
    let position = args.position.unwrap_or(base.pos() - 1);

    // 3. One intervention: in this layer, this component, one token position.
    let config = AlignableConfig::new([AlignableRepresentationConfig::new(
        args.layer,
        args.component,
    )]);
    let alignable = AlignableModel::new(config, loaded.model)?;
    let sources = [source.clone()];
    let output = alignable.forward(&base, &sources, position)?;

    // 4. What the model predicts next.
    let mut plan = Plan::new();
    let next_words = [&base, &source].map(|prompt| {
        let input = plan.tokens(prompt);
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last)
    });
    let results = alignable.run(&plan)?;
    let [base_next, source_next] = next_words.map(|read| results.get(read).squeeze_dim(1));
    out!(
        "\nbase:   {}\nsource: {}\nswap:   layer {} {} at position {position} (`{}`)\n",
        args.base,
        args.source,
        args.layer,
        args.component,
        words.get(position).context("no such position")?.trim(),
    )?;
    let columns = [&base_next, &source_next, &output.counterfactual_last()]
        .map(|logits| tokenizer.top_tokens(logits.clone(), 10).remove(0));
    if columns.iter().any(Vec::is_empty) {
        let inputs = AlignableInputs::new(base.clone())
            .with_sources(sources)
            .with_locations(position);
        if let Some(found) = alignable.find_non_finite(&inputs)? {
            bail!("{found}");
        }
    }
    let mut next = table(["base", "p", "source", "p", "counterfactual", "p"]);
    for row in 0..columns[0].len() {
        next.add_row(columns.iter().flat_map(|column| {
            let next = &column[row];
            [next.text.clone(), format!("{:.4}", next.probability)]
        }));
    }
    out!("{next}")?;

    // 5. The same swap of the residual stream, before the first layer and after every layer, at
    //    every position: one pass, or one on each device, with a copy of the model.
    let [before, answer, _] = columns.map(|mut column| column.remove(0));
    let probability_of_answer = |logits: Tensor<B, 2>| {
        let probability: f64 = probability(logits, answer.id).into_scalar().elem();
        probability
    };
    let models = replicate(alignable.model(), &devices);
    let started = Instant::now();
    let mut plan = Plan::new();
    let (base_input, source_input) = (plan.tokens(&base), plan.tokens(&source));
    let source_world = plan.world(source_input, []);
    let layer_outputs = (0..layers).map(|layer| Site::Block(layer, Component::BlockOutput));
    let mut cells = Vec::new();
    for site in [Site::Embedding].into_iter().chain(layer_outputs) {
        for position in 0..base.pos() {
            let swap = Edit::from_world(source_world, site, Units::position(position), 0);
            let world = plan.world(base_input, [swap]);
            cells.push(plan.read_logits(world, LogitPositions::Last));
        }
    }
    if args.explain {
        out!("\n{}", plan.explain(alignable.model())?)?;
    }
    let options = args.backend.run_options();
    let results = plan.run_on_devices(&models, alignable.interventions(), &options)?;
    let values: Vec<f64> = cells
        .into_iter()
        .map(|cell| probability_of_answer(results.get(cell).squeeze_dim(1)))
        .collect();
    plan.check_finite(
        &values,
        alignable.model(),
        alignable.interventions(),
        &options,
    )?;
    let swaps = values.len();
    let took = started.elapsed().as_secs_f64() * 1000.0;
    let after_layers = (0..layers).map(|layer| format!("layer {layer}"));
    let grid = Grid {
        rows: ["embedding".to_owned()]
            .into_iter()
            .chain(after_layers)
            .collect(),
        columns: words,
        values: values.chunks(base.pos()).map(<[f64]>::to_vec).collect(),
    };
    let title = format!("P({}) after a swap", answer.text.trim());
    out!(
        "\n{title} of the embedding, or of a layer's block_output; without a swap {:.4} \
         ({swaps} swaps in one pass{}, {took:.0} ms)\n{}",
        probability_of_answer(base_next),
        match devices.len() {
            1 => String::new(),
            many => format!(" on each of {many} devices"),
        },
        heat_map_text(&grid),
    )?;
    if let Some(file) = &args.plot {
        heat_map(file, &title, ["token", "residual stream"], &grid)?;
    }

    // Check the claim made at the top, for its question.
    if (
        args.model.source(MODEL),
        args.base.as_str(),
        args.source.as_str(),
    ) == (MODEL, BASE, SOURCE)
    {
        ensure!(before.text == "Madrid", "the base predicts {before}");
        ensure!(answer.text == "Rome", "the source predicts {answer}");
        ensure!(
            grid.max().is_some_and(|(_, _, p)| p > 0.5),
            "no swap makes the model predict Rome"
        );
    }
    Ok(())
}
