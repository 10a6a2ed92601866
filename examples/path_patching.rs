//! Which heads look up a name, and what do they pass to each other?
//!
//! The bundled model `induction-gpt2` reads a queue of names, then one of them again, and predicts
//! who comes after it. Path patching (Wang et al. 2022, arXiv 2211.00593, §3; Goldowsky-Dill et al.
//! 2023, arXiv 2304.05969) shows how: between two queues in which the name asked for has swapped
//! places with another one, it patches what one head passes to another on the direct path, and
//! nothing else.
//!
//! ```sh
//! cargo run --release --example path_patching                 # seconds
//! cargo run --release --example path_patching -- --graph paths.svg --plot direct.svg
//! ```
//!
//! 1. Every head's direct effect on the difference of the two answers' logits: the heads that
//!    predict the answer.
//! 2. What these heads' queries, keys and values read from every earlier head.
//! 3. The paths found, patched together: their share of the whole difference.
//!
//! It ends with a check of its own claim: the four heads of layer 1 predict the answer (together
//! more than 85 % of the difference, directly); of all heads, only 0.3 tells them where it is, and
//! only through their keys; and the four paths from 0.3 through these keys carry more than 75 %.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::{
    Mlps, PathGrid, Receiver, ReceiverInput, head_effects, logit_differences, patch_paths,
};
use burn_align::models::{Decoder, FromPretrained, LoadOptions, TokenBatch, Tokenizer};
use burn_align::paths::{HeadInput, Hop, Node, Path, Stream};
use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;
use workbench::plot::{diagram_file, heat_map, picture_file, write_diagram};
use workbench::queues::{NAMES, Queue};
use workbench::table::{heat_map_text, table};
use workbench::words::END;
use workbench::{BackendArgs, on_backend, out};

/// Finds the heads that look up a name.
#[derive(Parser)]
struct Args {
    /// Number of pairs of queues.
    #[arg(long, default_value_t = 64)]
    pairs: usize,
    /// Seed of the queues.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Picture of the direct effects, .svg or .png.
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    plot: Option<PathBuf>,
    /// Picture of the paths found, .svg, .png or .dot.
    #[arg(long, value_name = "FILE", value_parser = diagram_file)]
    graph: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| patch::<B>(&args, &device))
    })
}

