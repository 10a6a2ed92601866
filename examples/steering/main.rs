//! Can a direction steer what a model writes, and how strongly before its text breaks?
//!
//! A direction is the mean difference between activations of two kinds of texts, such as gloomy and
//! cheerful sentences (Rimsky et al. 2023, arXiv 2312.06681; Turner et al. 2023, arXiv 2308.10248).
//! It is added after one layer, at every position but the first and at every generated token, at
//! several strengths, in one call of `generate`: each strength is a world. Strength 1 is as long as
//! the median activation. Next to it, a random direction of the same length.
//!
//! ```sh
//! cargo run --release --example steering                   # the bundled model, seconds
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf    # bash tests/real/fetch.sh
//! cargo run --release --example steering -- --model $model
//! cargo run --release --example steering -- --model $model --contrast french --save french
//! cargo run --release --example steering -- --model $model --pairs mine.tsv --gguf mine.gguf
//! cargo run --release --example chat -- --model $model --steer french:0.2 --side-by-side
//! ```
//!
//! Prints how well the direction tells held-out texts apart, and by strength: how much of the text
//! is as desired, its log-probability for the model without steering, how many of its tokens are
//! distinct, and where it breaks.
//!
//! The bundled model, asked for capitals, answers with languages at strengths of 0.75 and 1, and
//! mostly with neither from 2 on; a random direction does not change its answers at 1. This is
//! checked.
//!
//! SmolLM2 becomes gloomy from 0.1 on, cheerful below 0, and breaks at about 0.4. At 0.2: `The sea
//! is a vast and unforgiving land. It is a place of unimaginable horror`. It turns to French at
//! about 0.15.

mod applied;
mod chats;
mod contrast;
mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use burn_align::engine::{Plan, RunOptions};
use burn_align::generate::{GenerateOptions, GeneratedTexts, generate};
use burn_align::interventions::AdditionIntervention;
use burn_align::methods::{
    Direction, DirectionData, DirectionMethod, DirectionOptions, PromptPositions,
    collect_activations, find_direction,
};
use burn_align::saved::ControlVector;
use burn_align_models::{
    AlignableTransformer, Component, Decoder, DecoderConfig, Pretrained, Site, TokenBatch,
};
use clap::{Parser, ValueEnum};
use comfy_table::CellAlignment;
use workbench::table::{align_numbers, table};
use workbench::{BackendArgs, ModelArgs, on_backend, out};

use applied::{Push, steered};
use contrast::{Contrast, Topic};
use measure::{Continued, Measured};

const MODEL: &str = "bundled:capitals";

/// Steers a model along a direction, at several strengths.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What is contrasted [default: languages for bundled:capitals, otherwise gloomy].
    #[arg(long, value_enum)]
    contrast: Option<Topic>,
    /// Contrast the texts of this file instead: on every line a positive text, a tab and a negative
    /// one; on the first line what they stand for, such as "polite" and "rude".
    #[arg(long, value_name = "FILE", conflicts_with = "contrast")]
    pairs: Option<PathBuf>,
    /// A prompt to steer; may be given several times [default: those of the contrast].
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,
    /// The layer after which the direction is taken and added [default: that of the contrast].
    #[arg(long)]
    layer: Option<usize>,
    /// How the direction is built.
    #[arg(long, value_enum, default_value_t = Method::MeanDifference)]
    method: Method,
    /// Strengths, relative to the median activation [default: those of the contrast].
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    strengths: Vec<f64>,
    /// Most tokens to generate after each prompt [default: that of the contrast].
    #[arg(long, value_name = "COUNT")]
    max_new_tokens: Option<usize>,
    /// Seed of the held-out texts and of the random direction.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep the direction in this folder, for the example `chat`.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Write the direction to this file as a control vector of llama.cpp, for
    /// --control-vector-scaled FILE:STRENGTH.
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

/// How a direction is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// The difference of means.
    MeanDifference,
    /// The first principal component of differences.
    PrincipalComponent,
    /// Linear artificial tomography.
    Lat,
    /// The weights of a logistic regression.
    Probe,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| steer::<B>(&args, &device))
    })
}

