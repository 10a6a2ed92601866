//! Requests for interventions, as JSON: what the example `intervene` serves.

mod generation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{LogitPositions, NonFinite, Plan, RunOptions};
use burn_align::front::{
    AlignGenerateError, AlignableConfig, AlignableInputs, AlignableModel, AlignableTexts,
    InterveneAt, Source, Subspaces, UnitLocations,
};
use burn_align::generate::{GenerateError, GeneratedRow};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::pretrained::Pretrained;
use burn_align_models::{
    AlignableTransformer, Decoder, DecoderConfig, ModelInput, ModelSource, TokenBatch, Tokenizer,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::generation::Generated;
use self::generation::Generation;

/// A model used by requests.
pub type Model<B> = Pretrained<Decoder<B>, DecoderConfig>;

/// The contents of a request file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    model: String,
    config: Option<AlignableConfig>,
    base: Input,
    sources: Option<Vec<Option<Input>>>,
    #[serde(default)]
    unit_locations: Value,
    #[serde(default)]
    subspaces: Value,
    interventions: Option<PathBuf>,
    #[serde(default)]
    output_original_output: bool,
    generate: Option<Generation>,
}

/// A batch of examples.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Input {
    Text(Vec<String>),
    InputIds(Vec<Vec<u32>>),
}

impl Input {
    pub(crate) fn tokens(&self, tokenizer: Option<&Tokenizer>) -> Result<TokenBatch> {
        Ok(match (self, tokenizer) {
            (Self::InputIds(ids), _) => TokenBatch::new(ids.clone())?,
            (Self::Text(texts), Some(tokenizer)) => tokenizer.encode_batch(texts)?,
            (Self::Text(_), None) => bail!(
                "the model has no tokenizer: give input_ids instead of text, or add tokenizer.json"
            ),
        })
    }
}

/// The answer to a request.
pub struct Answer<B: Backend> {
    /// The base's tokens.
    pub base: TokenBatch,
    /// Tensors by name: `logits`, `original_logits` if requested, and `collected.k` for each
    /// collected representation, where k is its index in the configuration. If something is
    /// generated, `step_logits`, `original_step_logits` and `step_collected.k` as well, as far as
    /// requested, with zeros after the end of a text. All values are finite, except at padding.
    pub tensors: BTreeMap<String, Tensor<B, 3>>,
    /// Generated tokens by name: `generated`, and `original_generated` if requested.
    pub generated: BTreeMap<String, Generated>,
}

/// The tensors and the generated tokens of an answer.
struct Parts<B: Backend> {
    tensors: BTreeMap<String, Tensor<B, 3>>,
    generated: BTreeMap<String, Generated>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// If it is not a valid request. The error names the path of the wrong value.
    pub fn parse(json: &str) -> Result<Self> {
        let request: Self = from_json(json)?;
        if let Some(generation) = &request.generate {
            generation.check()?;
        }
        Ok(request)
    }

    /// The number of tokens of the longest example that is given by ids; `None` if none is.
    pub fn longest_input(&self) -> Option<usize> {
        let inputs = self.sources.iter().flatten().flatten();
        let lengths = inputs.chain([&self.base]).filter_map(|input| match input {
            Input::InputIds(ids) => ids.iter().map(Vec::len).max(),
            Input::Text(_) => None,
        });
        lengths.max()
    }

    /// The model named in a request in `folder`: a folder relative to it, or any other source.
    pub fn model(&self, folder: &Path) -> ModelSource {
        model_source(&self.model, folder)
    }

    /// Computes the answer to the request, in `folder`.
    ///
    /// # Errors
    /// If it does not fit the model, or if values stop being finite.
    pub fn answer<B: Backend>(
        &self,
        folder: &Path,
        model: &Model<B>,
        device: &B::Device,
    ) -> Result<Answer<B>> {
        let tokenizer = model.tokenizer.as_ref();
        let base = self.base.tokens(tokenizer).context("base")?;
        let Parts { tensors, generated } = match (&self.config, &self.interventions) {
            (None, None) => self.plain(model, &base, device)?,
            (Some(config), None) => {
                let alignable = AlignableModel::new(config.clone(), model.model.clone())?;
                self.intervene(&alignable, model, &base)?
            }
            (config, Some(saved)) => {
                let alignable = AlignableModel::load(folder.join(saved), model.model.clone());
                let alignable = alignable.context("interventions")?;
                let own = alignable.config();
                let difference = config.as_ref().and_then(|config| config.difference(own));
                ensure!(
                    difference.is_none(),
                    "config: expected none together with interventions, or one equivalent to that \
                     in {}; they differ in {}",
                    saved.display(),
                    difference.map(|it| it.to_string()).unwrap_or_default()
                );
                self.intervene(&alignable, model, &base)?
            }
        };
        Ok(Answer {
            base,
            tensors,
            generated,
        })
    }

