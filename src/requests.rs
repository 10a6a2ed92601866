//! Requests for interventions, as JSON: what the example `intervene` serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{LogitPositions, NonFinite, Plan, RunOptions};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, Source, Subspaces, UnitLocations,
};
use burn_align::interventions::VanillaIntervention;
use burn_align_models::pretrained::Pretrained;
use burn_align_models::{
    AlignableTransformer, Decoder, DecoderConfig, ModelInput, ModelSource, TokenBatch, Tokenizer,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    /// collected representation, where k is its index in the configuration. All values are finite,
    /// except at padding.
    pub tensors: BTreeMap<String, Tensor<B, 3>>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// If it is not a valid request. The error names the path of the wrong value.
    pub fn parse(json: &str) -> Result<Self> {
        from_json(json)
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
        let tensors = match (&self.config, &self.interventions) {
            (None, None) => self.plain_forward(&model.model, &base, device)?,
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
        Ok(Answer { base, tensors })
    }

    fn plain_forward<B: Backend>(
        &self,
        model: &Decoder<B>,
        base: &TokenBatch,
        device: &B::Device,
    ) -> Result<BTreeMap<String, Tensor<B, 3>>> {
        for (key, absent) in [
            ("sources", self.sources.iter().flatten().next().is_none()),
            ("unit_locations", self.unit_locations.is_null()),
            ("subspaces", self.subspaces.is_null()),
        ] {
            ensure!(
                absent,
                "{key}: expected none without a config or interventions"
            );
        }
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
        let mut tensors = BTreeMap::from([("logits".to_owned(), logits.clone())]);
        if self.output_original_output {
            tensors.insert("original_logits".to_owned(), logits);
        }
        Ok(tensors)
    }

    fn intervene<B: Backend>(
        &self,
        alignable: &AlignableModel<B, Decoder<B>>,
        model: &Model<B>,
        base: &TokenBatch,
    ) -> Result<BTreeMap<String, Tensor<B, 3>>> {
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

        let output = alignable.forward_inputs(&inputs)?;
        let mut tensors = BTreeMap::from([("logits".to_owned(), output.counterfactual)]);
        if let Some(original) = output.original {
            tensors.insert("original_logits".to_owned(), original);
        }
        for (representation, collected) in output.collected {
            tensors.insert(format!("collected.{representation}"), collected);
        }
        for tensor in tensors.values() {
            if !is_finite(tensor)? {
                ensure_none(alignable.find_non_finite(&inputs)?)?;
            }
        }
        Ok(tensors)
    }
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