fn steer<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and what is contrasted.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let contrast = args.contrast()?;
    let run = args.backend.run_options();

    // 2. The direction, and a random one, from activations after a layer.
    let (numerator, denominator) = contrast.depth;
    let layers = loaded.model.dims().layers;
    let layer = args.layer.unwrap_or(layers * numerator / denominator);
    let [direction, random] = directions(args, &loaded, &contrast, layer, &run)?;
    let [positive, negative] = &contrast.labels;
    out!(
        "from {negative} to {positive}, after layer {layer} of {layers}\n\
         held out: AUC {:.3}, accuracy {:.3}; a random direction: AUC {:.3}, accuracy {:.3}\n\
         length of the difference: {:.3} of the median activation\n",
        direction.separation.auc,
        direction.separation.accuracy,
        direction.control.auc,
        direction.control.accuracy,
        direction.norms.unscaled / direction.norms.median_activation,
    )?;

    // 3. All strengths of both directions, in one call.
    let prompts = args.prompts(&contrast, &loaded)?;
    let own: &[f64] = match args.strengths.is_empty() {
        true => contrast.strengths,
        false => &args.strengths,
    };
    let strengths: Vec<f64> = [0.0].iter().chain(own).copied().collect();
    let texts = sweep(
        args,
        &loaded,
        &contrast,
        &prompts,
        &strengths,
        [&direction, &random],
        &run,
    )?;

    // 4. What has become of the texts.
    let has_answers = contrast.answers.is_some() && args.prompts.is_empty();
    let rows = texts.rows.chunks(prompts.batch());
    let mut measured = Vec::new();
    let mut first_texts = Vec::new();
    for rows in rows {
        let mut continued = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let answers = contrast.answers.as_ref().filter(|_| has_answers);
            continued.push(Continued {
                prompt: prompts.ids()[index].clone(),
                new: row.tokens.clone(),
                text: chats::text(loaded.tokenizer()?, row)?,
                answers: answers.and_then(|answers| answers.get(index).copied()),
            });
        }
        measured.push(Measured::of::<B, _>(
            &continued,
            &loaded.model,
            &direction,
            &run,
        )?);
        let first = continued.first().context("no prompt")?;
        first_texts.push(chats::shortened(&first.text, 56));
    }
    let (along, control) = measured.split_at(strengths.len());
    let mut report = table([
        "strength".to_owned(),
        format!("{positive} along it"),
        "log p".to_owned(),
        "distinct".to_owned(),
        String::new(),
        format!("{positive} at random"),
        "log p".to_owned(),
        "first text along it".to_owned(),
    ]);
    for (index, strength) in strengths.iter().enumerate() {
        let (own, random) = (along[index], control[index]);
        let breaks = own.is_broken(&along[0], has_answers);
        report.add_row([
            format!("{strength:+.2}"),
            format!("{:.2}", own.desired),
            format!("{:.2}", own.log_probability),
            format!("{:.2}", own.distinct),
            if breaks { "breaks" } else { "" }.to_owned(),
            format!("{:.2}", random.desired),
            format!("{:.2}", random.log_probability),
            first_texts[index].clone(),
        ]);
    }
    align_numbers(&mut report);
    for column in [4, 7] {
        if let Some(column) = report.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    out!(
        "{} {} {}\n{report}",
        match has_answers {
            true => "fraction of answers that are the",
            false => "fraction of tokens that read as",
        },
        positive,
        match prompts.batch() {
            1 => "after 1 prompt".to_owned(),
            many => format!("after {many} prompts"),
        },
    )?;

    // 5. For others.
    if let Some(folder) = &args.save {
        direction.save(folder)?;
        out!("saved to {0}; chat --steer {0}:STRENGTH", folder.display())?;
    }
    if let Some(file) = &args.gguf {
        let hint = loaded.config.family.model_type();
        ControlVector::from_directions(hint, [&direction], 1.0)?.save(file)?;
        out!(
            "written to {0}; --control-vector-scaled {0}:STRENGTH",
            file.display()
        )?;
    }
    match args.is_default() {
        true => conclude(&direction, along, control),
        false => Ok(()),
    }
}

