//! How does a model talk when it is steered?
//!
//! A conversation in the terminal. Directions (from the example `steering`, or any control vector
//! of llama.cpp) are added at every position of the conversation but the first, and at every
//! generated token. With `--side-by-side` each turn is answered twice, without and with steering,
//! by one call of `generate`: the answers are two worlds, each in a conversation of its own, and
//! draw the same random numbers, so they differ by the steering alone.
//!
//! ```sh
//! bash tests/real/fetch.sh                                 # SmolLM2-135M-Instruct, 98 MB
//! model=~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf
//! cargo run --release --example chat -- --model $model
//! cargo run --release --example steering -- --model $model --save gloomy
//! cargo run --release --example chat -- --model $model --steer gloomy:0.2 --side-by-side
//! cargo run --release --example chat -- --model $model --prompt "Tell me about the sea."
//! ```
//!
//! Ctrl-D, /quit or Ctrl-C ends the conversation, /reset begins another one. A model without a chat
//! template, such as a bundled one, continues each line. A turn goes on from the cache of the one
//! before: of the conversation it reads only what is new.

#[allow(dead_code, reason = "shared with other examples")]
#[path = "../steering/applied.rs"]
mod applied;
#[allow(dead_code, reason = "shared with other examples")]
#[path = "../steering/chats.rs"]
mod chats;
mod screen;
mod steer;

use std::io::{self, IsTerminal};
use std::ops::Range;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use burn_align::engine::{CachedRow, Plan, WorldInput};
use burn_align::generate::{AtLimit, GenerateOptions, Sampling, generate};
use burn_align::interventions::AdditionIntervention;
use burn_align_models::{ChatMessage, Decoder, DecoderConfig, Pretrained, TokenBatch};
use clap::Parser;
use workbench::{BackendArgs, ModelArgs, complain, on_backend};

use applied::Push;
use screen::{Answers, Screen};
use steer::{Steer, steered};

/// Talks with a model, steered or not.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Add a direction: a folder written by the example `steering`, or a .gguf control vector, with
    /// a strength after a colon [default: 0.2 for a folder, 1 for a control vector]; may be given
    /// several times.
    #[arg(long, value_name = "FOLDER[:STRENGTH]")]
    steer: Vec<Steer>,
    /// Answer twice: without and with steering.
    #[arg(long, requires = "steer")]
    side_by_side: bool,
    /// The first message of the conversation [default: that of the model's template].
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Answer this, and exit.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    max_new_tokens: usize,
    /// Logits are divided by it; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f64,
    /// Keep the most likely tokens whose probabilities add up to this.
    #[arg(long)]
    top_p: Option<f64>,
    /// Keep tokens at least this many times as likely as the most likely one.
    #[arg(long)]
    min_p: Option<f64>,
    /// Makes tokens of the conversation less likely (above 1).
    #[arg(long, default_value_t = 1.1)]
    repetition_penalty: f64,
    /// Seed of the draws: the same seed gives the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| talk::<B>(&args, &device))
    })
}

/// One of those who answer.
struct Speaker<B: Backend> {
    /// What is printed before its answers.
    name: &'static str,
    /// How it is steered.
    pushes: Vec<Push<B>>,
    /// Its conversation.
    messages: Vec<ChatMessage>,
    /// The cache of what it has read and said.
    cached: Option<CachedRow<B>>,
}

