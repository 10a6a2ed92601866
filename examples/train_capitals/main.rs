//! How is the bundled model `capitals-gpt2` made?
//!
//! A GPT-2 with four layers learns 2,020 sentences about 101 countries: capitals, languages,
//! continents, currencies and demonyms, each in several phrasings (`facts.rs`). Its tokens are
//! whole words, so "The capital of Spain is" has five.
//!
//! ```sh
//! cargo run --release --example train_capitals
//! ```
//!
//! Writes a folder in the Hugging Face layout, including the loss curve (`loss.svg`), with
//! identical files each time, and prints how many facts of each relation the model knows. Ends with
//! an error if that is less than 99 %.

pub mod facts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align_models::{Decoder, DecoderConfig, SavePretrained, Tokenizer};
use clap::Parser;
use facts::{END, Fact, facts, vocabulary};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use workbench::fit::{Example, Fit, draw_loss, next_tokens};
use workbench::table::{align_numbers, table};
use workbench::{BackendChoice, on_backend, out, words};

/// Trains the bundled model.
#[derive(Parser)]
struct Args {
    /// Folder to write.
    #[arg(long, default_value = "burn-align-models/capitals-gpt2")]
    output: PathBuf,
    /// Seed of the initial weights and of the order of the sentences.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How often every sentence is read.
    #[arg(long, default_value_t = 60)]
    epochs: usize,
    /// Sentences per optimizer step.
    #[arg(long, default_value_t = 101)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendChoice,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        on_backend!(args.backend, |B, device| train::<Autodiff<B>>(
            &args, &device
        ))
    })
}

fn train<B: AutodiffBackend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The sentences, as tokens.
    let facts = facts();
    let words = vocabulary();
    let tokenizer = words::tokenizer(&words)?;
    let mut sentences: Vec<Vec<u32>> = facts
        .iter()
        .map(|fact| tokenizer.encode(&format!("{} {} {END}", fact.prompt, fact.answer)))
        .collect::<Result<_, _>>()?;

    // 2. The model.
    let config = DecoderConfig::from_json(&json!({
        "model_type": "gpt2",
        "vocab_size": words.len(),
        "n_positions": 16,
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
    }))?;
    let model: Decoder<B> = config.init_seeded(args.seed, DType::F32, device);

    // 3. Training: predict each next word.
    let batches = sentences.len().div_ceil(args.batch);
    let fit = Fit {
        steps: args.epochs * batches,
        learning_rate: args.learning_rate,
        weight_decay: 0.01,
    };
    let mut order = StdRng::seed_from_u64(args.seed);
    let mut next = 0;
    let batch = || {
        if next == 0 {
            sentences.shuffle(&mut order);
        }
        let batch = sentences.chunks(args.batch).nth(next);
        next = (next + 1) % batches;
        let sentences = batch.into_iter().flatten();
        sentences.cloned().map(Example::all).collect()
    };
    let (model, curve) = fit.run(model, batch, device)?;

    // 4. What it has learned.
    let model = model.valid();
    let known = known_facts(&model, &tokenizer, &facts, device)?;
    let mut report = table(["relation", "facts", "right"]);
    for (relation, (count, right)) in &known {
        report.add_row([relation.clone(), count.to_string(), right.to_string()]);
    }
    align_numbers(&mut report);
    out!("{report}")?;

    // 5. The folder.
    model.save_pretrained(&config, Some(&tokenizer), &args.output)?;
    write(
        &args.output,
        "tokenizer_config.json",
        &words::tokenizer_config(16),
    )?;
    draw_loss(
        &args.output.join("loss.svg"),
        "capitals-gpt2: cross-entropy per word",
        &format!("steps of {} sentences", args.batch),
        &curve,
    )?;
    let (count, right) = known
        .values()
        .fold((0, 0), |(count, right), (c, r)| (count + c, right + r));
    out!(
        "{right} of {count} facts right; wrote {}",
        args.output.display()
    )?;
    ensure!(
        right * 100 >= count * 99,
        "the model knows less than 99 % of the facts"
    );
    Ok(())
}

/// For each relation, the number of facts, and how many the model gets right.
fn known_facts<B: Backend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    facts: &[Fact],
    device: &B::Device,
) -> Result<BTreeMap<String, (usize, usize)>> {
    let mut known = BTreeMap::new();
    for facts in facts.chunks(256) {
        let prompts = tokenizer.encode_batch(facts.iter().map(|fact| &fact.prompt))?;
        let next = next_tokens(model, &prompts, device)?;
        for (fact, next) in facts.iter().zip(next) {
            let answer = tokenizer.single_token(fact.answer)?;
            let (count, right) = known
                .entry(format!("{:?}", fact.relation))
                .or_insert((0, 0));
            *count += 1;
            *right += usize::from(next == answer);
        }
    }
    Ok(known)
}

fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    let file = folder.join(file);
    std::fs::write(&file, text).with_context(|| file.display().to_string())
}
