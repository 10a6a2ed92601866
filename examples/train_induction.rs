//! How is the bundled model `induction-gpt2` made?
//!
//! A GPT-2 with two layers learns to look up who comes after whom in a queue of names
//! (`src/queues.rs`): after `<eos> Ada Ben Cleo Dan … Ben` it predicts `Cleo`. Queues are drawn at
//! random and none is read twice, so the model cannot memorise the answers. It has to find the
//! name's first mention and copy what followed it, as induction heads do (Olsson et al. 2022, arXiv
//! 2209.11895).
//!
//! ```sh
//! cargo run --release --example train_induction
//! ```
//!
//! Writes a folder in the Hugging Face layout, including the loss curve (`loss.svg`), with
//! identical files each time, and prints how many questions about new queues the model answers.
//! Ends with an error if that is less than 98 %.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::{Decoder, DecoderConfig, SavePretrained, TokenBatch, Tokenizer};
use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use workbench::fit::{Example, Fit, draw_loss, next_tokens};
use workbench::queues::{LENGTHS, QUESTIONS, Queue, vocabulary};
use workbench::table::{align_numbers, table};
use workbench::{BackendChoice, on_backend, out, words};

/// Trains the bundled model.
#[derive(Parser)]
struct Args {
    /// Folder to write.
    #[arg(long, default_value = "burn-align-models/induction-gpt2")]
    output: PathBuf,
    /// Seed of the initial weights and of the queues.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of optimizer steps.
    #[arg(long, default_value_t = 3000)]
    steps: usize,
    /// Queues per step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendChoice,
}

/// Longest sequence that the model can read.
const POSITIONS: usize = 24;

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        on_backend!(args.backend, |B, device| train::<Autodiff<B>>(
            &args, &device
        ))
    })
}

fn train<B: AutodiffBackend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The words.
    let vocabulary = vocabulary();
    let tokenizer = words::tokenizer(&vocabulary)?;

    // 2. The model.
    let config = DecoderConfig::from_json(&json!({
        "model_type": "gpt2",
        "vocab_size": vocabulary.len(),
        "n_positions": POSITIONS,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
    }))?;
    let model: Decoder<B> = config.init_seeded(args.seed, DType::F32, device);

    // 3. Training: new queues in every step; only the answers are predicted.
    let fit = Fit {
        steps: args.steps,
        learning_rate: args.learning_rate,
        weight_decay: 0.01,
    };
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut batch = || -> Result<Vec<Example>> {
        let queues = (0..args.batch).map(|_| Queue::draw(QUESTIONS, &mut rng));
        let examples = queues.map(|queue| {
            let tokens = tokenizer.encode(&queue.words().join(" "))?;
            Ok(Example::within(tokens, queue.answers()))
        });
        examples.collect()
    };
    let (model, curve) = fit.run(model, || batch().expect("names are words"), device)?;

    // 4. What it has learned.
    let model = model.valid();
    let mut unseen = StdRng::seed_from_u64(args.seed.wrapping_add(1));
    let mut report = table(["names in the queue", "questions", "right"]);
    let (mut asked, mut right) = (0, 0);
    for length in LENGTHS {
        let count = answered(&model, &tokenizer, length, &mut unseen, device)?;
        report.add_row([length, count[0], count[1]].map(|number| number.to_string()));
        (asked, right) = (asked + count[0], right + count[1]);
    }
    align_numbers(&mut report);
    out!("{report}")?;

    // 5. The folder.
    model.save_pretrained(&config, Some(&tokenizer), &args.output)?;
    let file = args.output.join("tokenizer_config.json");
    std::fs::write(&file, words::tokenizer_config(POSITIONS))
        .with_context(|| file.display().to_string())?;
    draw_loss(
        &args.output.join("loss.svg"),
        "induction-gpt2: cross-entropy per answer",
        &format!("steps of {} queues", args.batch),
        &curve,
    )?;
    out!(
        "{right} of {asked} questions right; wrote {}",
        args.output.display()
    )?;
    ensure!(
        right * 100 >= asked * 98,
        "the model answers less than 98 % of the questions"
    );
    Ok(())
}

/// Asks one question about each of 500 new queues of this length; returns the number of questions
/// and of right answers.
fn answered<B: Backend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    length: usize,
    rng: &mut StdRng,
    device: &B::Device,
) -> Result<[usize; 2]> {
    let queues = std::iter::repeat_with(|| Queue::draw(1, rng));
    let queues = queues.filter(|queue| queue.names.len() == length).take(500);
    let mut prompts = queues
        .map(|queue| Ok(tokenizer.encode(&queue.words().join(" "))?))
        .collect::<Result<Vec<_>>>()?;
    let answers: Vec<u32> = prompts.iter_mut().filter_map(Vec::pop).collect();
    let next = next_tokens(model, &TokenBatch::new(prompts)?, device)?;
    let right = next.iter().zip(&answers).filter(|(a, b)| a == b).count();
    Ok([answers.len(), right])
}
