//! When does the answer appear, and which parts of the model write it?
//!
//! The logit lens (nostalgebraist 2020) reads the residual stream before the first layer and after
//! each layer as if it were the last one. Direct logit attribution (Elhage et al. 2021, "A
//! Mathematical Framework for Transformer Circuits") then takes the answer's lead over the second
//! best token apart into what the embedding, each head, each MLP and each bias has added to it; the
//! parts sum to the lead exactly.
//!
//! ```sh
//! cargo run --release --example logit_lens                  # the bundled model, seconds
//! cargo run --release --example logit_lens -- --model gpt2 --prompt "The Eiffel Tower is in"
//! cargo run --release --example logit_lens -- --plot lens.svg --attention head.svg
//! cargo run --release --example logit_lens -- --lens FOLDER # a tuned lens, from TunedLens::save
//! ```
//!
//! Prints the most probable token at each position after each layer, and the largest parts of the
//! answer's lead. With `--attention`, it draws where a head looks: the one that adds most to the
//! lead, or that of `--head`. It checks its own claims: the parts sum to the lead, and with the
//! default question the model says Madrid and its embedding does not.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_align::engine::LogitPositions;
use burn_align::methods::Grid;
use burn_align::methods::lens::{
    LogitPart, LogitTarget, TunedLens, attention_patterns, direct_logits, logit_lens, stream_sites,
    tuned_lens,
};
use burn_align_models::{Decoder, Site};
use clap::Parser;
use workbench::plot::{heat_map, picture_file};
use workbench::table::{align_numbers, table};
use workbench::{BackendArgs, ModelArgs, on_backend, out};

const MODEL: &str = "bundled:capitals";
const PROMPT: &str = "The capital of Spain is";

/// Reads the residual stream after each layer, and takes the answer apart.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt.
    #[arg(long, default_value = PROMPT)]
    prompt: String,
    /// Folder of a tuned lens for this model, in place of the logit lens.
    #[arg(long, value_name = "FOLDER")]
    lens: Option<PathBuf>,
    /// Number of parts of the answer's lead to print.
    #[arg(long, default_value_t = 10)]
    parts: usize,
    /// Draw into this file (SVG or PNG) how probable the model's final prediction at each position
    /// is after each layer.
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    plot: Option<PathBuf>,
    /// Draw the attention pattern of a head into this file (SVG or PNG): a row for each token, and
    /// how much of each earlier token the head takes.
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    attention: Option<PathBuf>,
    /// The head to draw, in place of the one that adds most to the answer's lead.
    #[arg(long, value_name = "LAYER.HEAD", value_parser = head, requires = "attention")]
    head: Option<(usize, usize)>,
    #[command(flatten)]
    backend: BackendArgs,
}

/// Reads a head from the command line.
fn head(text: &str) -> Result<(usize, usize)> {
    let Some((layer, head)) = text.split_once('.') else {
        bail!("expected a layer and a head, such as 0.1");
    };
    Ok((layer.parse()?, head.parse()?))
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| read::<B>(&args, &device))
    })
}