    fn plain<B: Backend>(
        &self,
        model: &Model<B>,
        base: &TokenBatch,
        device: &B::Device,
    ) -> Result<Parts<B>> {
        let at = self.generate.as_ref().and_then(|it| it.at);
        for (key, absent) in [
            ("sources", self.sources.iter().flatten().next().is_none()),
            ("unit_locations", self.unit_locations.is_null()),
            ("subspaces", self.subspaces.is_null()),
            ("generate.at", at.is_none()),
        ] {
            ensure!(
                absent,
                "{key}: expected none without a config or interventions"
            );
        }
        base.check(model.model.dims())?;
        let find = || find_in_base(&model.model, base);
        let mut parts = Parts::new();
        match &self.generate {
            None => {
                let input = ModelInput::Tokens(base.to_tensor(device));
                let logits = model.model.forward(input);
                parts.tensors.insert("logits".to_owned(), logits);
            }
            Some(generation) => {
                let options = generation.options(model.tokenizer.as_ref())?;
                let rows = generation::plain(&model.model, base, &options);
                let rows = rows.map_err(|error| refusal(error, find))?;
                let longest = generation.longest(&model.model, base);
                parts.add_rows("", &rows, [base.pos(), longest]);
            }
        }
        check_finite(&parts.tensors, find)?;
        let Parts {
            mut tensors,
            mut generated,
        } = parts;
        if self.output_original_output {
            let same = |name: &str| format!("original_{name}");
            let again: Vec<_> = tensors.iter().map(|(k, v)| (same(k), v.clone())).collect();
            tensors.extend(again);
            let again: Vec<_> = generated
                .iter()
                .map(|(k, v)| (same(k), v.clone()))
                .collect();
            generated.extend(again);
        }
        Ok(Parts { tensors, generated })
    }

    fn intervene<B: Backend>(
        &self,
        alignable: &AlignableModel<B, Decoder<B>>,
        model: &Model<B>,
        base: &TokenBatch,
    ) -> Result<Parts<B>> {
        let tokenizer = model.tokenizer.as_ref();
        let sources = self.sources.iter().flatten().enumerate();
        let sources = sources.map(|(index, source)| {
            let Some(source) = source else {
                return Ok(Source::Absent);
            };
            let tokens = source.tokens(tokenizer);
            Ok(tokens.with_context(|| format!("source {index}"))?.into())
        });
        let mut inputs = AlignableInputs::new(base.clone())
            .with_sources(sources.collect::<Result<Vec<Source<B>>>>()?)
            .with_locations(UnitLocations::try_from(&self.unit_locations)?)
            .with_subspaces(Subspaces::try_from(&self.subspaces)?);
        inputs.output_original_output = self.output_original_output;

        let mut parts = Parts::new();
        let Some(generation) = &self.generate else {
            let output = alignable.forward_inputs(&inputs)?;
            let tensors = &mut parts.tensors;
            tensors.insert("logits".to_owned(), output.counterfactual);
            tensors.extend(output.original.map(|it| ("original_logits".to_owned(), it)));
            parts.add_collected(output.collected);
            check_finite(&parts.tensors, || Ok(alignable.find_non_finite(&inputs)?))?;
            return Ok(parts);
        };
        let at = generation.at();
        let find = || -> Result<Option<NonFinite>> {
            match at.is_in_prompt() {
                true => Ok(alignable.find_non_finite(&inputs)?),
                // Nothing acts on the prompt.
                false => find_in_base(&model.model, base),
            }
        };
        let options = generation.options(tokenizer)?;
        let texts = alignable.generate_inputs(&inputs, at, &options, |_token| {});
        let AlignableTexts {
            rows,
            original,
            collected,
            collected_at_steps,
            ..
        } = texts.map_err(|error| refusal(error, find))?;
        let longest = generation.longest(&model.model, base);
        parts.add_rows("", &rows, [base.pos(), longest]);
        if let Some(original) = original {
            parts.add_rows("original_", &original, [base.pos(), longest]);
        }
        parts.add_collected(collected);
        for (representation, values) in collected_at_steps {
            let steps = match at {
                InterveneAt::Step(_) => 1,
                _ => longest.saturating_sub(1),
            };
            if let Some(values) = generation::padded(values, steps) {
                let name = format!("step_collected.{representation}");
                parts.tensors.insert(name, values);
            }
        }
        check_finite(&parts.tensors, find)?;
        Ok(parts)
    }
}

