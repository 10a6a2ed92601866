//! The alignable model: a model, its configuration and its interventions.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn_align_models::{AlignableTransformer, Site, SiteDims, SiteWidth, TokenBatch};

use super::build::build;
use super::locations::has_unit;
use super::worlds::{AddedWorlds, skipped_input};
use super::{
    AlignError, AlignableConfig, AlignableInputs, AlignableRepresentationConfig, InterventionType,
    Mode, Source, Unit, UnitLocations,
};
use crate::engine::{LogitPositions, NonFinite, Plan, ReadId, Results, RunOptions, WorldId};
use crate::interventions::{BuiltinIntervention, Intervention};

/// A model with interventions at some of its representations.
///
/// ```
/// use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let base = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let source = tokenizer.encode_batch(["The capital of Italy is"])?;
///
/// let residual = AlignableRepresentationConfig::new(2, Component::BlockOutput);
/// let model = AlignableModel::new(AlignableConfig::new([residual]), loaded.model.clone())?;
/// // The source's vector at the last token replaces the base's.
/// let output = model.forward(&base, &[source], 4)?;
/// let next = tokenizer.top_tokens(output.counterfactual_last(), 1);
/// assert_eq!(next[0][0].text, "Rome");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "IntervenableModel")]
pub struct AlignableModel<B: Backend, M, I = BuiltinIntervention<B>> {
    pub(super) config: AlignableConfig,
    model: M,
    pub(super) interventions: Vec<I>,
    /// The intervention of each representation; `None` if its activations are collected.
    pub(super) intervention_of: Vec<Option<usize>>,
    /// What forward passes have in common: schedules, masks and rotary tables.
    run: RunOptions,
    _backend: PhantomData<B>,
}

/// The result of an [`AlignableModel`].
///
/// The axis `pos` has all positions, or those requested by [`AlignableInputs::logits`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AlignableOutput<B: Backend> {
    /// Logits of the base without interventions, `[batch, pos, vocab]`, if requested.
    pub original: Option<Tensor<B, 3>>,
    /// Logits of the base under the interventions, `[batch, pos, vocab]`.
    pub counterfactual: Tensor<B, 3>,
    /// The activation of each representation that is collected, by the index of the representation
    /// in the configuration, `[batch, unit, d_site]`. One whose locations leave it out is not
    /// there.
    pub collected: BTreeMap<usize, Tensor<B, 3>>,
    /// The index on the axis `pos` of each example's last token.
    last: Vec<usize>,
}

impl<B: Backend> AlignableOutput<B> {
    /// Logits under the interventions after the last token of each example, `[batch, vocab]`,
    /// whatever the lengths of the examples. If other positions were requested, the logits after
    /// the last of these.
    ///
    /// [`AlignableInputs::with_logits`] can avoid computing the others.
    pub fn counterfactual_last(&self) -> Tensor<B, 2> {
        self.last_of(&self.counterfactual)
    }

    /// Like [`counterfactual_last`](Self::counterfactual_last), without interventions, if
    /// requested.
    pub fn original_last(&self) -> Option<Tensor<B, 2>> {
        self.original.as_ref().map(|logits| self.last_of(logits))
    }

    /// - logits: `[batch, pos, vocab]`
    fn last_of(&self, logits: &Tensor<B, 3>) -> Tensor<B, 2> {
        let [batch, pos, vocab] = logits.dims();
        let rows = self.last.iter().enumerate();
        let rows: Vec<i64> = rows.map(|(row, last)| (row * pos + last) as i64).collect();
        let rows = Tensor::from_data(TensorData::new(rows, [batch]), &logits.device());
        let logits = logits.clone().reshape([batch * pos, vocab]);
        logits.select(0, rows)
    }
}

impl<B: Backend, M: AlignableTransformer<B>> AlignableModel<B, M> {
    /// Makes a model alignable, with the interventions of the configuration. Their parameters, if
    /// any, are initialised at random from seed 0.
    ///
    /// # Errors
    /// If the configuration does not fit the model.
    pub fn new(config: AlignableConfig, model: M) -> Result<Self, AlignError> {
        Self::new_seeded(config, model, 0)
    }

