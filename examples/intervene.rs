//! Interventions for people who work from the shell or in another language.
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
//! - `config`: as in align-transformers, `null` for a plain forward pass;
//! - `base` and each of `sources`: `{"text": [...]}` or `{"input_ids": [[...]]}`;
//! - `unit_locations`: `{"sources->base": [source, base]}`, both sides
//!   `[representation][batch][unit]`; `null` for whole representations.
//!
//! The answer to `a.json` is `OUTDIR/a.safetensors` with f32 tensors `[batch, pos, vocab]`:
//! `logits`, and `original_logits` if asked for. Shorter examples are padded on the right; what
//! stands at their padding means nothing. A bad request gets one line on standard error and exit
//! status 2; nothing is written for it, and the others are served.

#![allow(clippy::print_stdout, reason = "an example talks to its reader")]
#![allow(clippy::print_stderr, reason = "an example talks to its reader")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align::engine::{LogitPositions, Plan};
use burn_align::front::{AlignableConfig, AlignableModel, UnitLocations};
use burn_align_models::LanguageModelConfig;
use burn_align_models::pretrained::Pretrained;
use burn_align_models::{
    FromPretrained, LanguageModel, LoadOptions, ModelSource, TokenBatch, Tokenizer,
};
use clap::Parser;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::{Value, json};
use workbench::predictions::{Prediction, probabilities, top_k};
use workbench::table::table;
use workbench::{BackendArgs, backends, on_backend};

/// Serves requests for interventions, each from a JSON file.
#[derive(Parser)]
struct Args {
    /// Folder for the answers.
    #[arg(long)]
    output: PathBuf,
    /// Print the K most probable next tokens of each example.
    #[arg(long, value_name = "K")]
    top: Option<usize>,
    /// Print them as JSON, one line for each example.
    #[arg(long, requires = "top")]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
    /// The requests.
    #[arg(required = true, value_name = "REQUEST.json")]
    requests: Vec<PathBuf>,
}

/// What a request file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    #[serde(default)]
    config: Option<AlignableConfig>,
    base: Input,
    #[serde(default)]
    sources: Vec<Input>,
    #[serde(default)]
    unit_locations: Value,
    #[serde(default)]
    subspaces: Value,
    #[serde(default)]
    interventions: Value,
    #[serde(default)]
    output_original_output: bool,
}

/// A batch of examples.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Input {
    Text(Vec<String>),
    InputIds(Vec<Vec<u32>>),
}

fn main() -> ExitCode {
    backends::answer_probe();
    let args = Args::parse();
    if let Err(error) = args.backend.check() {
        eprintln!("{error:#}");
        return ExitCode::from(2);
    }
    on_backend!(args.backend.backend, |B, device| serve::<B>(&args, &device))
}