impl<B: Backend> Parts<B> {
    fn new() -> Self {
        Self {
            tensors: BTreeMap::new(),
            generated: BTreeMap::new(),
        }
    }

    /// Adds what has been collected in the prompt.
    fn add_collected(&mut self, collected: BTreeMap<usize, Tensor<B, 3>>) {
        let collected = collected.into_iter();
        let named = collected.map(|(index, values)| (format!("collected.{index}"), values));
        self.tensors.extend(named);
    }

    /// Adds tokens and logits of all examples.
    ///
    /// - pos: positions of the longest prompt
    /// - longest: the most tokens that an example can have
    fn add_rows(&mut self, prefix: &str, rows: &[GeneratedRow<B>], [pos, longest]: [usize; 2]) {
        let tokens = Generated::new(rows, longest);
        self.generated.insert(format!("{prefix}generated"), tokens);
        let prompts: Vec<_> = rows.iter().map(|row| row.prompt_logits.clone()).collect();
        let steps: Vec<_> = rows.iter().map(|row| row.logits.clone()).collect();
        for (name, values, count) in [("logits", prompts, pos), ("step_logits", steps, longest)] {
            if let Some(values) = generation::padded(values, count) {
                self.tensors.insert(format!("{prefix}{name}"), values);
            }
        }
    }
}

/// Where the values of the base stop being finite, without interventions.
fn find_in_base<B: Backend>(model: &Decoder<B>, base: &TokenBatch) -> Result<Option<NonFinite>> {
    let mut plan = Plan::new();
    let input = plan.tokens(base);
    let world = plan.world(input, []);
    plan.read_logits(world, LogitPositions::All);
    let options = RunOptions::default();
    let found = plan.find_non_finite::<_, VanillaIntervention>(model, &[], &options)?;
    Ok(found.map(|found| found.with_run("the base")))
}

/// Why nothing was generated: where values stop being finite, if no token could be chosen for that.
///
/// - find: finds that place in the prompt
fn refusal(error: AlignGenerateError, find: impl Fn() -> Result<Option<NonFinite>>) -> Error {
    if matches!(
        error,
        AlignGenerateError::Generate(GenerateError::Sampling { .. })
    ) && let Err(error) = find().and_then(ensure_none)
    {
        return error;
    }
    match error {
        AlignGenerateError::Align(error) => error.into(),
        error => Error::from(error).context("generate"),
    }
}

/// Checks that all values are finite.
///
/// - find: finds where they stop being so; nowhere if only padding is not finite
fn check_finite<B: Backend>(
    tensors: &BTreeMap<String, Tensor<B, 3>>,
    find: impl Fn() -> Result<Option<NonFinite>>,
) -> Result<()> {
    for tensor in tensors.values() {
        if !is_finite(tensor)? {
            return ensure_none(find()?);
        }
    }
    Ok(())
}

/// Whether all elements are finite.
fn is_finite<B: Backend>(tensor: &Tensor<B, 3>) -> Result<bool> {
    let data = tensor.clone().try_into_data()?;
    Ok(data.iter::<f32>().all(f32::is_finite))
}

fn ensure_none(found: Option<NonFinite>) -> Result<()> {
    match found {
        Some(found) => bail!(found.to_string()),
        None => Ok(()),
    }
}

/// A model that a request in `folder` names: a folder relative to it, or any other source.
pub(crate) fn model_source(name: &str, folder: &Path) -> ModelSource {
    let beside = folder.join(name);
    match beside.exists() {
        true => ModelSource::from(beside),
        false => ModelSource::from(name),
    }
}

/// Reads JSON. An error begins with the path of the wrong value, such as
/// `config.alignable_representations[1].alignable_layer`.
pub(crate) fn from_json<T: DeserializeOwned>(json: &str) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(in_words)?;
    deserializer.end()?;
    Ok(value)
}

/// An error that says which numbers are expected, instead of Rust's names for them.
fn in_words(error: serde_path_to_error::Error<serde_json::Error>) -> Error {
    let words = "expected a whole number that is at least 0";
    let text = error.to_string();
    anyhow!(
        text.replace("expected usize", words)
            .replace("expected u64", words)
    )
}
