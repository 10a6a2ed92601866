//! Requests for interventions, as JSON: what the example `intervene` serves.

mod generation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{LogitPositions, NonFinite, Plan, RunOptions};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableTexts, InterveneAt, Source,
    Subspaces, UnitLocations,
};
use burn_align::generate::GeneratedRow;
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
enum Input {
    Text(Vec<String>),
    InputIds(Vec<Vec<u32>>),
}

impl Input {
    fn tokens(&self, tokenizer: Option<&Tokenizer>) -> Result<TokenBatch> {
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
        let beside = folder.join(&self.model);
        match beside.exists() {
            true => ModelSource::from(beside),
            false => ModelSource::from(self.model.as_str()),
        }
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
        let logits = plain_logits(&model.model, base, device)?;
        let mut tensors = BTreeMap::from([("logits".to_owned(), logits)]);
        let mut generated = BTreeMap::new();
        if let Some(generation) = &self.generate {
            let rows = generation.plain(model, base)?;
            let longest = generation.longest(&model.model, base);
            generated.insert("generated".to_owned(), Generated::new(&rows, longest));
            let logits = generation.step_logits(&rows, longest);
            tensors.extend(logits.map(|logits| ("step_logits".to_owned(), logits)));
        }
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

        let generation = self.generate.as_ref();
        let at = generation.map_or(InterveneAt::Prompt, Generation::at);
        let mut tensors = match at.is_in_prompt() {
            true => prompt_tensors(alignable, &inputs)?,
            // Nothing acts on the prompt.
            false => {
                let device = model.model.device();
                let logits = plain_logits(&model.model, base, &device)?;
                let original = self.output_original_output.then(|| logits.clone());
                let original = original.map(|logits| ("original_logits".to_owned(), logits));
                let logits = [("logits".to_owned(), logits)];
                logits.into_iter().chain(original).collect()
            }
        };
        let mut generated = BTreeMap::new();
        if let Some(generation) = generation {
            let options = generation.options(tokenizer)?;
            let texts = alignable.generate_inputs(&inputs, at, &options, |_token| {});
            let texts = texts.context("generate")?;
            let longest = generation.longest(&model.model, base);
            let AlignableTexts {
                rows,
                original,
                collected_at_steps,
                ..
            } = texts;
            let mut add = |prefix: &str, rows: &[GeneratedRow<B>]| {
                let tokens = Generated::new(rows, longest);
                generated.insert(format!("{prefix}generated"), tokens);
                let logits = generation.step_logits(rows, longest);
                tensors.extend(logits.map(|it| (format!("{prefix}step_logits"), it)));
            };
            add("", &rows);
            if let Some(original) = original {
                add("original_", &original);
            }
            for (representation, values) in collected_at_steps {
                let steps = match at {
                    InterveneAt::Step(_) => 1,
                    _ => longest.saturating_sub(1),
                };
                if let Some(values) = generation::padded(values, steps) {
                    tensors.insert(format!("step_collected.{representation}"), values);
                }
            }
        }
        Ok(Parts { tensors, generated })
    }
}

/// What comes out of the base under the interventions.
fn prompt_tensors<B: Backend>(
    alignable: &AlignableModel<B, Decoder<B>>,
    inputs: &AlignableInputs<B>,
) -> Result<BTreeMap<String, Tensor<B, 3>>> {
    let output = alignable.forward_inputs(inputs)?;
    let mut tensors = BTreeMap::from([("logits".to_owned(), output.counterfactual)]);
    if let Some(original) = output.original {
        tensors.insert("original_logits".to_owned(), original);
    }
    for (representation, collected) in output.collected {
        tensors.insert(format!("collected.{representation}"), collected);
    }
    for tensor in tensors.values() {
        if !is_finite(tensor)? {
            ensure_none(alignable.find_non_finite(inputs)?)?;
        }
    }
    Ok(tensors)
}

/// The logits of the base without interventions.
fn plain_logits<B: Backend>(
    model: &Decoder<B>,
    base: &TokenBatch,
    device: &B::Device,
) -> Result<Tensor<B, 3>> {
    base.check(model.dims())?;
    let logits = model.forward(ModelInput::Tokens(base.to_tensor(device)));
    if !is_finite(&logits)? {
        let mut plan = Plan::new();
        let input = plan.tokens(base);
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::All);
        let options = RunOptions::default();
        let found = plan.find_non_finite::<_, VanillaIntervention>(model, &[], &options)?;
        ensure_none(found.map(|found| found.with_run("the base")))?;
    }
    Ok(logits)
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

/// Reads JSON. An error begins with the path of the wrong value, such as
/// `config.alignable_representations[1].alignable_layer`.
fn from_json<T: DeserializeOwned>(json: &str) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}
