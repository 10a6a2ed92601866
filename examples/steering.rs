//! Can a model be steered, and only where it should be?
//!
//! The bundled model, asked for the capital of a country, is made to answer with its language, in
//! two ways, both at the last token of the prompt, and without touching a weight:
//! - a *steering vector* is added: the mean difference between prompts that ask for the language
//!   and prompts that ask for the capital (Marks and Tegmark 2023, arXiv 2310.06824, §5.1, call
//!   this direction the difference in means), as strong as works best in training;
//! - *LoReFT* (Wu et al. 2024, arXiv 2404.03592, eq. 2) is trained: `x + (W x + b - R x) Rᵀ`, in a
//!   subspace of a few dimensions. It has seen other questions, too, whose answers must stay.
//!
//! ```sh
//! cargo run --release --example steering
//! ```
//!
//! Prints how many prompts get the answer they should: capitals with the language; and other
//! questions with what they ask for, as without steering. Countries and phrasings are held out, and
//! two of the other questions have never been seen in training. LoReFT is saved, loaded, and the
//! same bit by bit. MINUTES.

#[allow(dead_code, unreachable_pub, reason = "the table of another example")]
#[path = "train_capitals/facts.rs"]
mod facts;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::backend::Autodiff;
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Indices, RunOptions, Units};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType, Locations, RepresentationLocations, Source, UnitLocations,
};
use burn_align::interventions::ReftKind;
use burn_align::methods::mean_activations;
use burn_align::training::{
    InterchangeData, RateSchedule, TrainingConfig, TrainingEvent, evaluate, losses, train,
};
use burn_align_models::{
    AlignableTransformer, Component, FromPretrained, Gpt2, LoadOptions, Site, TokenBatch, Tokenizer,
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
    /// The layer behind which the residual stream is changed.
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

/// Relations that training must leave alone, and one that it never sees.
const SEEN: [Relation; 3] = [Relation::Language, Relation::Continent, Relation::Currency];
const UNSEEN: [Relation; 2] = [Relation::Demonym, Relation::CapitalOf];

/// Phrasings of a relation.
#[derive(Clone, Copy, PartialEq)]
enum Phrasings {
    /// The first, third, … of each: for training.
    Training,
    /// The others.
    HeldOut,
}

/// What is made of a prompt: the tokens, and the answer that is wanted.
type Example = (Vec<u32>, u32);

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| steer::<B>(&args, &device))
    })
}

