use std::collections::BTreeSet;
use std::marker::PhantomData;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, TokenBatch};

use super::locations::has_unit;
use super::{AlignError, AlignableConfig, InterventionType, Locations, Mode, UnitLocations};
use crate::engine::{Edit, InputId, LogitPositions, Operand, Plan, Results, Units, WorldId};
use crate::interventions::{BuiltinIntervention, Intervention, VanillaIntervention};

/// A model with interventions at some of its representations.
#[derive(Debug)]
#[doc(alias = "IntervenableModel")]
pub struct AlignableModel<B: Backend, M, I = BuiltinIntervention> {
    config: AlignableConfig,
    model: M,
    interventions: Vec<I>,
    /// Which intervention each representation has.
    intervention_of: Vec<usize>,
    _backend: PhantomData<B>,
}

/// What an [`AlignableModel`] computes.
#[derive(Clone, Debug)]
pub struct AlignableOutput<B: Backend> {
    /// Logits of the base without interventions, `[batch, pos, vocab]`, if asked for.
    pub original: Option<Tensor<B, 3>>,
    /// Logits of the base under the interventions, `[batch, pos, vocab]`.
    pub counterfactual: Tensor<B, 3>,
}

impl<B: Backend, M: AlignableTransformer<B>> AlignableModel<B, M> {
    /// Makes a model alignable, with the interventions that the configuration names.
    ///
    /// # Errors
    /// If the configuration does not fit the model.
    pub fn new(config: AlignableConfig, model: M) -> Result<Self, AlignError> {
        let count = distinct_interventions(&config).1;
        let interventions = (0..count)
            .map(|_| match config.intervention_type {
                InterventionType::Vanilla => BuiltinIntervention::Vanilla(VanillaIntervention),
            })
            .collect();
        Self::with_interventions(config, model, interventions)
    }
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> AlignableModel<B, M, I> {
    /// Makes a model alignable, with these interventions: one for each representation, and one
    /// for all representations with the same link key.
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
            _backend: PhantomData,
        })
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

    /// Runs the base under the interventions, with representations taken from the sources.
    ///
    /// Without group keys every representation has its own source; one source alone serves all.
    ///
    /// # Errors
    /// If base, sources and locations do not fit one another; nothing is computed then.
    pub fn forward(
        &self,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: impl Into<UnitLocations>,
    ) -> Result<AlignableOutput<B>, AlignError> {
        let mut plan = Plan::new();
        let world = self.add_worlds(&mut plan, base, sources, &locations.into())?;
        let read = plan.read_logits(world, LogitPositions::All);
        let results = self.run(&plan)?;
        Ok(AlignableOutput {
            original: None,
            counterfactual: results.get(read),
        })
    }

    /// As [`forward`](Self::forward), and runs the base without interventions beside it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with_original(
        &self,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: impl Into<UnitLocations>,
    ) -> Result<AlignableOutput<B>, AlignError> {
        let mut plan = Plan::new();
        let world = self.add_worlds(&mut plan, base, sources, &locations.into())?;
        let read = plan.read_logits(world, LogitPositions::All);
        let input = plan.tokens(base);
        let original = plan.world(input, []);
        let original = plan.read_logits(original, LogitPositions::All);
        let results = self.run(&plan)?;
        Ok(AlignableOutput {
            original: Some(results.get(original)),
            counterfactual: results.get(read),
        })
    }

    /// Runs a plan whose edits name this model's interventions.
    ///
    /// # Errors
    /// If the plan does not fit the model.
    pub fn run(&self, plan: &Plan<B>) -> Result<Results<B>, AlignError> {
        Ok(plan.run(&self.model, &self.interventions)?)
    }

    /// Adds the worlds of one [`forward`](Self::forward) to a plan and returns the base's world,
    /// so that many of them can be run in one pass.
    ///
    /// # Errors
    /// If base, sources and locations do not fit one another.
    pub fn add_worlds(
        &self,
        plan: &mut Plan<B>,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: &UnitLocations,
    ) -> Result<WorldId, AlignError> {
        for (source_index, source) in sources.iter().enumerate() {
            if source.batch() != base.batch() {
                return Err(AlignError::BatchMismatch {
                    source_index,
                    expected: base.batch(),
                    found: source.batch(),
                });
            }
        }
        match self.config.mode {
            Mode::Parallel => self.add_parallel(plan, base, sources, locations),
            Mode::Serial => self.add_serial(plan, base, sources, locations),
        }
    }

    fn add_parallel(
        &self,
        plan: &mut Plan<B>,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: &UnitLocations,
    ) -> Result<WorldId, AlignError> {
        if let UnitLocations::Chain(chain) = locations {
            return Err(AlignError::WrongChain {
                expected: format!("\"sources->base\" in {} mode", self.config.mode.name()),
                found: chain.len(),
            });
        }
        let representations = &self.config.representations;
        let group = |index: usize| representations[index].group_key.unwrap_or(index);
        let groups = (0..representations.len()).map(group).max().unwrap_or(0) + 1;
        if sources.len() != groups && sources.len() != 1 {
            return Err(AlignError::WrongSourceCount {
                expected: groups,
                one_allowed: true,
                found: sources.len(),
            });
        }
        let inputs: Vec<InputId> = sources.iter().map(|source| plan.tokens(source)).collect();
        let worlds: Vec<WorldId> = inputs.iter().map(|input| plan.world(*input, [])).collect();
        let source_of = |index: usize| match worlds[..] {
            [world] => world,
            _ => worlds[group(index)],
        };
        let mut edits = Vec::new();
        for index in 0..representations.len() {
            edits.extend(self.edit(index, source_of(index), locations)?);
        }
        let input = plan.tokens(base);
        Ok(plan.world(input, edits))
    }

    fn add_serial(
        &self,
        plan: &mut Plan<B>,
        base: &TokenBatch,
        sources: &[TokenBatch],
        locations: &UnitLocations,
    ) -> Result<WorldId, AlignError> {
        let links = self.config.representations.len();
        if sources.len() != links {
            return Err(AlignError::WrongSourceCount {
                expected: links,
                one_allowed: false,
                found: sources.len(),
            });
        }
        if let UnitLocations::Chain(chain) = locations
            && chain.len() != links
        {
            return Err(AlignError::WrongChain {
                expected: format!("a link for each of {links} representations"),
                found: chain.len(),
            });
        }
        let input = plan.tokens(&sources[0]);
        let mut world = plan.world(input, []);
        for link in 0..links {
            let link_locations = match locations {
                // A link is located as the only representation of its own.
                UnitLocations::Chain(chain) => UnitLocations::SourcesToBase {
                    source: only(&chain[link].0, link, links)?,
                    base: only(&chain[link].1, link, links)?,
                },
                same => same.clone(),
            };
            let edit = self.edit(link, world, &link_locations)?;
            let input = plan.tokens(sources.get(link + 1).unwrap_or(base));
            world = plan.world(input, edit);
        }
        Ok(world)
    }

    /// The edit of one representation; none if its locations say to leave it as it is.
    fn edit(
        &self,
        index: usize,
        source: WorldId,
        locations: &UnitLocations,
    ) -> Result<Option<Edit>, AlignError> {
        let representation = &self.config.representations[index];
        let units = |side: &Locations| {
            side.units(
                index,
                self.config.representations.len(),
                representation.unit,
            )
        };
        let (source_units, base_units) = match locations {
            UnitLocations::Whole => (Some(Units::ALL), Some(Units::ALL)),
            UnitLocations::SourcesToBase { source, base } => (units(source)?, units(base)?),
            UnitLocations::Chain(_) => unreachable!("a chain is taken apart before"),
        };
        let (source_units, base_units) = match (source_units, base_units) {
            (Some(source), Some(base)) => (source, base),
            (None, None) => return Ok(None),
            (Some(_), None) => {
                return Err(AlignError::OneSided {
                    representation: index,
                    given: "source",
                });
            }
            (None, Some(_)) => {
                return Err(AlignError::OneSided {
                    representation: index,
                    given: "base",
                });
            }
        };
        let site = representation.place();
        Ok(Some(Edit {
            site,
            units: base_units,
            intervention: self.intervention_of[index],
            operand: Operand::Activation {
                world: source,
                site,
                units: source_units,
            },
        }))
    }
}