/// Serves all requests.
fn serve<B: Backend>(args: &Args, device: &B::Device) -> ExitCode {
    let mut models = Models::<B>::default();
    let mut written = BTreeSet::new();
    let mut status = ExitCode::SUCCESS;
    for file in &args.requests {
        if let Err(error) = answer(args, file, &mut written, &mut models, device) {
            eprintln!("{}: {}", file.display(), one_line(&error));
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
    let stem = file.file_stem().context("expected a file name")?;
    let output = args.output.join(stem).with_extension("safetensors");
    ensure!(
        !written.contains(&output),
        "an earlier request of the same name has written {}; give it another name",
        output.display()
    );
    let text = fs::read_to_string(file)?;
    let request: Request = serde_json::from_str(&text)?;
    for (key, value) in [
        ("subspaces", &request.subspaces),
        ("interventions", &request.interventions),
    ] {
        ensure!(
            value.is_null(),
            "{key}: expected null, found {value}: VanillaIntervention swaps whole representations"
        );
    }

    let folder = file.parent().unwrap_or(Path::new(""));
    let options = LoadOptions::default().with_dtype(args.backend.dtype.dtype());
    let loaded = models.load(&request.model, folder, &options, device)?;
    let tokenizer = loaded.tokenizer.as_ref();
    let base = tokens(&request.base, tokenizer).context("base")?;
    let sources = request
        .sources
        .iter()
        .enumerate()
        .map(|(i, source)| tokens(source, tokenizer).with_context(|| format!("source {i}")));
    let sources: Vec<TokenBatch> = sources.collect::<Result<_>>()?;

    let tensors = compute(&request, &loaded.model, &base, &sources)?;
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    write(&tensors, &output).with_context(|| output.display().to_string())?;
    written.insert(output);
    if let Some(k) = args.top {
        print_top(args, file, k, tensors["logits"].clone(), &base, tokenizer)?;
    }
    Ok(())
}

fn compute<B: Backend>(
    request: &Request,
    model: &LanguageModel<B>,
    base: &TokenBatch,
    sources: &[TokenBatch],
) -> Result<BTreeMap<&'static str, Tensor<B, 3>>> {
    let mut tensors = BTreeMap::new();
    let Some(config) = &request.config else {
        ensure!(
            sources.is_empty(),
            "sources: expected none without a config"
        );
        let mut plan = Plan::new();
        let input = plan.tokens(base);
        let world = plan.world(input, []);
        let read = plan.read_logits(world, LogitPositions::All);
        let no_interventions: [burn_align::interventions::BuiltinIntervention; 0] = [];
        let logits = plan.run(model, &no_interventions)?.get(read);
        if request.output_original_output {
            tensors.insert("original_logits", logits.clone());
        }
        tensors.insert("logits", logits);
        return Ok(tensors);
    };
    let alignable = AlignableModel::new(config.clone(), model.clone())?;
    let locations = UnitLocations::try_from(&request.unit_locations)?;
    let output = match request.output_original_output {
        true => alignable.forward_with_original(base, sources, locations)?,
        false => alignable.forward(base, sources, locations)?,
    };
    tensors.insert("logits", output.counterfactual);
    if let Some(original) = output.original {
        tensors.insert("original_logits", original);
    }
    Ok(tensors)
}

fn tokens(input: &Input, tokenizer: Option<&Tokenizer>) -> Result<TokenBatch> {
    Ok(match (input, tokenizer) {
        (Input::InputIds(ids), _) => TokenBatch::new(ids.clone())?,
        (Input::Text(texts), Some(tokenizer)) => tokenizer.encode_batch(texts)?,
        (Input::Text(_), None) => bail!(
            "the model has no tokenizer.json: give input_ids instead of text, or add the file"
        ),
    })
}

/// Models by their source, so that each is loaded once.
struct Models<B: Backend> {
    loaded: BTreeMap<String, Pretrained<LanguageModel<B>, LanguageModelConfig>>,
}

impl<B: Backend> Default for Models<B> {
    fn default() -> Self {
        Self {
            loaded: BTreeMap::new(),
        }
    }
}

impl<B: Backend> Models<B> {
    /// The model that a request in `folder` names.
    fn load(
        &mut self,
        name: &str,
        folder: &Path,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<&Pretrained<LanguageModel<B>, LanguageModelConfig>> {
        let beside = folder.join(name);
        let source = match beside.is_dir() {
            true => ModelSource::from(beside),
            false => ModelSource::from(name),
        };
        let key = format!("{source:?}");
        if !self.loaded.contains_key(&key) {
            let model = LanguageModel::from_pretrained(source, options, device)?;
            // Requests mostly share a model; two large ones at once may not fit.
            self.loaded.clear();
            self.loaded.insert(key.clone(), model);
        }
        Ok(&self.loaded[&key])
    }
}

/// Writes all tensors in f32, or nothing.
fn write<B: Backend>(tensors: &BTreeMap<&str, Tensor<B, 3>>, file: &Path) -> Result<()> {
    let bytes = tensors.iter().map(|(name, tensor)| {
        let shape = tensor.dims().to_vec();
        let data = tensor.clone().cast(DType::F32).try_into_data()?;
        let values = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
        Ok((*name, shape, values))
    });
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = bytes.collect::<Result<_>>()?;
    let views = bytes.iter().map(|(name, shape, bytes)| {
        Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let unfinished = file.with_extension("safetensors.part");
    serialize_to_file(views, None, &unfinished)?;
    fs::rename(&unfinished, file)?;
    Ok(())
}

/// Prints the most probable tokens behind each example.
fn print_top<B: Backend>(
    args: &Args,
    file: &Path,
    k: usize,
    logits: Tensor<B, 3>,
    base: &TokenBatch,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let mut rows = table(["row", "rank", "id", "token", "probability"]);
    for (row, length) in base.lengths().into_iter().enumerate() {
        let last = logits.clone().narrow(0, row, 1).narrow(1, length - 1, 1);
        let next: Vec<Prediction> = top_k(&probabilities(last.squeeze_dim(1))?[0], k, tokenizer);
        if args.json {
            println!("{}", json!({"request": file, "row": row, "top": next}));
        }
        for (rank, prediction) in next.iter().enumerate() {
            rows.add_row([
                row.to_string(),
                (rank + 1).to_string(),
                prediction.id.to_string(),
                prediction.token.clone().unwrap_or_default(),
                format!("{:.6}", prediction.probability),
            ]);
        }
    }
    if !args.json {
        println!("{}\n{rows}", file.display());
    }
    Ok(())
}