/// The direction and a random one, each as long as the median activation.
fn directions<B: Backend>(
    args: &Args,
    loaded: &Pretrained<Decoder<B>, DecoderConfig>,
    contrast: &Contrast,
    layer: usize,
    run: &RunOptions,
) -> Result<[Direction; 2]> {
    let site = Site::Block(layer, Component::BlockOutput);
    let positions = &contrast.positions;
    let collect = |side: usize| -> Result<_> {
        let texts = contrast.pairs.iter().map(|pair| &pair[side]);
        let texts = loaded.tokenizer()?.encode_batch(texts)?;
        let found = collect_activations::<B, _>(&loaded.model, &texts, site, positions, run);
        Ok(found?)
    };
    let (positive, negative) = (collect(0)?, collect(1)?);
    let data = match positions {
        PromptPositions::Last => DirectionData::pairs(&positive, &negative)?,
        // Texts of different lengths.
        _ => DirectionData::sets(&positive, &negative)?,
    };
    let [positive, negative] = &contrast.labels;
    let options = DirectionOptions::default()
        .with_seed(args.seed)
        .with_model(args.model.source(MODEL))
        .with_positions(positions)
        .with_labels(positive, negative);
    let method = match args.method {
        Method::MeanDifference => DirectionMethod::MeanDifference,
        Method::PrincipalComponent => DirectionMethod::PrincipalComponent,
        Method::Lat => DirectionMethod::Lat,
        Method::Probe => DirectionMethod::PROBE,
    };
    Ok([
        find_direction(&data, site, method, &options)?,
        find_direction(&data, site, DirectionMethod::Random, &options)?,
    ])
}

/// Generates at all strengths along each direction: a row for each prompt, strength by strength and
/// direction by direction.
fn sweep<B: Backend>(
    args: &Args,
    loaded: &Pretrained<Decoder<B>, DecoderConfig>,
    contrast: &Contrast,
    prompts: &TokenBatch,
    strengths: &[f64],
    directions: [&Direction; 2],
    run: &RunOptions,
) -> Result<GeneratedTexts<B>> {
    let device = loaded.model.device();
    let mut plan = Plan::<B>::new();
    let mut worlds = Vec::new();
    for direction in directions {
        for strength in strengths {
            let vector = direction.to_tensor::<B>(&device).unsqueeze::<3>() * *strength;
            let push = Push {
                site: direction.site,
                vector,
            };
            worlds.push(steered(&mut plan, prompts, &[push], 0));
        }
    }
    let new_tokens = args.max_new_tokens.unwrap_or(contrast.new_tokens);
    ensure!(
        new_tokens > 0,
        "--max-new-tokens: expected at least 1, found 0"
    );
    let options = GenerateOptions::new(new_tokens)
        .with_stop_tokens(chats::end_tokens(loaded.tokenizer()?))
        .with_run(run.clone());
    let addition = [AdditionIntervention];
    let texts = generate(&loaded.model, &addition, &plan, &worlds, &options, |_| {})?;
    Ok(texts)
}

impl Args {
    fn contrast(&self) -> Result<Contrast> {
        match (&self.pairs, self.contrast) {
            (Some(file), _) => Contrast::read(file),
            (None, Some(topic)) => topic.contrast(),
            (None, None) => match self.model.source(MODEL) {
                MODEL => Topic::Languages.contrast(),
                _ => Topic::Gloomy.contrast(),
            },
        }
    }

    fn prompts<B: Backend>(
        &self,
        contrast: &Contrast,
        loaded: &Pretrained<Decoder<B>, DecoderConfig>,
    ) -> Result<TokenBatch> {
        let texts = match self.prompts.is_empty() {
            true => &contrast.prompts,
            false => &self.prompts,
        };
        let tokenizer = loaded.tokenizer()?;
        let ids = texts.iter().map(|text| chats::prompt(tokenizer, text));
        Ok(TokenBatch::new(ids.collect::<Result<_>>()?)?)
    }

    /// Whether the claims made at the top are about this run.
    fn is_default(&self) -> bool {
        self.model.source(MODEL) == MODEL
            && self.contrast.is_none_or(|topic| topic == Topic::Languages)
            && self.pairs.is_none()
            && self.prompts.is_empty()
            && self.layer.is_none()
            && self.method == Method::MeanDifference
            && self.strengths.is_empty()
            && self.max_new_tokens.is_none()
            && self.seed == 0
    }
}

/// Checks what the table shows.
fn conclude(direction: &Direction, along: &[Measured], control: &[Measured]) -> Result<()> {
    ensure!(
        direction.separation.auc > 0.95,
        "the direction does not tell held-out questions apart"
    );
    let best = along.iter().zip(control);
    let best = best.max_by(|(a, _), (b, _)| a.desired.total_cmp(&b.desired));
    let (best, random) = best.context("no strength")?;
    ensure!(
        best.desired > 0.9 && along[0].desired < 0.1,
        "no strength turns answers into languages, or none is needed"
    );
    ensure!(
        random.desired < 0.1 && random.kept > 0.8,
        "a random direction of this strength changes answers as well"
    );
    ensure!(
        along
            .last()
            .is_some_and(|last| last.is_broken(&along[0], true)),
        "texts do not break at the largest strength"
    );
    Ok(())
}