fn read<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    // 1. The model and the prompt.
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let (tokenizer, model) = (loaded.tokenizer()?, &loaded.model);
    let tokens = tokenizer.encode_batch([&args.prompt])?;
    let words = tokenizer.token_marks(&tokens.ids()[0]);
    let options = args.backend.run_options();

    // 2. What the model predicts at each position, and in the same pass what it would after each
    //    layer: the most probable tokens, and the probability of the final one.
    let all = LogitPositions::All;
    let mut finally = Vec::new();
    let mut read = |_site: Site, logits: Tensor<B, 3>| {
        let best = tokenizer.top_tokens(logits.clone(), 2);
        if finally.is_empty() {
            // The model's own logits come first.
            let ids = best.iter().map(|best| best.first().map_or(0, |it| it.id));
            finally = ids.collect::<Vec<u32>>();
        }
        (best, probabilities(logits, &finally))
    };
    let own = [Site::FinalNorm];
    let (sites, mut rows) = match &args.lens {
        None => {
            let sites = stream_sites(model);
            let both = [&own[..], &sites].concat();
            let rows = logit_lens(model, tokens.clone(), &both, &all, &options, read)?;
            (sites, rows)
        }
        Some(folder) => {
            let lens = TunedLens::<B>::load(folder, device)?;
            let sites = lens.sites().to_vec();
            let mut rows = logit_lens(model, tokens.clone(), &own, &all, &options, &mut read)?;
            let input = tokens.clone();
            let others = tuned_lens(model, &lens, input, &sites, &all, &options, read)?;
            rows.extend(others);
            (sites, rows)
        }
    };
    let (predicted, _of_itself) = rows.remove(0);
    let streams = rows;
    ensure!(
        predicted.iter().all(|best| best.len() == 2),
        "the logits are not finite, or the vocabulary has a single token"
    );

    // 3. A table of them.
    let labels: Vec<String> = sites.iter().map(Site::to_string).collect();
    let mut report = table([String::new()].into_iter().chain(words.iter().cloned()));
    for (label, (best, _of_final)) in labels.iter().zip(&streams) {
        let cells = best.iter().map(|best| match best.first() {
            Some(best) => format!("{} {:.2}", best.marks, best.probability),
            None => "not finite".to_owned(),
        });
        report.add_row([label.clone()].into_iter().chain(cells));
    }
    let finally = predicted.iter().map(|best| &best[0]);
    let finally = finally.map(|best| format!("{} {:.2}", best.marks, best.probability));
    report.add_row(["logits".to_owned()].into_iter().chain(finally));
    out!("\n{}\n\n{report}", args.prompt)?;

    // 4. The picture.
    if let Some(file) = &args.plot {
        let columns = words.iter().zip(&predicted);
        let columns = columns.map(|(word, next)| format!("{word} → {}", next[0].marks));
        let grid = Grid {
            rows: labels,
            columns: columns.collect(),
            values: streams
                .iter()
                .map(|(_, of_final)| of_final.clone())
                .collect(),
        };
        let axes = ["token → prediction", "residual stream"];
        heat_map(file, "P(final prediction)", axes, &grid)?;
    }

    // 5. What writes the answer: the lead over the second best token, as a sum.
    let [answer, second] = [0, 1].map(|place| &predicted[words.len() - 1][place]);
    let target = LogitTarget::Difference(vec![answer.id], vec![second.id]);
    let end = LogitPositions::Last;
    let found = direct_logits(model, tokens.clone(), &end, &target, &options)?;
    let lead = found.total[0][0];
    let mut rows: Vec<(String, f64)> = found
        .rows
        .iter()
        .map(|row| (row.part.to_string(), row.values[0][0]))
        .collect();
    let sum: f64 = rows.iter().map(|(_, value)| value).sum();
    rows.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let mut report = table(["part", "logits"]);
    for (part, value) in rows.iter().take(args.parts) {
        report.add_row([part.clone(), format!("{value:+.3}")]);
    }
    align_numbers(&mut report);
    let rest: f64 = rows.iter().skip(args.parts).map(|(_, value)| value).sum();
    out!(
        "\n`{}` leads `{}` by {lead:.3} logits{}; the largest of {} parts, the others {rest:+.3}:\n\
         {report}",
        answer.marks,
        second.marks,
        match found.soft_cap {
            Some(cap) => format!(" (before the soft cap at {cap})"),
            None => String::new(),
        },
        rows.len(),
    )?;

    // 6. Where a head looks.
    if let Some(file) = &args.attention {
        let parts = found.rows.iter().filter_map(|row| match row.part {
            LogitPart::Head { layer, head } => Some(((layer, head), row.values[0][0])),
            _ => None,
        });
        let largest = parts
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(head, _)| head);
        let (layer, head) = args
            .head
            .or(largest)
            .context("the model's heads are not told apart")?;
        let pattern = attention_patterns(model, tokens, &[(layer, head)], &options)?;
        let grid = pattern.first().and_then(|pattern| pattern.grid(0, &words));
        let grid = grid.context("expected a pattern with as many positions as tokens")?;
        let title = format!("attention of head {layer}.{head}");
        heat_map(file, &title, ["attended token", "token"], &grid)?;
    }

    // Check the claims made at the top.
    // In bf16, each sum in the residual stream is rounded.
    ensure!(
        dtype != DType::F32 || (sum - lead).abs() <= 1e-3 * lead.abs().max(1.0),
        "the parts sum to {sum}, the lead is {lead}"
    );
    let is_default = args.model.source(MODEL) == MODEL && args.prompt == PROMPT;
    if is_default && args.lens.is_none() {
        let (best, _of_final) = &streams[0];
        let first = &best[words.len() - 1][0];
        ensure!(answer.text == "Madrid", "the model predicts {answer}");
        ensure!(first.text != "Madrid", "the embedding predicts {first}");
    }
    Ok(())
}

/// The probability of one token at each position.
///
/// # Shapes
/// - logits: `[1, pos, vocab]`
fn probabilities<B: Backend>(logits: Tensor<B, 3>, ids: &[u32]) -> Vec<f64> {
    let index: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let index = TensorData::new(index, [1, ids.len(), 1]);
    let index = Tensor::<B, 3, Int>::from_data(index, &logits.device());
    let all = softmax(logits.cast(DType::F32), 2);
    let chosen = all.gather(2, index).into_data(); // [1, pos, 1]
    chosen.iter::<f64>().collect()
}
