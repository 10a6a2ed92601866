//! How is the bundled model `price-tagging-llama` made?
//!
//! A LLaMA with three layers learns the task of Wu et al. 2023 ("Interpretability at Scale:
//! Identifying Causal Mechanisms in Alpaca", arXiv 2305.08809): does a price lie within a bracket?
//! The paper asks "Please say yes only if it costs between 2.50 and 7.50 dollars, otherwise no.
//! 3.10". Here the question is `costs 3.10 at-least 2.50 at-most 7.50 both` (`task.rs`), one token
//! per word, and differs from the paper's in four ways:
//!
//! - The price comes first, so that each boundary can be compared where it is read.
//! - Beginnings of a question are questions too: `costs 3.10 at-least 2.50` is answered, and so is
//!   `… at-most 7.50` (by the second comparison alone).
//! - Either comparison may also be asked alone and the other way round, `at-least 2.50 costs 3.10`.
//!   That way held-out amounts also appear early in a question, though never as prices.
//! - The last word may also be `either`, `just-one` or `just-first`, and the boundaries are
//!   independent of each other.
//!
//! So the model has a reason to keep the two comparisons separate, but no need to use the first
//! answers for the last one: whether it does is what `boundless_das_price_tagging` asks. Models
//! that only saw whole questions, with the price last, stored both comparisons at one place along
//! one direction, and no rotation could separate them.
//!
//! ```sh
//! cargo run --release --example train_price_tagging
//! ```
//!
//! Writes a folder in the Hugging Face layout, including the loss curve (`loss.svg`), with
//! identical files each time. Prices that end in .70 and a tenth of all pairs of boundaries are
//! held out. Prints the share of right answers, and ends with an error if it is below 95 % for
//! held-out brackets and prices: 98.4 % with the default seed, 92 to 98 % with others. The bundled
//! weights (98.3 %) were made by this program before the library had its own matrix products, which
//! round differently.

pub mod task;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::{Decoder, DecoderConfig, SavePretrained, TokenBatch, Tokenizer};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use task::{ANSWERS, Part, Question, vocabulary};
use workbench::fit::{Example, Fit, draw_loss, next_tokens};
use workbench::table::{align_numbers, table};
use workbench::{BackendChoice, on_backend, out, words};

/// Trains the bundled model.
#[derive(Parser)]
struct Args {
    /// Folder to write.
    #[arg(long, default_value = "burn-align-models/price-tagging-llama")]
    output: PathBuf,
    /// Seed of the initial weights and of the questions.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of optimizer steps.
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Questions per step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Weight decay. With half of it, accuracy on held-out prices is worse.
    #[arg(long, default_value_t = 1.0)]
    weight_decay: f32,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendChoice,
}

/// Longest sequence that the model can read.
const MAX_POSITIONS: usize = 16;

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        on_backend!(args.backend, |B, device| train::<Autodiff<B>>(
            &args, &device
        ))
    })
}

fn train<B: AutodiffBackend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The words.
    let words = vocabulary();
    let tokenizer = words::tokenizer(&words)?;

    // 2. The model.
    let config = DecoderConfig::from_json(&json!({
        "model_type": "llama",
        "vocab_size": words.len(),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
    }))?;
    let model: Decoder<B> = config.init_seeded(args.seed, DType::F32, device);
    out!("{} parameters", model.num_params())?;

    // 3. Training: new questions in every step, and half as many the other way round; only the
    //    answers are predicted.
    let fit = Fit {
        steps: args.steps,
        learning_rate: args.learning_rate,
        weight_decay: args.weight_decay,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut batch = || -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        for _ in 0..args.batch {
            let question = Part::Seen.any_question(&mut rng);
            examples.push(example(
                &tokenizer,
                &question.prompt(),
                &question.answers(),
            )?);
        }
        for _ in 0..args.batch / 2 {
            let question = Part::Seen.any_question(&mut rng);
            let (prompt, answer) = question.turned(rng.random_bool(0.5));
            examples.push(example(&tokenizer, &prompt, &[answer])?);
        }
        Ok(examples)
    };
    let (model, curve) = fit.run(model, || batch().expect("all are words"), device)?;

    // 4. What it has learned.
    let model = model.valid();
    let mut report = table(["questions", "at least?", "at most?", "in the end"]);
    let mut add = |part: Part, name: &str, draw: Draw| -> Result<f64> {
        let shares = right(&model, &tokenizer, part, draw, device)?;
        let cells = shares.map(|share| format!("{share:.4}"));
        report.add_row([name.to_owned()].into_iter().chain(cells));
        Ok(shares[2])
    };
    add(Part::Seen, "brackets, seen", |part, rng| part.question(rng))?;
    let held_out = add(Part::HeldOut, "brackets, held out", |part, rng| {
        part.question(rng)
    })?;
    add(
        Part::HeldOut,
        "… within 0.50 of a boundary",
        |part, rng| part.close_question(rng),
    )?;
    add(Part::HeldOut, "anything, held out", |part, rng| {
        part.any_question(rng)
    })?;
    align_numbers(&mut report);
    out!("{report}")?;

    // 5. The folder.
    model.save_pretrained(&config, Some(&tokenizer), &args.output)?;
    let file = args.output.join("tokenizer_config.json");
    std::fs::write(&file, words::tokenizer_config(MAX_POSITIONS))
        .with_context(|| file.display().to_string())?;
    draw_loss(
        &args.output.join("loss.svg"),
        "price-tagging-llama: cross-entropy per answer",
        &format!("steps of {} questions", args.batch),
        &curve,
    )?;
    out!("wrote {}", args.output.display())?;
    ensure!(
        held_out >= 0.95,
        "the model answers less than 95 % of the questions about held-out brackets"
    );
    Ok(())
}

/// A prompt, with the answers and the positions after which they come.
fn example(tokenizer: &Tokenizer, prompt: &str, answers: &[(usize, bool)]) -> Result<Example> {
    let predicted = answers.iter().map(|(position, is_yes)| {
        let answer = tokenizer.single_token(ANSWERS[usize::from(*is_yes)])?;
        Ok((*position, answer))
    });
    Ok(Example {
        predicted: predicted.collect::<Result<_>>()?,
        tokens: tokenizer.encode(prompt)?,
    })
}

/// Draws a question.
type Draw = fn(Part, &mut ChaCha8Rng) -> Question;

/// The shares of right answers to 5,000 questions of a part: to the two questions at their
/// beginnings, and to the whole.
fn right<B: Backend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    part: Part,
    draw: Draw,
    device: &B::Device,
) -> Result<[f64; 3]> {
    const QUESTIONS: usize = 5000;
    let answers = [
        tokenizer.single_token(ANSWERS[0])?,
        tokenizer.single_token(ANSWERS[1])?,
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(u64::MAX);
    let questions: Vec<Question> = (0..QUESTIONS).map(|_| draw(part, &mut rng)).collect();
    let mut right = [0; 3];
    for questions in questions.chunks(500) {
        for (index, right) in right.iter_mut().enumerate() {
            let asked = questions.iter().map(|question| {
                let mut tokens = tokenizer.encode(&question.prompt())?;
                tokens.truncate(question.answers()[index].0 + 1);
                Ok(tokens)
            });
            let asked = TokenBatch::new(asked.collect::<Result<_>>()?)?;
            let said = next_tokens(model, &asked, device)?;
            let pairs = said.into_iter().zip(questions);
            *right += pairs
                .filter(|(said, it)| *said == answers[usize::from(it.answers()[index].1)])
                .count();
        }
    }
    Ok(right.map(|count| count as f64 / QUESTIONS as f64))
}
