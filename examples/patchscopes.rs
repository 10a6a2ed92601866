//! What does a hidden state say, if another prompt reads it?
//!
//! Patchscopes (Ghandeharioun et al. 2024, arXiv 2401.06102): the residual stream at one token of
//! a source prompt replaces that at a token of a target prompt, and the model goes on from there in
//! words. With an identity prompt, `cat->cat; 135->135; hello->hello; ?`, it says what the hidden
//! state stands for; with `The capital of x is` it looks something up about it. Every layer of the
//! source is a world, and all go on in one call of `generate`.
//!
//! ```sh
//! cargo run --release --example patchscopes                # the bundled model, seconds
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf    # bash tests/real/fetch.sh
//! cargo run --release --example patchscopes -- --model $model
//! cargo run --release --example patchscopes -- --model $model --target-layer 1 \
//!   --source "She has lived in Germany" --target "The capital of x is" --target-word x
//! ```
//!
//! Prints what the target goes on with for the hidden state after each layer of the source, written
//! after the same layer and, with `--target-layer`, after that one. With `--source-model` the
//! hidden states are another model's, of the same width.
//!
//! In the bundled model, the last token of `The capital of Spain is` says Madrid after layer 0 and
//! every later one, in a question for a language: this is checked. In SmolLM2, that of `The capital
//! of France is` says Paris from layer 22 on. `Germany` in `She has lived in Germany`, read by `The
//! capital of x is`, says Berlin up to layer 13; written after layer 1 of the target, it does so
//! from layers 1 to 23: late layers still know the country, and early ones can read it from there.

#[allow(dead_code, reason = "shared with other examples")]
#[path = "steering/chats.rs"]
mod chats;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, Operand, Plan, Units};
use burn_align::generate::{AtLimit, GenerateOptions, GeneratedWorld, generate};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::lens::stream_sites;
use burn_align_models::{AlignableTransformer, Component, Decoder, Site, Tokenizer};
use clap::Parser;
use workbench::table::table;
use workbench::{BackendArgs, ModelArgs, on_backend, out};

const MODEL: &str = "bundled:capitals";

/// Reads the hidden states of one prompt with another.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The model that the hidden states are from [default: the same one].
    #[arg(long, value_name = "MODEL")]
    source_model: Option<String>,
    /// The prompt that hidden states are taken from [default: a question for a capital].
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// The word of the source to take, at its last token [default: the end of the prompt].
    #[arg(long, value_name = "WORD")]
    source_word: Option<String>,
    /// The prompt that reads them [default: examples of repeating a word; for bundled:capitals a
    /// question for a language].
    #[arg(long, value_name = "TEXT")]
    target: Option<String>,
    /// The word of the target to write over, at its last token [default: the end of the prompt].
    #[arg(long, value_name = "WORD")]
    target_word: Option<String>,
    /// Also write every hidden state after this layer of the target.
    #[arg(long, value_name = "LAYER")]
    target_layer: Option<usize>,
    /// Most tokens to generate.
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    max_new_tokens: usize,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| read::<B>(&args, &device))
    })
}

