//! Which features does a sparse autoencoder find in a layer, and what do they answer to?
//!
//! A TopK dictionary (Gao et al. 2024, arXiv 2406.04093) is trained on the residual stream after
//! one layer, on a text that the model reads up to there. Held-out text then tells how well it
//! reconstructs, and how much of the model's loss is left with the reconstruction in the place of
//! the activation. Features are read as they usually are, by the tokens on which they are most
//! active: those that answer to capitals, and to languages or first names.
//!
//! ```sh
//! cargo run --release --example train_dictionary           # the bundled model, seconds
//! bash tests/real/fetch.sh                                 # SmolLM2-135M-Instruct, 98 MB
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf
//! cargo run --release --example train_dictionary -- --model $model --save dictionary
//! cargo run --release --example train_dictionary -- --model $model --text FOLDER --tokens 1000000
//! ```
//!
//! Without `--model`, the model is SmolLM2 if it is in the folder that `BURN_ALIGN_REAL` names.
//! Without `--text`, the bundled model reads the sentences that it was trained on, and others read
//! this project's guide and README files, those sentences, and some about people. `--save` writes
//! the dictionary for SAELens, and `--checkpoints` keeps the state of the run in a folder, from
//! which the same command goes on.
//!
//! Prints progress by step, the quality on held-out text, and for each kind of word the features
//! with the most such words among their top tokens, with these in their context. With the bundled
//! model and defaults it checks that one feature answers to capitals and another one to languages:
//! 15 of its 20 top tokens, at least.

#[allow(dead_code, unreachable_pub, reason = "the table of another example")]
#[path = "../train_capitals/facts.rs"]
mod facts;
mod features;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use burn_align::methods::{DictionaryTextOptions, evaluate_dictionary};
use burn_align::training::dictionary::{
    DictionaryTrainingConfig, DictionaryTrainingEvent, Products, Sparsity, TrainedDictionary,
    train_dictionary,
};
use burn_align::training::{CheckpointInterval, Checkpoints};
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, TokenBatch};
use clap::Parser;
use serde_json::json;
use workbench::table::{align_numbers, table};
use workbench::{BackendArgs, ModelArgs, on_backend, out, progress};

use text::Text;

const BUNDLED: &str = "bundled:capitals";
const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Trains a dictionary, and shows what its features answer to.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text, or a folder with texts (.txt and .md) [default: see above].
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// The layer after which the residual stream is taken [default: 0 for the bundled model, else
    /// two fifths of the way up].
    #[arg(long)]
    layer: Option<usize>,
    /// Number of features [default: 256 for the bundled model, else 4 times the width].
    #[arg(long)]
    features: Option<usize>,
    /// Number of active features [default: 4 for the bundled model, else 32].
    #[arg(long)]
    k: Option<usize>,
    /// Number of tokens to train on [default: 51,200 for the bundled model, else 204,800].
    #[arg(long)]
    tokens: Option<usize>,
    /// Tokens of a step [default: 512 for the bundled model, else 2048].
    #[arg(long)]
    batch: Option<usize>,
    /// Highest learning rate [default: 0.003].
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Tokens that the model reads at a time.
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Held-out batches of 16 whose losses are measured: four passes through all layers.
    #[arg(long, default_value_t = 4)]
    loss_batches: usize,
    /// Tokens to read, in whole batches, for those on which features are most active.
    #[arg(long, default_value_t = 204_800)]
    read_tokens: usize,
    /// Features to show of each kind.
    #[arg(long, default_value_t = 2)]
    show: usize,
    /// Seed of the first weights and of the order of the text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the dictionary into this folder, for SAELens.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Write the tokens into this file (JSON), for `benches/peers/dictionaries.py`.
    #[arg(long, value_name = "FILE")]
    write_tokens: Option<PathBuf>,
    /// Keep the state of the run in this folder.
    #[arg(long, value_name = "FOLDER")]
    checkpoints: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| train::<B>(&args, &device))
    })
}

