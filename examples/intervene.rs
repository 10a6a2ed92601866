//! Interventions from the shell or from another language.
//!
//! ```sh
//! cargo run --release --example intervene -- --output OUTDIR a.json b.json
//! ```
//!
//! Each request is a JSON file:
//!
//! ```json
//! {"model": "bundled:capitals",
//!  "config": {"alignable_representations": [
//!      {"alignable_layer": 2, "alignable_representation_type": "block_output"}]},
//!  "base": {"text": ["The capital of Spain is"]},
//!  "sources": [{"text": ["The capital of Italy is"]}],
//!  "unit_locations": {"sources->base": [[[[4]]], [[[4]]]]},
//!  "output_original_output": true}
//! ```
//!
//! - `model`: a Hugging Face folder, absolute or relative to the request file, a hub id, or
//!   `bundled:capitals`;
//! - `config`: as in align-transformers, `null` for a plain forward pass; interventions without
//!   parameters are `VanillaIntervention`, `AdditionIntervention`, `SubtractionIntervention`,
//!   `ZeroIntervention`, `SkipIntervention` and `CollectIntervention`;
//! - `interventions`: a folder of trained interventions, absolute or relative to the request file,
//!   as written by `AlignableModel::save_interventions` or pyvene's `save`. It has its own
//!   `config`: leave out that of the request, or give an equivalent one;
//! - `base` and each of `sources`: `{"text": [...]}` or `{"input_ids": [[...]]}`;
//! - `unit_locations`: `{"sources->base": [source, base]}`, both sides
//!   `[representation][batch][unit]`; `null` for whole representations;
//! - `subspaces`: `[representation][batch][id]`, ids into `subspace_partition` or features;
//! - `generate`: continues the base, see below.
//!
//! The answer to `a.json` is `OUTDIR/a.safetensors` with f32 tensors `[batch, pos, vocab]`:
//! `logits`, `original_logits` if requested, and `collected.k`, `[batch, unit, d_site]`, for each
//! collected representation, where k is its index in the configuration, from 0. Shorter examples
//! are padded on the right; values at padding are meaningless. A bad request gets one line on
//! standard error and exit status 2; nothing is written for it, and the others are served. The same
//! goes for a request whose values stop being finite, as happens with some models in f16: the line
//! says in which layer, and what to do.
//!
//! With `generate` the base is continued:
//!
//! ```json
//! "generate": {"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 1,
//!              "stop": ["\n"], "at": "all", "logits": true}
//! ```
//!
//! - `max_new_tokens`: the most tokens of an example;
//! - `temperature`, 0 for the most likely token, which is the default; `top_k`, `top_p`, `min_p`,
//!   `repetition_penalty`, `seed`: how tokens are drawn. Each example has its own random numbers;
//! - `stop`, `stop_tokens`: texts and token ids after which an example ends;
//! - `at_limit`: `"refuse"` (default) or `"cut"` what would be longer than the model reads;
//! - `at`: where the interventions act. `"prompt"` (default): at the `unit_locations`. `"steps"`:
//!   at each generated token, and not in the prompt. `"all"`: at the `unit_locations`, or
//!   everywhere in the prompt if they are `null`, and at each generated token. `{"step": k}`: at
//!   generated token k alone, from 0. The last token is chosen, but not computed, so nothing acts
//!   there. With `"steps"` and `{"step": k}` the base's location is position 0, the only one of a
//!   step, or `unit_locations` are `null`. Each representation takes one position of its source;
//! - `logits`: whether to write the logits from which the tokens were chosen.
//!
//! The answer then also has `generated`, i64 `[batch, n]` with -1 after the end of an example,
//! where n is `max_new_tokens`, or with `"cut"` what the shortest example has left of the model, if
//! that is less; `step_logits`, `[batch, n, vocab]`, if requested; `original_generated` and
//! `original_step_logits` if `output_original_output` is true; and `step_collected.k`,
//! `[batch, n-1, d_site]` (`{"step": k}`: `[batch, 1, d_site]`), for each representation collected
//! at steps, if a step was computed. f32 tensors have zeros after the end of an example. `logits`
//! and `collected.k` are those of the prompt, in which nothing acts with `"steps"` and
//! `{"step": k}`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, backend::Backend};
use burn_align_models::{ModelSource, Tokenizer, top_tokens};
use clap::Parser;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use workbench::requests::{Answer, Model, Request};
use workbench::table::table;
use workbench::{BackendArgs, LoadArgs, backends, complain, on_backend, out};

/// Serves requests for interventions, each from a JSON file.
#[derive(Parser)]
struct Args {
    /// Folder for the answers.
    #[arg(long)]
    output: PathBuf,
    /// Print the K most probable next tokens of each example, and what was generated.
    #[arg(long, value_name = "K")]
    top: Option<usize>,
    /// Print them as JSON, one line for each example.
    #[arg(long, requires = "top")]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// The requests.
    #[arg(required = true, value_name = "REQUEST.json")]
    requests: Vec<PathBuf>,
}

fn main() -> ExitCode {
    backends::answer_probe();
    let args = Args::parse();
    if let Err(error) = args.backend.check() {
        complain!("{error:#}");
        return ExitCode::from(2);
    }
    on_backend!(args.backend.backend, |B, device| serve::<B>(&args, &device))
}