    /// Like [`new`](Self::new), with another seed.
    ///
    /// # Errors
    /// If the configuration does not fit the model.
    pub fn new_seeded(config: AlignableConfig, model: M, seed: u64) -> Result<Self, AlignError> {
        check_config(&config, &model)?;
        let mut interventions = Vec::new();
        let intervention_of = distinct_interventions(&config).0;
        for (index, representation) in config.representations.iter().enumerate() {
            // Linked representations use the intervention of the first of them.
            if intervention_of[index] == Some(interventions.len()) {
                let seed = seed.wrapping_add(index as u64);
                interventions.extend(build(index, representation, &model, seed)?);
            }
        }
        Self::with_interventions(config, model, interventions)
    }
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> AlignableModel<B, M, I> {
    /// Makes a model alignable with these interventions: one for each representation that is not
    /// collected, and one for all representations with the same link key.
    ///
    /// # Errors
    /// If the configuration does not fit the model, or the number of interventions is wrong.
    pub fn with_interventions(
        config: AlignableConfig,
        model: M,
        interventions: Vec<I>,
    ) -> Result<Self, AlignError> {
        check_config(&config, &model)?;
        let (intervention_of, expected) = distinct_interventions(&config);
        if interventions.len() != expected {
            return Err(AlignError::WrongInterventionCount {
                expected,
                found: interventions.len(),
            });
        }
        Ok(Self {
            config,
            model,
            interventions,
            intervention_of,
            run: RunOptions::default(),
            _backend: PhantomData,
        })
    }

    /// The same interventions on another version of the model.
    pub(crate) fn map_model(self, map: impl FnOnce(M) -> M) -> Self {
        Self {
            model: map(self.model),
            ..self
        }
    }

    /// Removes the interventions; [`put_interventions`](Self::put_interventions) must follow.
    pub(crate) fn take_interventions(&mut self) -> Vec<I> {
        std::mem::take(&mut self.interventions)
    }

    /// Puts back as many interventions as were removed.
    pub(crate) fn put_interventions(&mut self, interventions: Vec<I>) {
        self.interventions = interventions;
    }

    /// The same model without autodiff.
    pub fn valid(&self) -> AlignableModel<B::InnerBackend, M::InnerModule, I::InnerModule>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        I: AutodiffModule<B>,
    {
        AlignableModel {
            config: self.config.clone(),
            model: self.model.valid(),
            interventions: self.interventions.iter().map(I::valid).collect(),
            intervention_of: self.intervention_of.clone(),
            run: self.run.clone(),
            _backend: PhantomData,
        }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The configuration.
    pub fn config(&self) -> &AlignableConfig {
        &self.config
    }

    /// The interventions, as [`Plan::run`] takes them.
    pub fn interventions(&self) -> &[I] {
        &self.interventions
    }

    /// Runs the base under the interventions, with representations from the sources.
    ///
    /// Without group keys every representation has its own source; a single source serves all.
    /// [`forward_inputs`](Self::forward_inputs) has more options.
    ///
    /// # Errors
    /// If base, sources and locations do not fit together. Nothing is computed then.
    pub fn forward(
        &self,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: impl Into<UnitLocations>,
    ) -> Result<AlignableOutput<B>, AlignError> {
        let inputs = AlignableInputs::new(base.clone())
            .with_sources(sources.iter().cloned().map(Source::from))
            .with_locations(locations);
        self.forward_inputs(&inputs)
    }

    /// Runs the base under the interventions.
    ///
    /// # Errors
    /// If the inputs do not fit together or do not fit the model. Nothing is computed then.
    pub fn forward_inputs(
        &self,
        inputs: &AlignableInputs<B>,
    ) -> Result<AlignableOutput<B>, AlignError> {
        let Planned {
            plan,
            added,
            counterfactual,
            original,
        } = self.plan(inputs)?;
        let results = self.run(&plan)?;
        let original = original.map(|(_world, read)| read);
        let lengths = inputs.base.lengths();
        Ok(AlignableOutput {
            last: match &inputs.logits {
                LogitPositions::All => lengths.iter().map(|length| length - 1).collect(),
                LogitPositions::Last => vec![0; lengths.len()],
                LogitPositions::Each(each) => each.iter().map(|units| units.len() - 1).collect(),
            },
            original: original.map(|read| results.get(read)),
            counterfactual: results.get(counterfactual),
            collected: added
                .collected
                .into_iter()
                .map(|(representation, read)| (representation, results.get(read)))
                .collect(),
        })
    }

    /// Says where the values of [`forward_inputs`](Self::forward_inputs) stop being finite, if they
    /// do: in which run, layer and component, and what to do about it; see
    /// [`Plan::find_non_finite`](crate::engine::Plan::find_non_finite). Runs everything again, so
    /// ask when something that came out was not finite.
    ///
    /// # Errors
    /// As [`forward_inputs`](Self::forward_inputs).
    pub fn find_non_finite(
        &self,
        inputs: &AlignableInputs<B>,
    ) -> Result<Option<NonFinite>, AlignError> {
        let planned = self.plan(inputs)?;
        let options = RunOptions::default();
        let found = planned
            .plan
            .find_non_finite(&self.model, &self.interventions, &options)?;
        Ok(found.map(|found| {
            let run = planned.run(found.world, inputs);
            found.with_run(run)
        }))
    }

    /// What a forward pass runs and reads.
    fn plan(&self, inputs: &AlignableInputs<B>) -> Result<Planned<B>, AlignError> {
        let mut plan = Plan::new();
        let added = self.add_worlds(&mut plan, inputs)?;
        let counterfactual = plan.read_logits(added.base, inputs.logits.clone());
        let original = inputs.output_original_output.then(|| {
            let input = plan.input(inputs.base.clone());
            let world = plan.world(input, []);
            (world, plan.read_logits(world, inputs.logits.clone()))
        });
        Ok(Planned {
            plan,
            added,
            counterfactual,
            original,
        })
    }

    /// Runs a plan whose edits refer to this model's interventions.
    ///
    /// # Errors
    /// If the plan does not fit the model.
    pub fn run(&self, plan: &Plan<B>) -> Result<Results<B>, AlignError> {
        Ok(plan.run_with(&self.model, &self.interventions, &self.run)?)
    }
}

/// The plan of one forward pass under interventions.
struct Planned<B: Backend> {
    plan: Plan<B>,
    added: AddedWorlds,
    counterfactual: ReadId,
    /// The base without interventions, if asked for.
    original: Option<(WorldId, ReadId)>,
}

impl<B: Backend> Planned<B> {
    /// The role of a world for the caller. The runs of sources come first in the plan.
    fn run(&self, world: usize, inputs: &AlignableInputs<B>) -> String {
        let sources = inputs.sources.iter().enumerate();
        let mut runs = sources.filter(|(_, source)| matches!(source, Source::Run(_)));
        match (&self.original, runs.nth(world)) {
            _ if world == self.added.base.index() => "the base under the interventions".to_owned(),
            (Some((original, _)), _) if world == original.index() => "the base".to_owned(),
            (_, Some((source, _))) => format!("source {source}"),
            _ => "the base under the earlier interventions".to_owned(),
        }
    }
}

/// The intervention of each representation, and the number of interventions.
pub(crate) fn distinct_interventions(config: &AlignableConfig) -> (Vec<Option<usize>>, usize) {
    let mut linked: Vec<(usize, usize)> = Vec::new();
    let mut count = 0;
    let mut intervention_of = Vec::new();
    for representation in &config.representations {
        if representation.intervention == InterventionType::Collect {
            intervention_of.push(None);
            continue;
        }
        let known = representation.intervention_link_key.and_then(|key| {
            let found = linked.iter().find(|(other, _)| *other == key);
            found.map(|(_, index)| *index)
        });
        let index = known.unwrap_or_else(|| {
            count += 1;
            count - 1
        });
        if let Some(key) = representation.intervention_link_key {
            linked.push((key, index));
        }
        intervention_of.push(Some(index));
    }
    (intervention_of, count)
}

fn check_config<B: Backend, M: AlignableTransformer<B>>(
    config: &AlignableConfig,
    model: &M,
) -> Result<(), AlignError> {
    if config.representations.is_empty() {
        return Err(AlignError::NoRepresentations);
    }
    for (index, representation) in config.representations.iter().enumerate() {
        let site = representation.place();
        let layout = model.layout();
        let Some(dims) = layout.site(site) else {
            return Err(AlignError::NoSuchSite {
                representation: index,
                site,
                layers: model.dims().layers,
                lacks: layout.lacks(site),
            });
        };
        // A model may have a single head, for example for the keys of multi-query attention.
        let has_heads = matches!(site, Site::Block(_, component) if component.has_heads());
        if !has_heads && !has_unit(dims, representation.unit) {
            return Err(AlignError::NoHeads {
                representation: index,
                site,
                unit: representation.unit,
            });
        }
        if representation.unit == Unit::Step && !layout.layers_are_steps() {
            return Err(AlignError::NoTimeSteps {
                representation: index,
            });
        }
        check_partition(index, representation, dims, model.dims().max_positions)?;
        match representation.intervention {
            InterventionType::Skip if skipped_input(site).is_none() => {
                return Err(AlignError::NothingToSkip {
                    representation: index,
                    site,
                });
            }
            InterventionType::Collect if config.mode == Mode::Serial => {
                return Err(AlignError::CollectInSerialMode {
                    representation: index,
                });
            }
            _ => {}
        }
    }
    check_links(config)?;
    check_groups(config)
}

/// Checks that the parts of a partition refer to features that the representation has, with all of
/// its heads.
fn check_partition(
    index: usize,
    representation: &AlignableRepresentationConfig,
    dims: SiteDims,
    max_positions: Option<usize>,
) -> Result<(), AlignError> {
    let SiteDims { heads, width } = dims;
    let width = match width {
        SiteWidth::Features(width) => width,
        SiteWidth::KeyPositions => max_positions.unwrap_or(u32::MAX as usize),
    };
    let features = match representation.intervention.has_parameters() {
        true => representation
            .vector_width(dims)
            .map_or(width, |width| representation.partitioned_features(width)),
        false => heads * width,
    };
    let parts = representation.subspace_partition.iter().flatten();
    for (part, found) in parts.enumerate() {
        let right = match found[..] {
            [from, to] => from <= to && to <= features,
            _ => found.iter().all(|feature| *feature < features),
        };
        if !right {
            return Err(AlignError::NoSuchFeatures {
                representation: index,
                part,
                features,
                found: found.clone(),
            });
        }
    }
    Ok(())
}

/// Checks that representations that share an intervention agree on its type.
fn check_links(config: &AlignableConfig) -> Result<(), AlignError> {
    let representations = &config.representations;
    for (index, representation) in representations.iter().enumerate() {
        let Some(key) = representation.intervention_link_key else {
            continue;
        };
        let first = representations
            .iter()
            .position(|other| other.intervention_link_key == Some(key))
            .expect("at least this one");
        let (expected, found) = (
            representations[first].intervention,
            representation.intervention,
        );
        if expected != found {
            return Err(AlignError::LinkedTypes {
                representation: index,
                first,
                expected: expected.name(),
                found: found.name(),
            });
        }
    }
    Ok(())
}

fn check_groups(config: &AlignableConfig) -> Result<(), AlignError> {
    let keys: Vec<Option<usize>> = config.representations.iter().map(|r| r.group_key).collect();
    let distinct: BTreeSet<usize> = keys.iter().flatten().copied().collect();
    if distinct.is_empty() {
        return Ok(());
    }
    if config.mode == Mode::Serial {
        return Err(AlignError::GroupsInSerialMode);
    }
    let without_gap = distinct.iter().copied().eq(0..distinct.len());
    match keys.iter().all(Option::is_some) && without_gap {
        true => Ok(()),
        false => Err(AlignError::BadGroups { found: keys }),
    }
}