fn talk<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and who answers.
    let Some(source) = &args.model.model else {
        bail!(
            "--model: expected a chat model, found none; `bash tests/real/fetch.sh` fetches \
             SmolLM2-135M-Instruct (98 MB) to \
             ~/.cache/burn-align-real/SmolLM2-135M-Instruct.Q4_1.gguf"
        );
    };
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(source, dtype, device)?;
    let tokenizer = loaded.tokenizer()?;
    let mut pushes = Vec::new();
    for steer in &args.steer {
        pushes.extend(steer.load(&loaded.model, device)?);
    }
    let speaker = |name: &'static str, pushes: Vec<Push<B>>| Speaker {
        name,
        pushes,
        messages: args.system.iter().map(ChatMessage::system).collect(),
        cached: None,
    };
    let mut speakers = match args.side_by_side {
        true => vec![
            speaker("base:    ", Vec::new()),
            speaker("steered: ", pushes),
        ],
        false => vec![speaker("", pushes)],
    };

    // 2. How answers are drawn, and where they end.
    let mut sampling = Sampling::greedy()
        .with_temperature(args.temperature)
        .with_repetition_penalty(args.repetition_penalty)
        .with_seed(args.seed);
    sampling.top_p = args.top_p;
    sampling.min_p = args.min_p;
    let options = GenerateOptions::new(args.max_new_tokens)
        .with_sampling(sampling)
        .with_stop_tokens(chats::end_tokens(tokenizer))
        .with_at_limit(AtLimit::Cut)
        .with_caches()
        .with_run(args.backend.run_options());

    // 3. Turn by turn.
    let mut screen = Screen::default();
    if let Some(prompt) = &args.prompt {
        return turn(prompt, &mut speakers, &loaded, &options, &mut screen);
    }
    let is_terminal = io::stdin().is_terminal();
    let said_first = speakers[0].messages.len();
    while !screen.is_gone() {
        if is_terminal {
            screen.write("> ")?;
        }
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        if read.context("standard input")? == 0 {
            if is_terminal {
                screen.write("\n")?;
            }
            break;
        }
        match line.trim() {
            "" => {}
            "/quit" => break,
            "/reset" => {
                for speaker in &mut speakers {
                    speaker.messages.truncate(said_first);
                    speaker.cached = None;
                }
            }
            said => match turn(said, &mut speakers, &loaded, &options, &mut screen) {
                Err(error) if is_terminal => complain!("error: {error:#}"),
                result => result?,
            },
        }
    }
    Ok(())
}

/// One turn: all speakers answer, in one call.
fn turn<B: Backend>(
    said: &str,
    speakers: &mut [Speaker<B>],
    loaded: &Pretrained<Decoder<B>, DecoderConfig>,
    options: &GenerateOptions,
    screen: &mut Screen,
) -> Result<()> {
    let tokenizer = loaded.tokenizer()?;
    let is_chat = chats::is_chat_model(tokenizer);
    let mut prompts = Vec::new();
    for speaker in &*speakers {
        prompts.push(match is_chat {
            true => {
                let mut messages = speaker.messages.clone();
                messages.push(ChatMessage::user(said));
                chats::conversation(tokenizer, &messages)?
            }
            false => tokenizer.encode(said)?,
        });
    }
    let names = speakers.iter().map(|speaker| speaker.name);
    let begun = names.zip(prompts.iter().map(Vec::as_slice));
    let mut answers = Answers::new(screen, tokenizer, begun, is_chat)?;
    let mut plan = Plan::<B>::new();
    let mut worlds = Vec::new();
    for (speaker, (input, computed)) in speakers.iter().zip(inputs(speakers, prompts)?) {
        let world = steered(&mut plan, input, computed, &speaker.pushes, 0);
        worlds.push(world);
    }
    let addition = [AdditionIntervention];
    let texts = generate(&loaded.model, &addition, &plan, &worlds, options, |token| {
        answers.add(&token)
    });
    answers.finish(texts.is_ok())?;
    for (speaker, row) in speakers.iter_mut().zip(texts?.rows) {
        speaker.messages.push(ChatMessage::user(said));
        let answer = chats::text(tokenizer, &row)?;
        speaker.messages.push(ChatMessage::assistant(answer.trim()));
        speaker.cached = row.cached;
    }
    Ok(())
}

/// What each speaker reads, with the positions that are computed: what is new since its last
/// answer, or everything, if one of them has none, since the inputs of a plan are all of one kind.
fn inputs<B: Backend>(
    speakers: &[Speaker<B>],
    prompts: Vec<Vec<u32>>,
) -> Result<Vec<(WorldInput<B>, Range<usize>)>> {
    let continued = speakers.iter().zip(&prompts).map(|(speaker, ids)| {
        let cached = speaker.cached.as_ref()?;
        let pairs = cached.tokens().iter().zip(ids);
        let alike = pairs.take_while(|(before, now)| before == now).count();
        // At least the last token is computed, for its logits.
        let known = cached.first(alike.min(ids.len().saturating_sub(1)))?;
        let computed = known.pos()..ids.len();
        Some((known.then(&ids[computed.clone()]), computed))
    });
    if let Some(continued) = continued.collect::<Option<Vec<_>>>() {
        return Ok(continued);
    }
    let mut whole = Vec::new();
    for ids in prompts {
        let computed = 0..ids.len();
        whole.push((WorldInput::Tokens(TokenBatch::new(vec![ids])?), computed));
    }
    Ok(whole)
}