/// Serves all requests.
fn serve<B: Backend>(args: &Args, device: &B::Device) -> ExitCode {
    let mut models = Models::<B> { last: None };
    let mut written = BTreeSet::new();
    let mut status = ExitCode::SUCCESS;
    for file in &args.requests {
        if let Err(error) = answer(args, file, &mut written, &mut models, device) {
            complain!("{}: {}", file.display(), one_line(&error));
            status = ExitCode::from(2);
        }
    }
    status
}

/// An error and its causes, on one line.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn answer<B: Backend>(
    args: &Args,
    file: &Path,
    written: &mut BTreeSet<PathBuf>,
    models: &mut Models<B>,
    device: &B::Device,
) -> Result<()> {
    // A name may contain dots.
    let mut name = file.file_stem().context("expected a file name")?.to_owned();
    name.push(".safetensors");
    let output = args.output.join(name);
    ensure!(
        !written.contains(&output),
        "an earlier request with the same name has written {}; rename this one",
        output.display()
    );
    let request = Request::parse(&fs::read_to_string(file)?)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let source = request.model(folder);
    let model = models.load(source, args, device)?;
    let answer = request.answer(folder, model, device)?;

    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    write(&answer, &output).with_context(|| output.display().to_string())?;
    written.insert(output);
    if let Some(k) = args.top {
        print_top(args, file, k, &answer, model.tokenizer.as_ref())?;
    }
    if args.top.is_some() && !answer.generated.is_empty() {
        print_generated(args, file, &answer, model.tokenizer.as_ref())?;
    }
    Ok(())
}

/// The model loaded last, so that requests that share one load it once.
struct Models<B: Backend> {
    last: Option<(ModelSource, Model<B>)>,
}

impl<B: Backend> Models<B> {
    fn load(&mut self, source: ModelSource, args: &Args, device: &B::Device) -> Result<&Model<B>> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != source) {
            // Two large models may not fit at once.
            self.last = None;
            let dtype = args.backend.dtype.dtype();
            let model = args.load.load(source.clone(), dtype, device)?;
            self.last = Some((source, model));
        }
        let (_, model) = self.last.as_ref().expect("just loaded");
        Ok(model)
    }
}

/// The name of a tensor, its type, its shape, and its values as bytes.
type Written<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

/// Writes all tensors, in f32 and tokens in i64, or nothing.
fn write<B: Backend>(answer: &Answer<B>, file: &Path) -> Result<()> {
    let floats = answer.tensors.iter().map(|(name, tensor)| {
        let shape = tensor.dims().to_vec();
        let data = tensor.clone().cast(DType::F32).try_into_data()?;
        let values = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        Ok((name.as_str(), Dtype::F32, shape, values))
    });
    let tokens = answer.generated.iter().map(|(name, generated)| {
        let shape = vec![generated.rows.len(), generated.longest];
        let values = generated.padded();
        let values = values.into_iter().flat_map(i64::to_le_bytes).collect();
        Ok((name.as_str(), Dtype::I64, shape, values))
    });
    let bytes: Vec<Written<'_>> = floats.chain(tokens).collect::<Result<_>>()?;
    let views = bytes.iter().map(|(name, dtype, shape, bytes)| {
        Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let unfinished = file.with_extension("safetensors.part");
    let written = serialize_to_file(views, None, &unfinished)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(fs::rename(&unfinished, file)?));
    if written.is_err() {
        // The first error is the one to report; the file may not exist.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Prints the most probable tokens after each example.
fn print_top<B: Backend>(
    args: &Args,
    file: &Path,
    k: usize,
    answer: &Answer<B>,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let logits = &answer.tensors["logits"];
    let mut rows = table(["row", "rank", "id", "token", "probability"]);
    for (row, length) in answer.base.lengths().into_iter().enumerate() {
        let last = logits.clone().narrow(0, row, 1).narrow(1, length - 1, 1);
        let next = top_tokens(last, k).remove(0);
        let text = |id| tokenizer.and_then(|it| it.token_strings(&[id]).pop());
        let marks = |id| tokenizer.and_then(|it| it.token_marks(&[id]).pop());
        if args.json {
            let top = next.iter().map(|(id, probability)| {
                json!({"id": id, "token": text(*id), "probability": probability})
            });
            let top: Vec<_> = top.collect();
            out!("{}", json!({"request": file, "row": row, "top": top}))?;
        }
        for (rank, (id, probability)) in next.into_iter().enumerate() {
            rows.add_row([
                row.to_string(),
                (rank + 1).to_string(),
                id.to_string(),
                marks(id).unwrap_or_default(),
                format!("{probability:.6}"),
            ]);
        }
    }
    if !args.json {
        out!("{}\n{rows}", file.display())?;
    }
    Ok(())
}

/// Prints what was generated: text as it continues the prompt.
fn print_generated<B: Backend>(
    args: &Args,
    file: &Path,
    answer: &Answer<B>,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let mut rows = table(["tensor", "row", "tokens", "text"]);
    for (name, generated) in &answer.generated {
        let texts = tokenizer.map(|it| generated.texts(it, &answer.base));
        let texts = texts.transpose()?;
        for (row, ids) in generated.rows.iter().enumerate() {
            let text = texts.as_ref().map(|texts| &texts[row]);
            if args.json {
                let shown =
                    json!({"request": file, "row": row, "tensor": name, "ids": ids, "text": text});
                out!("{shown}")?;
            }
            let text = match text {
                Some(text) => format!("{text:?}"),
                None => format!("{ids:?}"),
            };
            rows.add_row([name.clone(), row.to_string(), ids.len().to_string(), text]);
        }
    }
    if !args.json {
        out!("{}\n{rows}", file.display())?;
    }
    Ok(())
}