fn train<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model and the text, some of it held out.
    let real = std::env::var_os("BURN_ALIGN_REAL").map(|folder| Path::new(&folder).join(SMOLLM2));
    let real = real.filter(|file| file.is_file());
    let default = real.as_ref().and_then(|file| file.to_str());
    let source = args.model.source(default.unwrap_or(BUNDLED));
    let is_bundled = source == BUNDLED;
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(source, dtype, device)?;
    let (tokenizer, model) = (loaded.tokenizer()?, &loaded.model);
    let dims = model.dims();
    let text = match &args.text {
        Some(path) => Text::read(path, tokenizer, args.context)?,
        None if is_bundled => Text::facts(tokenizer)?,
        None => Text::of_the_project(tokenizer, args.context)?,
    };
    let [training, held_out] = text.split()?;
    if let Some(file) = &args.write_tokens {
        let ids = |batches: &[TokenBatch]| -> Vec<Vec<u32>> {
            batches.iter().flat_map(TokenBatch::ids).cloned().collect()
        };
        let tokens = json!({"training": ids(&training), "held_out": ids(&held_out)});
        workbench::files::write(file, tokens.to_string())?;
    }

    // 2. The site, and how the dictionary is trained.
    let layer = args.layer.unwrap_or(match is_bundled {
        true => 0,
        false => dims.layers * 2 / 5,
    });
    let site = Site::Block(layer, Component::BlockOutput);
    let [features, k, tokens, batch] = match is_bundled {
        true => [256, 4, 51_200, 512],
        false => [4 * dims.d_model, 32, 204_800, 2048],
    };
    let features = args.features.unwrap_or(features);
    let sparsity = Sparsity::top_k(args.k.unwrap_or(k));
    let tokens = args.tokens.unwrap_or(tokens);
    let mut config = DictionaryTrainingConfig::new(features, sparsity, tokens)
        .with_batch_tokens(args.batch.unwrap_or(batch))
        .with_learning_rate(args.learning_rate.unwrap_or(3e-3))
        .with_dead_after(50)
        .with_products(match args.backend.backend.is_cpu() {
            true => Products::Sparse,
            false => Products::Dense,
        })
        .with_seed(args.seed)
        .with_run(args.backend.run_options());
    if let Some(folder) = &args.checkpoints {
        let every = CheckpointInterval::Steps(20);
        config = config.with_checkpoints(Checkpoints::new(folder).with_every(every));
    }

    // 3. Train it.
    let bar = progress::bar(config.steps() as u64, "training");
    let start = Instant::now();
    let mut here = 0;
    let trained = train_dictionary(model, &training, site, &config, |event| match event {
        DictionaryTrainingEvent::Step(step) => {
            here += 1;
            bar.set_position(step.step as u64 + 1);
            bar.set_prefix(format!("explained {:.3}", step.explained_variance));
        }
        DictionaryTrainingEvent::Resumed(history) => bar.set_position(history.steps.len() as u64),
        _ => {}
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let speed = (here * config.batch_tokens) as f64 / seconds;
    report(&trained, site)?;
    out!("{here} steps in {seconds:.0} s, {speed:.0} tokens per second")?;

    // 4. How good is it?
    let options = DictionaryTextOptions::default()
        .with_loss_batches(args.loss_batches)
        .with_run(args.backend.run_options());
    let quality = evaluate_dictionary(model, &trained.dictionary, &held_out, site, &options)?;
    let losses = quality.losses;
    out!(
        "\non {} held-out tokens: {:.1} % of the variance explained by {:.1} active features\n\
         of {} predictions: loss {:.3} nats, with the reconstruction {:.3}, with the mean {:.3}, \
         with zeros {:.3}\n\
         recovered: {:.1} % (from the mean), {:.1} % (from zeros)",
        quality.tokens,
        100.0 * quality.explained_variance,
        quality.l0,
        losses.predictions,
        losses.clean,
        losses.spliced,
        losses.mean,
        losses.zero,
        100.0 * losses.recovered_from_mean(),
        100.0 * losses.recovered_from_zero(),
    )?;
    if let Some(folder) = &args.save {
        let info = trained.info.clone().with_model(source);
        let info = match text.context {
            Some(context) => info.with_dataset(&text.name, context),
            None => info,
        };
        let written = trained.dictionary.save_saelens(&info, folder);
        written.with_context(|| format!("--save {}", folder.display()))?;
        out!("written to {}", folder.display())?;
    }

    // 5. What do its features answer to?
    let read = text::beginning([&training, &held_out], args.read_tokens);
    let tops = features::tops(model, &trained.dictionary, &read, site, &options)?;
    let mut best = Vec::new();
    for kind in features::kinds(is_bundled) {
        let found = features::answering(&tops, tokenizer, &kind);
        features::show(
            &kind,
            &found[..args.show.min(found.len())],
            &read,
            tokenizer,
        )?;
        best.push(found.first().map_or(0, |feature| feature.hits));
    }

    // Check the claims made at the top.
    let is_default = args.text.is_none() && args.layer.is_none() && args.features.is_none();
    let is_default = is_default && args.k.is_none() && args.tokens.is_none();
    let is_default = is_default && args.batch.is_none() && args.learning_rate.is_none();
    if is_bundled && is_default && args.seed == 0 {
        let explained = quality.explained_variance;
        ensure!(explained > 0.8, "only {explained:.2} is explained");
        ensure!(
            best.iter().all(|hits| *hits >= 15),
            "no feature answers to one of the kinds: {best:?}"
        );
    }
    Ok(())
}

/// How training went, at a few steps.
fn report<B: Backend>(trained: &TrainedDictionary<B>, site: Site) -> Result<()> {
    let steps = &trained.history.steps;
    let every = steps.len().div_ceil(8).max(1);
    let mut rows = table(["step", "loss", "explained", "active", "dead"]);
    let last = steps.len().saturating_sub(1);
    let shown = steps
        .iter()
        .filter(|step| step.step.is_multiple_of(every) || step.step == last);
    for step in shown {
        rows.add_row([
            step.step.to_string(),
            format!("{:.2}", step.loss),
            format!("{:.3}", step.explained_variance),
            format!("{:.1}", step.l0),
            step.dead.to_string(),
        ]);
    }
    align_numbers(&mut rows);
    let features = trained.dictionary.features();
    out!("{features} features of the residual stream at {site}\n{rows}")?;
    Ok(())
}
