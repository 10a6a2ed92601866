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
//! Writes a folder in the Hugging Face layout with the loss curve beside it (`loss.svg`), the
//! same files each time, and prints how many facts of each relation the model knows. Ends with an
//! error if that is less than 99 %.

pub mod facts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::backend::Autodiff;
use burn::lr_scheduler::LrScheduler;
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::module::AutodiffModule;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
use burn_align_models::{
    AlignableTransformer, Gpt2, Gpt2Config, ModelInput, SavePretrained, TokenBatch, Tokenizer,
};
use clap::Parser;
use facts::{END, Fact, UNKNOWN, facts, vocabulary};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use workbench::plot::{Line, line_chart};
use workbench::table::{align_numbers, table};
use workbench::{BackendChoice, on_backend, out, progress};

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
    let tokenizer = Tokenizer::from_json(&tokenizer_json(&words))?;
    let mut sentences: Vec<Vec<u32>> = facts
        .iter()
        .map(|fact| tokenizer.encode(&format!("{} {} {END}", fact.prompt, fact.answer)))
        .collect::<Result<_, _>>()?;

    // 2. The model.
    let config = Gpt2Config {
        vocab_size: words.len(),
        n_positions: 16,
        n_embd: 128,
        n_layer: 4,
        n_head: 4,
        ..Gpt2Config::gpt2()
    };
    let mut model: Gpt2<B> = config.init_seeded(args.seed, DType::F32, device);

    // 3. Training: predict each next word.
    let steps = args.epochs * sentences.len().div_ceil(args.batch);
    let mut schedule = ComposedLrSchedulerConfig::new()
        .linear(LinearLrSchedulerConfig::new(1e-3, 1.0, steps.div_ceil(20)))
        .cosine(CosineAnnealingLrSchedulerConfig::new(
            args.learning_rate,
            steps,
        ))
        .init()
        .map_err(anyhow::Error::msg)?;
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let unknown = tokenizer.single_token(UNKNOWN)?;
    let loss_function = CrossEntropyLossConfig::new()
        .with_pad_tokens(Some(vec![unknown as usize]))
        .init(device);
    let mut order = StdRng::seed_from_u64(args.seed);
    let mut curve = Vec::new();
    let bar = progress::bar(steps as u64, "training");
    for _epoch in 0..args.epochs {
        sentences.shuffle(&mut order);
        for batch in sentences.chunks(args.batch) {
            let loss = next_token_loss(&model, batch, unknown, &loss_function, device)?;
            curve.push(loss.clone().into_scalar_f64());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(LrScheduler::step(&mut schedule), model, gradients);
            bar.set_prefix(format!("loss {:.3}", curve[curve.len() - 1]));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

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
    write(&args.output, "tokenizer_config.json", &tokenizer_config())?;
    draw_loss(&args.output.join("loss.svg"), &curve, args.batch)?;
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

/// Mean cross-entropy of every next word of the sentences.
fn next_token_loss<B: Backend>(
    model: &Gpt2<B>,
    sentences: &[Vec<u32>],
    padding: u32,
    loss: &CrossEntropyLoss<B>,
    device: &B::Device,
) -> Result<Tensor<B, 1>> {
    let longest = sentences.iter().map(Vec::len).max().unwrap_or(0);
    let padded = sentences.iter().map(|sentence| {
        let mut padded = sentence.clone();
        padded.resize(longest, padding);
        padded
    });
    let tokens = TokenBatch::new(padded.collect())?.to_tensor::<B>(device);
    let [batch, pos] = tokens.dims();
    let logits = model.forward(ModelInput::Tokens(tokens.clone().narrow(1, 0, pos - 1)));
    let [_batch, _pos, vocab] = logits.dims();
    let targets: Tensor<B, 1, Int> = tokens.narrow(1, 1, pos - 1).flatten(0, 1);
    Ok(loss.forward(logits.reshape([batch * (pos - 1), vocab]), targets))
}

/// For each relation: how many facts there are, and how many the model gets right.
fn known_facts<B: Backend>(
    model: &Gpt2<B>,
    tokenizer: &Tokenizer,
    facts: &[Fact],
    device: &B::Device,
) -> Result<BTreeMap<String, (usize, usize)>> {
    let mut known = BTreeMap::new();
    for facts in facts.chunks(256) {
        let prompts = tokenizer.encode_batch(facts.iter().map(|fact| &fact.prompt))?;
        let logits = model.forward(ModelInput::Tokens(prompts.to_tensor(device)));
        let best = logits.argmax(2).into_data().convert::<i64>();
        let best = best
            .as_slice::<i64>()
            .map_err(|e| anyhow::anyhow!("{e:?}"))?;
        for (row, (fact, length)) in facts.iter().zip(prompts.lengths()).enumerate() {
            let answer = i64::from(tokenizer.single_token(fact.answer)?);
            let (count, right) = known
                .entry(format!("{:?}", fact.relation))
                .or_insert((0, 0));
            *count += 1;
            *right += usize::from(best[row * prompts.pos() + length - 1] == answer);
        }
    }
    Ok(known)
}

/// A `tokenizer.json` whose tokens are these words.
fn tokenizer_json(words: &[String]) -> String {
    let special = |word: &str, id: usize| {
        json!({
            "id": id, "content": word, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .enumerate()
        .map(|(id, word)| (word.clone(), id.into()))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(UNKNOWN, 0), special(END, 1)],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
    })
    .to_string()
}

/// What Python's `transformers` needs to know about the tokenizer.
fn tokenizer_config() -> String {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": 16,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": false,
    });
    format!("{config:#}\n")
}

fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    let file = folder.join(file);
    std::fs::write(&file, text).with_context(|| file.display().to_string())
}

/// Draws the loss, averaged over stretches of 20 steps.
fn draw_loss(file: &Path, curve: &[f64], batch: usize) -> Result<()> {
    let points = curve.chunks(20).enumerate().map(|(i, losses)| {
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        ((i * 20) as f64, mean)
    });
    let line = Line {
        name: "training loss",
        points: points.collect(),
    };
    line_chart(
        file,
        "capitals-gpt2: cross-entropy per word",
        [&format!("steps of {batch} sentences"), "nats"],
        &[line],
    )
}

/// The value of a tensor with one element.
trait IntoScalar {
    fn into_scalar_f64(self) -> f64;
}

impl<B: Backend> IntoScalar for Tensor<B, 1> {
    fn into_scalar_f64(self) -> f64 {
        self.into_data().iter::<f64>().next().expect("one element")
    }
}
