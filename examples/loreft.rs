//! Can a model be steered only where it should be?
//!
//! When asked for the capital of a country, the bundled model is made to answer with its language,
//! in two ways, both at the last token of the prompt, and without changing any weights:
//! - a *steering vector* is added: the mean difference between prompts that ask for the language
//!   and prompts that ask for the capital (Rimsky et al. 2023, arXiv 2312.06681);
//! - *LoReFT* (Wu et al. 2024, arXiv 2404.03592, eq. 2) is trained: `x + (W x + b - R x) Rᵀ`, in a
//!   subspace of a few dimensions.
//!
//! Other questions must be answered as before. LoReFT sees some of them in training, and the
//! strength of the vector is the one that works best for both.
//!
//! ```sh
//! cargo run --release --example loreft
//! ```
//!
//! Prints how many prompts about new countries get the desired answer: the language for capitals;
//! and for other questions the same answer as without steering, also in new words and for two
//! questions never seen in training. LoReFT is saved and loaded, identical to the bit. 10 seconds
//! on 2 cores.
//!
//! With seeds 0 to 5, LoReFT steers every capital and leaves alone every question of training and
//! .87 to .92 of the new ones; the vector steers .74 to 1.00, and leaves .87 to .99 and .55 to .76
//! alone.

#[allow(dead_code, unreachable_pub, reason = "the table of another example")]
#[path = "train_capitals/facts.rs"]
mod facts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Indices, RunOptions, Units};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Source, UnitLocations,
};
use burn_align::interventions::ReftKind;
use burn_align::methods::mean_activations;
use burn_align::training::{
    InterchangeData, RateSchedule, TrainingConfig, TrainingEvent, evaluate, losses, train,
};
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site, TokenBatch,
    Tokenizer,
};
use clap::Parser;
use facts::{COUNTRIES, Relation, facts};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use workbench::table::{align_numbers, table};
use workbench::{BackendArgs, on_backend, out, progress};

/// Steers the bundled model from capitals to languages.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    /// The layer after which the residual stream is changed.
    #[arg(long, default_value_t = 1)]
    layer: usize,
    /// Dimensions that LoReFT may change.
    #[arg(long, default_value_t = 4)]
    rank: usize,
    /// Passes over the prompts.
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Seed of the split of the countries, and of the intervention.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep the trained intervention in this folder.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Questions to leave alone: those in training, and those never seen in training.
const SEEN: [Relation; 3] = [Relation::Language, Relation::Continent, Relation::Currency];
const UNSEEN: [Relation; 2] = [Relation::Demonym, Relation::CapitalOf];

/// The phrasings of a relation: every other one is for training.
#[derive(Clone, Copy, PartialEq)]
enum Phrasings {
    Even,
    Odd,
}

/// The desired answer.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Asked,
    Language,
}

/// The tokens of a prompt, and the desired answer.
type Example = (Vec<u32>, u32);

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| steer::<B>(&args, &device))
    })
}