/// Spreads the locations of a link, which has one representation, over all representations.
fn only(side: &Locations, link: usize, links: usize) -> Result<Locations, AlignError> {
    match side {
        Locations::Everywhere(index) => Ok(Locations::Everywhere(*index)),
        Locations::Each(each) => match &each[..] {
            [one] => {
                let mut all = vec![None; links];
                all[link] = one.clone();
                Ok(Locations::Each(all))
            }
            _ => Err(AlignError::LocationCount {
                expected: 1,
                found: each.len(),
            }),
        },
    }
}

/// Which intervention each representation has, and how many there are.
fn distinct_interventions(config: &AlignableConfig) -> (Vec<usize>, usize) {
    let mut linked: Vec<(usize, usize)> = Vec::new();
    let mut count = 0;
    let mut intervention_of = Vec::new();
    for representation in &config.representations {
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
        intervention_of.push(index);
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
        let Some(dims) = model.site(site) else {
            return Err(AlignError::NoSuchSite {
                representation: index,
                site,
                layers: model.dims().layers,
                rotary: model.dims().rotary,
            });
        };
        if !has_unit(dims, representation.unit) {
            return Err(AlignError::NoHeads {
                representation: index,
                site,
                unit: representation.unit,
            });
        }
    }
    let keys: Vec<Option<usize>> = config.representations.iter().map(|r| r.group_key).collect();
    let distinct: BTreeSet<usize> = keys.iter().flatten().copied().collect();
    if distinct.is_empty() {
        return Ok(());
    }
    if config.mode == Mode::Serial {
        return Err(AlignError::GroupsInSerialMode);
    }
    let complete =
        keys.iter().all(Option::is_some) && distinct.iter().copied().eq(0..distinct.len());
    match complete {
        true => Ok(()),
        false => Err(AlignError::BadGroups { found: keys }),
    }
}