fn steer<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and prompts: capitals that shall be answered with languages, and other
    //    questions.
    let options = LoadOptions::default().with_dtype(args.backend.dtype.dtype());
    let loaded = Gpt2::<Autodiff<B>>::from_pretrained("bundled:capitals", &options, device)?;
    let tokenizer = loaded.tokenizer()?;
    let mut countries: Vec<usize> = (0..COUNTRIES.len()).collect();
    countries.shuffle(&mut ChaCha8Rng::seed_from_u64(args.seed));
    let (known, new) = countries.split_at(COUNTRIES.len() * 4 / 5);
    let capitals =
        |phrasings, countries| prompts(&[Relation::Capital], phrasings, countries, true, tokenizer);
    let others = |relations: &[Relation], phrasings, countries| {
        prompts(relations, phrasings, countries, false, tokenizer)
    };
    let (seen, unseen) = (&SEEN[..], &UNSEEN[..]);
    let steered = capitals(Phrasings::Training, known)?;
    let training = [steered.clone(), others(seen, Phrasings::Training, known)?].concat();
    let judged = [
        ("capital → language, as in training", steered),
        ("new countries", capitals(Phrasings::Training, new)?),
        (
            "new countries and phrasings",
            capitals(Phrasings::HeldOut, new)?,
        ),
        (
            "left alone, as in training",
            others(seen, Phrasings::Training, known)?,
        ),
        (
            "new countries and phrasings",
            others(seen, Phrasings::HeldOut, new)?,
        ),
        ("new questions", others(unseen, Phrasings::Training, new)?),
    ];

    // 2. The steering vector: from capitals to languages.
    let residual = AlignableRepresentationConfig::new(args.layer, Component::BlockOutput);
    let model = loaded.model.clone();
    let languages = others(&[Relation::Language], Phrasings::Training, known)?;
    let frozen = burn::module::AutodiffModule::valid(&model);
    let vector =
        mean::<B>(&frozen, &residual, &languages)? - mean(&frozen, &residual, &judged[0].1)?;
    let config = AlignableConfig::new([residual
        .clone()
        .with_intervention(InterventionType::Addition)]);
    let addition = AlignableModel::new(config, frozen.clone())?;
    let with_vector = |scale: f64, examples: &[Example]| -> Result<f64> {
        let mut data = data::<B>(examples)?;
        data.inputs.sources = vec![Source::Values(vector.clone() * scale)];
        Ok(evaluate(&addition, &[data], 512)?.accuracy)
    };
    let mut best = (0.0, 0.0);
    for quarter in 1..=16 {
        let scale = f64::from(quarter) / 4.0;
        let accuracy = with_vector(scale, &judged[0].1)?;
        if accuracy > best.1 {
            best = (scale, accuracy);
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
    let data_of_training = [data::<B>(&training)?];
    let (reft, _) = train(
        reft,
        &data_of_training,
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
    let temporary =
        std::env::temp_dir().join(format!("burn-align-steering-{}", std::process::id()));
    let folder = args.output.as_ref().unwrap_or(&temporary);
    let again = saved_and_loaded(&reft, folder, &data_of_training[0].inputs);
    if args.output.is_none() {
        // The folder may not be there; what matters is whether saving went well.
        let _ = std::fs::remove_dir_all(folder);
    }
    let reft = again?;

    // 5. What becomes of the answers.
    let mut rows = Vec::new();
    let mut report = table([
        "prompts".to_owned(),
        "count".to_owned(),
        "no steering".to_owned(),
        format!("vector × {scale}"),
        format!("LoReFT, rank {}", args.rank),
    ]);
    for (name, examples) in &judged {
        let accuracies = [
            with_vector(0.0, examples)?,
            with_vector(scale, examples)?,
            evaluate(&reft, &[data(examples)?], 512)?.accuracy,
        ];
        let cells = accuracies.map(|accuracy| format!("{accuracy:.4}"));
        let start = [(*name).to_owned(), examples.len().to_string()];
        report.add_row(start.into_iter().chain(cells));
        rows.push(accuracies);
    }
    align_numbers(&mut report);
    out!("{report}")?;
    Ok(())
}

/// Prompts about some countries, and the answers that are wanted: the language, or what is asked.
fn prompts(
    relations: &[Relation],
    phrasings: Phrasings,
    countries: &[usize],
    to_language: bool,
    tokenizer: &Tokenizer,
) -> Result<Vec<Example>> {
    let facts = facts();
    let mut examples = Vec::new();
    for relation in relations {
        let of_relation = facts
            .chunks(COUNTRIES.len())
            .filter(|phrasing| phrasing[0].relation == *relation);
        for (number, phrasing) in of_relation.enumerate() {
            if (number % 2 == 0) != (phrasings == Phrasings::Training) {
                continue;
            }
            for country in countries {
                let fact = &phrasing[*country];
                let answer = match to_language {
                    true => COUNTRIES[*country].language,
                    false => fact.answer,
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
    let last = RepresentationLocations::Units(last_tokens(&prompts));
    let inputs = AlignableInputs::new(TokenBatch::new(prompts)?).with_locations(
        UnitLocations::SourcesToBase {
            source: None,
            base: Locations::Each(vec![Some(last)]),
        },
    );
    Ok(InterchangeData::new(inputs, answers))
}

fn last_tokens(prompts: &[Vec<u32>]) -> Vec<Vec<usize>> {
    prompts
        .iter()
        .map(|prompt| vec![prompt.len() - 1])
        .collect()
}

/// The mean activation at the last tokens, `[1, 1, d_model]`.
fn mean<B: Backend>(
    model: &Gpt2<B>,
    residual: &AlignableRepresentationConfig,
    examples: &[Example],
) -> Result<Tensor<B, 3>> {
    let prompts: Vec<Vec<u32>> = examples.iter().map(|(prompt, _)| prompt.clone()).collect();
    let units = Units::positions(Indices::Each(last_tokens(&prompts)));
    let prompts = [TokenBatch::new(prompts)?];
    let site: Site = residual.place();
    Ok(mean_activations(
        model,
        &prompts,
        site,
        &units,
        &RunOptions::default(),
    )?)
}

/// The same from a folder, where it is the same bit by bit.
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
        "the intervention has changed in its folder"
    );
    Ok(loaded)
}