fn steer<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and prompts: capitals to be answered with languages, and other questions.
    let options = LoadOptions::default().with_dtype(args.backend.dtype.dtype());
    let loaded = Decoder::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, device)?;
    let tokenizer = loaded.tokenizer()?;
    let mut countries: Vec<usize> = (0..COUNTRIES.len()).collect();
    countries.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let (known, new) = countries.split_at(COUNTRIES.len() * 4 / 5);
    let ask = |relations: &[Relation], phrasings, countries, wanted| {
        prompts(relations, phrasings, countries, wanted, tokenizer)
    };
    let capital = [Relation::Capital];
    let steered = ask(&capital, Phrasings::Even, known, Wanted::Language)?;
    let left_alone = ask(&SEEN, Phrasings::Even, known, Wanted::Asked)?;
    let both = [steered.clone(), left_alone.clone()].concat();
    let training = [data::<B>(&both)?];
    let (language, asked) = (Wanted::Language, Wanted::Asked);
    let held_out = [
        (
            "capital → language",
            ask(&capital, Phrasings::Even, new, language)?,
        ),
        (
            "… in new words",
            ask(&capital, Phrasings::Odd, new, language)?,
        ),
        ("other questions", ask(&SEEN, Phrasings::Even, new, asked)?),
        ("… in new words", ask(&SEEN, Phrasings::Odd, new, asked)?),
        ("new questions", ask(&UNSEEN, Phrasings::Even, new, asked)?),
    ];

    // 2. The steering vector: from capitals to languages.
    let residual = AlignableRepresentationConfig::new(args.layer, Component::BlockOutput);
    let model = loaded.model.clone();
    let languages = ask(&[Relation::Language], Phrasings::Even, known, asked)?;
    let frozen = model.valid();
    let vector = mean::<B>(&frozen, &residual, &languages)? - mean(&frozen, &residual, &steered)?;
    let config = AlignableConfig::new([residual
        .clone()
        .with_intervention(InterventionType::Addition)]);
    let addition = AlignableModel::new(config, frozen.clone())?;
    let with_vector = |scale: f64, examples: &[Example]| -> Result<f64> {
        let mut data = data::<B>(examples)?;
        data.inputs.sources = vec![Source::Values(vector.clone() * scale)];
        Ok(evaluate(&addition, &[data], 512)?.accuracy)
    };
    // Strong enough for capitals, and not too strong for the other questions.
    let mut best = (0.0, 0.0);
    for scale in (1..=32).map(|eighths| f64::from(eighths) / 8.0) {
        let right = with_vector(scale, &steered)? + with_vector(scale, &left_alone)?;
        if right > best.1 {
            best = (scale, right);
        }
    }
    let scale = best.0;

    // 3. LoReFT.
    let config = AlignableConfig::new([residual
        .with_low_rank(args.rank)
        .with_intervention(InterventionType::Reft(ReftKind::LoReft))]);
    let reft = AlignableModel::new_seeded(config, model, args.seed)?;
    let config = TrainingConfig::default()
        .with_epochs(args.epochs)
        .with_batch_size(64)
        .with_learning_rate(1e-2)
        .with_schedule(RateSchedule::WarmUpThenDecay(0.05))
        .with_seed(args.seed);
    let bar = progress::bar(args.epochs as u64, "training");
    let (reft, _) = train(
        reft,
        &training,
        &[],
        &config,
        losses::cross_entropy,
        |event| {
            if let TrainingEvent::Epoch(epoch) = event {
                bar.set_prefix(format!("loss {:.3}", epoch.loss));
                bar.inc(1);
            }
        },
    )?;
    bar.finish_and_clear();
    let reft = reft.valid();

    // 4. To a folder and back.
    let temporary = std::env::temp_dir().join(format!("burn-align-loreft-{}", std::process::id()));
    let folder = args.output.as_ref().unwrap_or(&temporary);
    let again = saved_and_loaded(&reft, folder, &training[0].inputs);
    if args.output.is_none() {
        // The folder may not exist; what matters is whether saving succeeded.
        let _ = std::fs::remove_dir_all(folder);
    }
    let reft = again?;

    // 5. The answers.
    let mut report = table([
        "prompts about new countries".to_owned(),
        "count".to_owned(),
        "not steered".to_owned(),
        format!("vector × {scale}"),
        format!("LoReFT, rank {}", args.rank),
    ]);
    let mut accuracies = Vec::new();
    for (name, examples) in &held_out {
        let row = [
            with_vector(0.0, examples)?,
            with_vector(scale, examples)?,
            evaluate(&reft, &[data(examples)?], 512)?.accuracy,
        ];
        let numbers = row.map(|accuracy| format!("{accuracy:.4}"));
        let start = [(*name).to_owned(), examples.len().to_string()];
        report.add_row(start.into_iter().chain(numbers));
        accuracies.push(row);
    }
    align_numbers(&mut report);
    out!("share of the desired answers\n{report}")?;
    conclude(&accuracies)
}