fn read<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    ensure!(
        args.max_new_tokens > 0,
        "--max-new-tokens: expected at least 1, found 0"
    );

    // 1. The models and the prompts.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let other = match &args.source_model {
        Some(source) => Some(args.model.options.load::<B, Decoder<B>>(
            source.as_str(),
            dtype,
            device,
        )?),
        None => None,
    };
    let source_of = other.as_ref().unwrap_or(&loaded);
    let is_bundled = args.model.source(MODEL) == MODEL;
    let [default_source, default_target] = match is_bundled {
        true => ["The capital of Spain is", "The language of Italy is"],
        false => [
            "The capital of France is",
            "cat->cat; 135->135; hello->hello; ?",
        ],
    };
    let source = args.source.as_deref().unwrap_or(default_source);
    let target = args.target.as_deref().unwrap_or(default_target);
    let (model, tokenizer) = (&loaded.model, loaded.tokenizer()?);
    let from = position(source_of.tokenizer()?, source, args.source_word.as_deref())?;
    let to = position(tokenizer, target, args.target_word.as_deref())?;

    // 2. The hidden states: before the first layer, and after each.
    let sites = stream_sites(&source_of.model);
    let run = args.backend.run_options();
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&source_of.tokenizer()?.encode_batch([source])?);
    let world = plan.world(input, []);
    let reads: Vec<_> = sites
        .iter()
        .map(|site| plan.read(world, *site, Units::position(from)))
        .collect();
    let results = plan.run_with(&source_of.model, &[VanillaIntervention; 0], &run)?;
    let states: Vec<Tensor<B, 3>> = reads.into_iter().map(|read| results.get(read)).collect();
    let [own, others] = [model, &source_of.model].map(|model| model.dims().d_model);
    ensure!(
        own == others,
        "--source-model: expected hidden states of {own} features, found {others}"
    );

    // 3. Each is written into the target, and the target goes on: all in one call.
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&tokenizer.encode_batch([target])?);
    let mut worlds = vec![GeneratedWorld::new(plan.world(input, []))];
    let fixed = args
        .target_layer
        .map(|layer| Site::Block(layer, Component::BlockOutput));
    let columns = 1 + usize::from(fixed.is_some());
    for (site, state) in sites.iter().zip(states) {
        let constant = plan.constant(state);
        for target in [Some(*site), fixed].into_iter().flatten() {
            let operand = Operand::Constant(constant);
            let edit = Edit::new(target, Units::position(to), 0, operand);
            worlds.push(GeneratedWorld::new(plan.world(input, [edit])));
        }
    }
    let options = GenerateOptions::new(args.max_new_tokens)
        .with_stop_tokens(chats::end_tokens(tokenizer))
        .with_at_limit(AtLimit::Cut)
        .with_run(run);
    let swap = [VanillaIntervention];
    let texts = generate(model, &swap, &plan, &worlds, &options, |_| {})?;
    let texts = texts.rows.iter().map(|row| chats::text(tokenizer, row));
    let texts: Vec<String> = texts.collect::<Result<_>>()?;
    let (plain, texts) = texts
        .split_first()
        .context("expected a text for each world, found none")?;

    // 4. The table.
    let headers = ["hidden state", "written at the same site"].map(str::to_owned);
    let fixed = fixed.map(|site| format!("written at {site}"));
    let mut report = table(headers.into_iter().chain(fixed));
    for (site, texts) in sites.iter().zip(texts.chunks(columns)) {
        let texts = texts.iter().map(|text| format!("{text:?}"));
        report.add_row([site.to_string()].into_iter().chain(texts));
    }
    let words = |tokenizer: &Tokenizer, prompt: &str, position: usize| -> Result<String> {
        let ids = tokenizer.encode(prompt)?;
        let marks = tokenizer.token_marks(&ids);
        Ok(marks.get(position).cloned().unwrap_or_default())
    };
    out!(
        "source: {source}, at `{}`\n\
         target: {target}, at `{}`; as it is, it goes on {plain:?}\n{report}",
        words(source_of.tokenizer()?, source, from)?,
        words(tokenizer, target, to)?,
    )?;

    // 5. Check the claim made at the top, for its prompts.
    let is_default = is_bundled
        && args.source_model.is_none()
        && args.source.is_none()
        && args.source_word.is_none()
        && args.target.is_none()
        && args.target_word.is_none();
    if is_default {
        let says = |text: &String, word: &str| text.trim_start().starts_with(word);
        let mut same = texts.chunks(columns).map(|texts| &texts[0]);
        ensure!(says(plain, "Italian"), "the target goes on {plain:?}");
        ensure!(
            same.next().is_some_and(|text| !says(text, "Madrid")),
            "the embedding says Madrid"
        );
        ensure!(
            same.all(|text| says(text, "Madrid")),
            "a layer does not say Madrid"
        );
    }
    Ok(())
}

/// The last position of a word of a prompt, or of the prompt.
fn position(tokenizer: &Tokenizer, prompt: &str, word: Option<&str>) -> Result<usize> {
    match word {
        Some(word) => Ok(tokenizer.positions_of(prompt, word)?.end - 1),
        None => {
            let tokens = tokenizer.encode_batch([prompt])?;
            Ok(tokens.pos() - 1)
        }
    }
}