fn patch<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model, and pairs of queues.
    let options = LoadOptions::default().with_dtype(args.backend.dtype.dtype());
    let loaded = Decoder::<B>::from_pretrained("bundled:induction", &options, device)?;
    let model = &loaded.model;
    let pairs = Pairs::draw(loaded.tokenizer()?, args.pairs, args.seed)?;
    let inputs = [&pairs.base, &pairs.source];
    let metric = |logits: Tensor<B, 2>| logit_differences(logits, &pairs.answers, &pairs.others);
    let run = RunOptions::default();
    let effects =
        |receivers: &[Receiver]| head_effects(model, inputs, receivers, Mlps::Frozen, metric, &run);

    // 2. Every head's direct effect on the logits.
    let direct = effects(&[ReceiverInput::Logits.into()])?;
    out!(
        "base:   {}\nsource: {}\nlogit difference: base {:.2}, source {:.2}\n\n\
         Direct effect of each head on the logits, as a share of that (layers × heads)",
        pairs.first[0],
        pairs.first[1],
        direct.base,
        direct.source,
    )?;
    let shares = direct.shares();
    out!("{}", heat_map_text(&shares))?;
    if let Some(file) = &args.plot {
        let title = "direct effect on the logit difference, share";
        heat_map(file, title, ["head", "layer"], &shares)?;
    }
    let namers = at_least(&direct, 0.05);

    // 3. What these heads read, by each of their inputs.
    let inputs_of = |input: HeadInput| -> Vec<Receiver> {
        let receivers = namers.iter().map(|&(layer, head)| match input {
            HeadInput::Query => ReceiverInput::Query { layer, head },
            HeadInput::Key => ReceiverInput::Key {
                layer,
                kv_head: head,
            },
            HeadInput::Value => ReceiverInput::Value {
                layer,
                kv_head: head,
            },
        });
        receivers.map(Receiver::from).collect()
    };
    let mut heard = Vec::new();
    for (input, name) in HeadInput::ALL
        .into_iter()
        .zip(["queries", "keys", "values"])
    {
        let grid = effects(&inputs_of(input))?;
        out!("\nEffect of each head through the {name} of the heads found")?;
        out!("{}", heat_map_text(&grid.shares()))?;
        heard.push(grid);
    }
    let tellers = at_least(&heard[1], 0.05);

    // 4. The paths found, together and in part.
    let through = |tellers: &[(usize, usize)]| -> Vec<Path> {
        let pairs = tellers.iter().flat_map(|teller| {
            let namers = namers.iter();
            namers.map(move |namer| (*teller, *namer))
        });
        let paths = pairs.map(|((from_layer, from), (layer, head))| {
            let start = Node::Head {
                layer: from_layer,
                head: from,
            };
            let input = HeadInput::Key;
            Path::new(start).through(Hop::Head { layer, head, input })
        });
        paths.collect()
    };
    let names = |heads: &[(usize, usize)]| {
        let names: Vec<String> = heads.iter().map(name_of).collect();
        names.join(", ")
    };
    let starts = namers.iter();
    let starts = starts.map(|&(layer, head)| Path::new(Node::Head { layer, head }));
    let named = [
        (names(&namers), "", starts.collect()),
        (
            names(&tellers),
            "keys of the heads above",
            through(&tellers),
        ),
    ];
    let sets: Vec<Vec<Path>> = named.iter().map(|(.., paths)| paths.clone()).collect();
    let together = patch_paths(model, inputs, &sets, metric, &run)?;
    let mut report = table(["from", "through", "paths", "share"]);
    for ((from, through, paths), share) in named.iter().zip(together.shares()) {
        let (count, share) = (paths.len().to_string(), format!("{share:.3}"));
        report.add_row([from.clone(), (*through).to_owned(), count, share]);
    }
    out!("\nPaths to the logits\n{report}")?;
    if let Some(file) = &args.graph {
        let tree = Stream::of_paths(sets.last().context("no paths")?, 0, 1);
        write_diagram(file, &tree.diagram(&["base", "source"]))?;
    }

    // 5. Check the claims made at the top.
    ensure!(
        direct.base > 5.0 && direct.source < -5.0,
        "the model does not know the answers"
    );
    let layer_1: Vec<(usize, usize)> = (0..4).map(|head| (1, head)).collect();
    ensure!(namers == layer_1, "the answer is predicted by {namers:?}");
    ensure!(tellers == [(0, 3)], "their keys read from {tellers:?}");
    for grid in [&heard[0], &heard[2]] {
        let heads = at_least(grid, 0.1);
        ensure!(heads.is_empty(), "queries or values read from {heads:?}");
    }
    let shares = together.shares();
    ensure!(
        shares[0] > 0.85 && shares[1] > 0.75,
        "the paths carry {shares:.3?} of the difference"
    );
    Ok(())
}

/// Heads with at least this share of the difference.
fn at_least(grid: &PathGrid, share: f64) -> Vec<(usize, usize)> {
    let shares = grid.shares();
    let rows = shares.values.iter().enumerate();
    let heads = rows.flat_map(|(layer, row)| {
        let heads = row.iter().enumerate();
        let heads = heads.filter(move |(_, own)| **own >= share);
        heads.map(move |(head, _)| (layer, head))
    });
    heads.collect()
}

/// `0.3`
fn name_of(&(layer, head): &(usize, usize)) -> String {
    Node::Head { layer, head }.to_string()
}

/// Pairs of queues with the same question, between which two names have swapped places.
struct Pairs {
    base: TokenBatch,
    source: TokenBatch,
    /// Who comes after the name asked for in the base, and in the source.
    answers: Vec<u32>,
    others: Vec<u32>,
    /// The first pair, as text.
    first: [String; 2],
}

impl Pairs {
    fn draw(tokenizer: &Tokenizer, count: usize, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut texts: [Vec<String>; 2] = Default::default();
        let (mut answers, mut others) = (Vec::new(), Vec::new());
        let queues = std::iter::repeat_with(|| Queue::draw(2, &mut rng));
        for queue in queues.filter(|queue| queue.names.len() == 12).take(count) {
            let [asked, other] = [queue.asked[0], queue.asked[1]];
            let question = NAMES[queue.names[asked]];
            let mut swapped = queue.names.clone();
            swapped.swap(asked, other);
            for (text, names) in texts.iter_mut().zip([&queue.names, &swapped]) {
                let names: Vec<&str> = names.iter().map(|name| NAMES[*name]).collect();
                text.push(format!("{END} {} {question}", names.join(" ")));
            }
            answers.push(tokenizer.single_token(NAMES[queue.names[asked + 1]])?);
            others.push(tokenizer.single_token(NAMES[queue.names[other + 1]])?);
        }
        let [base, source] = &texts;
        Ok(Self {
            base: tokenizer.encode_batch(base)?,
            source: tokenizer.encode_batch(source)?,
            answers,
            others,
            first: [base, source].map(|texts| texts[0].clone()),
        })
    }
}