/// Checks what the table shows.
fn conclude(accuracies: &[[f64; 3]]) -> Result<()> {
    let (steered, others) = accuracies.split_at(2);
    for [not_steered, vector, reft] in steered {
        ensure!(
            *not_steered < 0.1 && *vector > 0.5 && *reft > 0.9,
            "steering does not generalise to new countries and words, or is not needed"
        );
    }
    ensure!(
        others[..2].iter().all(|[_, _, reft]| *reft > 0.95),
        "LoReFT changes answers that it should leave alone"
    );
    let [_, vector, reft] = others[2];
    ensure!(
        reft > 0.8 && vector < reft - 0.1,
        "the steering vector is as selective as LoReFT"
    );
    Ok(())
}

/// Prompts about some countries.
fn prompts(
    relations: &[Relation],
    phrasings: Phrasings,
    countries: &[usize],
    wanted: Wanted,
    tokenizer: &Tokenizer,
) -> Result<Vec<Example>> {
    let facts = facts();
    let mut examples = Vec::new();
    for relation in relations {
        // A phrasing about every country, then the next phrasing.
        let all = facts.chunks(COUNTRIES.len());
        let all = all.filter(|phrasing| phrasing[0].relation == *relation);
        let first = usize::from(phrasings == Phrasings::Odd);
        for phrasing in all.skip(first).step_by(2) {
            for country in countries {
                let fact = &phrasing[*country];
                let answer = match wanted {
                    Wanted::Asked => fact.answer,
                    Wanted::Language => COUNTRIES[*country].language,
                };
                let answer = tokenizer.single_token(&format!(" {answer}"))?;
                examples.push((tokenizer.encode(&fact.prompt)?, answer));
            }
        }
    }
    Ok(examples)
}

/// The prompts, to be changed at their last tokens, and their answers.
fn data<B: Backend>(examples: &[Example]) -> Result<InterchangeData<B>> {
    let (prompts, answers): (Vec<_>, Vec<_>) = examples.iter().cloned().unzip();
    let prompts = TokenBatch::new(prompts)?;
    let last = Indices::one_each(prompts.last_positions());
    let inputs = AlignableInputs::new(prompts).with_locations(UnitLocations::base(last));
    Ok(InterchangeData::new(inputs, answers))
}

/// The mean activation at the last tokens, `[1, 1, d_model]`.
fn mean<B: Backend>(
    model: &Decoder<B>,
    residual: &AlignableRepresentationConfig,
    examples: &[Example],
) -> Result<Tensor<B, 3>> {
    let prompts: Vec<Vec<u32>> = examples.iter().map(|(prompt, _)| prompt.clone()).collect();
    let prompts = TokenBatch::new(prompts)?;
    let units = Units::positions(Indices::one_each(prompts.last_positions()));
    let site: Site = residual.place();
    Ok(mean_activations(
        model,
        &[prompts],
        site,
        &units,
        &RunOptions::default(),
    )?)
}

/// The same, saved to a folder and loaded, checked to the bit.
fn saved_and_loaded<B: Backend, M: AlignableTransformer<B> + Clone>(
    trained: &AlignableModel<B, M>,
    folder: &Path,
    inputs: &AlignableInputs<B>,
) -> Result<AlignableModel<B, M>> {
    trained.save_interventions(folder)?;
    let loaded = AlignableModel::load(folder, trained.model().clone())?;
    let logits = |model: &AlignableModel<B, M>| -> Result<_> {
        Ok(model.forward_inputs(inputs)?.counterfactual.into_data())
    };
    ensure!(
        logits(trained)?.as_bytes() == logits(&loaded)?.as_bytes(),
        "the intervention changed when saved and loaded"
    );
    Ok(loaded)
}
