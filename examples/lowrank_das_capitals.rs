//! How many dimensions does a country take in a language model?
//!
//! In the bundled model, prompts such as "The capital of Spain is" and "The language of Italy is"
//! differ in the country and in the question. A low-rank rotation (distributed alignment search,
//! Geiger et al. 2023, arXiv 2303.02536) is trained at the last position so that swapping its
//! subspace from the second prompt into the first gives the capital of Italy: the source's country,
//! the base's question. Ranks from 1 to 64 are tried.
//!
//! ```sh
//! cargo run --release --example lowrank_das_capitals
//! ```
//!
//! Prints the interchange intervention accuracy on pairs whose source names a country that no
//! source names in training, how far the right answer's logit rises above that of the base's own
//! answer, the divergence from the model without a swap, and the accuracy of random subspaces of
//! the same rank. The whole vector also brings the source's question, so swapping all of it is
//! wrong. One minute on 2 cores:
//!
//! | rank | 1 | 2 | 4 | 8 | 16 | 32 | 64 |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | accuracy | 0.0625 | 0.1290 | 0.2410 | 0.5930 | 0.8075 | 0.8195 | 0.8195 |
//!
//! Seeds 1 to 5 give 0.6250, 0.6555, 0.6430, 0.5785 and 0.6315 at rank 8, and 0.8220, 0.8415,
//! 0.8310, 0.8060 and 0.8410 at rank 64 (on Flex). With the model in bf16 (`--dtype bf16`), seed 0
//! gives 0.5920 at rank 8 and 0.8185 at rank 64.

#[allow(dead_code, unreachable_pub, reason = "the table of another example")]
#[path = "train_capitals/facts.rs"]
mod facts;
#[allow(dead_code, unreachable_pub, reason = "shared with another example")]
#[path = "train_capitals/pairs.rs"]
mod pairs;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
use burn_align::training::{
    Checkpoints, Controlled, Evaluation, History, RateSchedule, TrainingConfig,
    evaluate_with_controls, losses, train_on_devices,
};
use burn_align_models::{Component, Decoder, FromPretrained, LoadOptions};
use clap::Parser;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use workbench::plot::{Line, line_chart, write_history};
use workbench::{BackendArgs, DeviceArgs, on_backend, out, progress};

/// Finds the country by low-rank distributed alignment search.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    /// The layer after which the residual stream is aligned.
    #[arg(long, default_value_t = 0)]
    layer: usize,
    /// Ranks to try.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64])]
    ranks: Vec<usize>,
    /// Passes over the 4,000 pairs.
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    /// Seed of pairs and rotations.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw accuracy over rank into this file (SVG or PNG).
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Write loss and accuracy over the steps of the last rank into this file (SVG, PNG, CSV or
    /// JSON).
    #[arg(long)]
    history: Option<PathBuf>,
    /// Keep the training state in this folder; an interrupted run resumes from it when started
    /// again.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.devices.check(&args.backend)?;
        on_backend!(args.backend.backend, |B, _device| search::<B>(&args))
    })
}

fn search<B: Backend>(args: &Args) -> Result<()> {
    let devices = args.devices.of::<B>(args.backend.backend)?;
    let device = &devices[0];
    let options = LoadOptions::default().with_dtype(args.backend.dtype.dtype());
    let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, device)?;
    let tokenizer = loaded.tokenizer()?;
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    // The last ones are for the progress of training; nothing is selected with them.
    let [training, held_out, followed] =
        pairs::split(&pairs::Known::all(), [4000, 2000, 500], tokenizer, &mut rng)?.map(|it| [it]);

    out!("accuracy on {} pairs, by rank", held_out[0].len())?;
    out!(
        "{:>6} {:>9} {:>18} {:>9} {:>7} {:>9}",
        "rank",
        "accuracy",
        "95 %",
        "logits",
        "KL",
        "random"
    )?;
    let row = |name: &str, found: &Evaluation, random: &str| {
        let [low, high] = found.interval;
        let logits = found.logit_difference.map_or(f64::NAN, |it| it.mean);
        let divergence = found.kl_divergence.mean;
        out!(
            "{name:>6} {:>9.4} [{low:>7.4}, {high:>7.4}] {logits:>9.3} {divergence:>7.3} \
             {random:>9}",
            found.accuracy
        )
    };
    let mut points = Vec::new();
    let mut last: Option<(Controlled, History)> = None;
    for rank in &args.ranks {
        let residual = AlignableRepresentationConfig::new(args.layer, Component::BlockOutput)
            .with_low_rank(*rank);
        let config = AlignableConfig::new([residual]);
        let model = AlignableModel::new_seeded(config, loaded.model.clone(), args.seed)?;
        let mut config = TrainingConfig::default()
            .with_epochs(args.epochs)
            .with_batch_size(64)
            .with_learning_rate(1e-2)
            .with_schedule(RateSchedule::WarmUpThenDecay(0.05))
            .with_seed(args.seed);
        if let Some(folder) = &args.checkpoint {
            config = config.with_checkpoints(Checkpoints::new(folder.join(format!("rank-{rank}"))));
        }
        // With `--device 0,1`, half of each batch on either device.
        let (model, history) = train_on_devices(
            model,
            &devices,
            &training,
            &followed,
            &config,
            losses::cross_entropy,
            progress::training(format!("rank {rank}")),
        )?;
        let found = evaluate_with_controls(&model.valid(), &held_out, 500, args.seed + 99)?;
        row(
            &rank.to_string(),
            &found.trained,
            &format!("{:.4}", found.random_rotation.accuracy),
        )?;
        points.push((
            *rank as f64,
            found.trained.accuracy,
            found.random_rotation.accuracy,
        ));
        last = Some((found, history));
    }
    if let Some((found, history)) = &last {
        row("all", &found.whole_vector, "")?;
        row("none", &found.no_swap, "")?;
        if let Some(file) = &args.history {
            write_history(file, "The country's subspace", history)?;
        }
    }
    if let Some(file) = &args.plot {
        let lines = [
            Line {
                name: "trained",
                points: points.iter().map(|it| (it.0, it.1)).collect(),
            },
            Line {
                name: "random",
                points: points.iter().map(|it| (it.0, it.2)).collect(),
            },
        ];
        line_chart(file, "The country's subspace", ["rank", "accuracy"], &lines)?;
    }
    if let (Some((found, _)), true) = (last, args.layer == 0 && args.ranks.last() == Some(&64)) {
        ensure!(found.trained.accuracy >= 0.75, "the country was not found");
        ensure!(
            found.random_rotation.accuracy < 0.5 && found.whole_vector.accuracy < 0.5,
            "a control is as good as the trained rotation"
        );
    }
    Ok(())
}
