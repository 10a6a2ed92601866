//! From the vocabulary of the front to worlds and edits.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Component, Site, SiteWidth};

use super::locations::Located;
use super::{
    AlignError, AlignableInputs, AlignableModel, AlignableRepresentationConfig, InterventionType,
    Locations, Mode, Source, UnitLocations,
};
use crate::engine::{ConstantId, Edit, InputId, Operand, Plan, ReadId, Units, WorldId, WorldInput};
use crate::interventions::Intervention;

/// The worlds of one forward pass under interventions, as part of a plan.
#[derive(Clone, Debug)]
pub struct AddedWorlds {
    /// The base under the interventions.
    pub base: WorldId,
    /// Reads of the representations that are collected, by the index of the representation in the
    /// configuration. One whose locations leave it out is not there.
    pub collected: BTreeMap<usize, ReadId>,
}

/// Where the activations of a group come from, in a plan.
#[derive(Clone, Copy)]
enum Origin {
    World(WorldId),
    Values(ConstantId),
}

/// A representation that acts on the base: in parallel mode any, in serial mode the last.
pub(super) struct Acting<'a> {
    representation: usize,
    origin: Option<Origin>,
    locations: Cow<'a, UnitLocations>,
}

/// What is done to one representation, except for the source's world.
pub(super) struct Step {
    pub(super) representation: usize,
    pub(super) site: Site,
    /// The part of the base.
    pub(super) units: Units,
    /// `None` for collecting.
    pub(super) edit: Option<Edit>,
}

impl<B: Backend, M: AlignableTransformer<B>, I: Intervention<B>> AlignableModel<B, M, I> {
    /// Adds the worlds of one [`forward_inputs`](Self::forward_inputs) to a plan, so that many of
    /// them can run in one pass. Run the plan with this model's interventions.
    ///
    /// # Errors
    /// If the inputs do not fit together.
    pub fn add_worlds(
        &self,
        plan: &mut Plan<B>,
        inputs: &AlignableInputs<B>,
    ) -> Result<AddedWorlds, AlignError> {
        let acting = self.add_sources(plan, inputs)?;
        self.add_base(plan, inputs, &acting)
    }

    /// Adds the runs of the sources. Gives the representations that act on the base.
    pub(super) fn add_sources<'a>(
        &self,
        plan: &mut Plan<B>,
        inputs: &'a AlignableInputs<B>,
    ) -> Result<Vec<Acting<'a>>, AlignError> {
        for (source_index, source) in inputs.sources.iter().enumerate() {
            if let Source::Run(input) = source
                && input.batch() != inputs.base.batch()
            {
                return Err(AlignError::BatchMismatch {
                    source_index,
                    expected: inputs.base.batch(),
                    found: input.batch(),
                });
            }
        }
        match self.config.mode {
            Mode::Parallel => self.add_parallel(plan, inputs),
            Mode::Serial => self.add_chain(plan, inputs),
        }
    }

    fn add_parallel<'a>(
        &self,
        plan: &mut Plan<B>,
        inputs: &'a AlignableInputs<B>,
    ) -> Result<Vec<Acting<'a>>, AlignError> {
        if let UnitLocations::Chain(chain) = &inputs.locations {
            return Err(AlignError::WrongChain {
                expected: format!("\"sources->base\" in {} mode", self.config.mode.name()),
                found: chain.len(),
            });
        }
        let origins = self.origins(plan, inputs)?.into_iter().enumerate();
        let acting = origins.map(|(representation, origin)| Acting {
            representation,
            origin,
            locations: Cow::Borrowed(&inputs.locations),
        });
        Ok(acting.collect())
    }

    /// Adds the base under the interventions.
    pub(super) fn add_base(
        &self,
        plan: &mut Plan<B>,
        inputs: &AlignableInputs<B>,
        acting: &[Acting<'_>],
    ) -> Result<AddedWorlds, AlignError> {
        let input = plan.input(inputs.base.clone());
        // Edits of a world may use that world itself as a source, so each world has its own edits.
        let steps = |own: WorldId| -> Result<Vec<Step>, AlignError> {
            let steps = acting.iter().map(|acting| self.step(acting, own, inputs));
            Ok(steps
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .flatten()
                .collect())
        };
        let base = try_world(plan, input, |own| Ok(edits(&steps(own)?)))?;
        let mut collected = BTreeMap::new();
        let all = steps(base)?;
        for (index, step) in all.iter().enumerate() {
            if step.edit.is_some() {
                continue;
            }
            let here = |step: &Step, site| step.edit.is_some() && step.site == site;
            let world = match all[index..].iter().any(|later| here(later, step.site)) {
                false => base,
                // Collected before later interventions at the same site, so it must not see them.
                true => try_world(plan, input, |own| {
                    let mut steps = steps(own)?;
                    let mut number = 0..;
                    steps.retain(|other| number.next() < Some(index) || !here(other, step.site));
                    Ok(edits(&steps))
                })?,
            };
            let read = plan.read(world, step.site, step.units.clone());
            collected.insert(step.representation, read);
        }
        Ok(AddedWorlds { base, collected })
    }

    /// For each representation: where its source's activations come from.
    fn origins(
        &self,
        plan: &mut Plan<B>,
        inputs: &AlignableInputs<B>,
    ) -> Result<Vec<Option<Origin>>, AlignError> {
        let representations = &self.config.representations;
        let group = |index: usize| representations[index].group_key.unwrap_or(index);
        let groups = (0..representations.len()).map(group).max().unwrap_or(0) + 1;
        let needed = (0..representations.len()).any(|index| self.takes_source(index));
        let found = inputs.sources.len();
        if found != groups && found != 1 && (needed || found != 0) {
            return Err(AlignError::WrongSourceCount {
                expected: groups,
                one_allowed: true,
                found,
            });
        }
        let origins: Vec<Option<Origin>> = inputs
            .sources
            .iter()
            .map(|source| match source {
                Source::Run(input) => {
                    let input = plan.input(input.clone());
                    Some(Origin::World(plan.world(input, [])))
                }
                Source::Values(values) => Some(Origin::Values(plan.constant(values.clone()))),
                Source::Absent => None,
            })
            .collect();
        let origin = |index: usize| {
            if !self.takes_source(index) {
                return Ok(None);
            }
            let group = group(index);
            let origin = origins[if found == 1 { 0 } else { group }];
            origin.map(Some).ok_or(AlignError::AbsentSource {
                group,
                representation: index,
            })
        };
        (0..representations.len()).map(origin).collect()
    }

    /// Adds the runs of a chain of sources, each of which acts on the next one.
    fn add_chain<'a>(
        &self,
        plan: &mut Plan<B>,
        inputs: &'a AlignableInputs<B>,
    ) -> Result<Vec<Acting<'a>>, AlignError> {
        let links = self.config.representations.len();
        if inputs.sources.len() != links {
            return Err(AlignError::WrongSourceCount {
                expected: links,
                one_allowed: false,
                found: inputs.sources.len(),
            });
        }
        if let UnitLocations::Chain(chain) = &inputs.locations
            && chain.len() != links
        {
            return Err(AlignError::WrongChain {
                expected: format!("a link for each of {links} representations"),
                found: chain.len(),
            });
        }
        let run = |link: usize| -> Result<WorldInput<B>, AlignError> {
            match &inputs.sources[link] {
                Source::Run(input) => Ok(input.clone()),
                Source::Values(_) | Source::Absent => Err(AlignError::AbsentSource {
                    group: link,
                    representation: link,
                }),
            }
        };
        let input = plan.input(run(0)?);
        let mut world = plan.world(input, []);
        for link in 0..links {
            let locations = match &inputs.locations {
                // A link is located as if it were the only representation.
                UnitLocations::Chain(chain) => {
                    let (source, base) = &chain[link];
                    let only = |side: &Locations| only(side, link, links);
                    Cow::Owned(UnitLocations::SourcesToBase {
                        source: source.as_ref().map(only).transpose()?,
                        base: only(base)?,
                    })
                }
                same => Cow::Borrowed(same),
            };
            let acting = Acting {
                representation: link,
                origin: self.takes_source(link).then_some(Origin::World(world)),
                locations,
            };
            if link + 1 == links {
                return Ok(vec![acting]);
            }
            let input = plan.input(run(link + 1)?);
            world = try_world(plan, input, |own| {
                let step = self.step(&acting, own, inputs)?;
                Ok(edits(step.as_slice()))
            })?;
        }
        Ok(Vec::new())
    }

    /// Whether a representation's intervention uses a source.
    fn takes_source(&self, index: usize) -> bool {
        let skips = self.config.representations[index].intervention == InterventionType::Skip;
        let intervention = self.intervention_of[index].map(|i| &self.interventions[i]);
        !skips && intervention.is_some_and(I::needs_source)
    }

    /// A number of features that no representation of `pos` positions has more of.
    fn most_features(
        &self,
        representation: &AlignableRepresentationConfig,
        site: Site,
        pos: usize,
    ) -> usize {
        let dims = self.model().site(site);
        let width = dims.map_or(0, |dims| match dims.width {
            SiteWidth::Features(_) => representation.vector_width(dims).unwrap_or(0),
            SiteWidth::KeyPositions => 0,
        });
        let whole = dims.map_or(0, |dims| match dims.width {
            SiteWidth::Features(width) => dims.heads * width,
            SiteWidth::KeyPositions => dims.heads * pos,
        });
        let named = [
            representation.low_rank_dimension,
            representation.latent_dimension,
        ];
        let named = named.into_iter().flatten().max().unwrap_or(0);
        width.max(whole).max(named)
    }

    /// What is done to one representation; `None` if its locations leave it unchanged.
    pub(super) fn step(
        &self,
        acting: &Acting<'_>,
        own: WorldId,
        inputs: &AlignableInputs<B>,
    ) -> Result<Option<Step>, AlignError> {
        let (index, origin) = (acting.representation, acting.origin);
        let representation = &self.config.representations[index];
        let count = self.config.representations.len();
        let locate = |side: &Locations| side.locate(index, representation, count);
        let (source, base) = match &*acting.locations {
            UnitLocations::Whole => {
                let whole = Located::whole(index, representation)?;
                (Some(whole.clone()), Some(whole))
            }
            UnitLocations::SourcesToBase { source, base } => {
                let source = source.as_ref().map(locate).transpose()?.flatten();
                (source, locate(base)?)
            }
            UnitLocations::Chain(_) => unreachable!("a chain is taken apart before"),
        };
        let one_sided = |given| AlignError::OneSided {
            representation: index,
            given,
        };
        let Some(base) = base else {
            let source_alone = source.is_some() && origin.is_some();
            return match source_alone {
                true => Err(one_sided("source")),
                false => Ok(None),
            };
        };
        let operand = match origin {
            Some(Origin::World(world)) => {
                let source = source.ok_or_else(|| one_sided("base"))?;
                Operand::Activation {
                    world,
                    site: source.site,
                    units: source.units,
                }
            }
            Some(Origin::Values(constant)) => Operand::Constant(constant),
            None if representation.intervention == InterventionType::Skip => Operand::Activation {
                world: own,
                site: skipped_input(base.site).expect("checked when the model was made"),
                units: base.units.clone(),
            },
            None => Operand::None,
        };
        let sizes = [count, inputs.base.batch()];
        let most_features = self.most_features(representation, base.site, inputs.base.pos());
        let features = inputs
            .subspaces
            .features(index, representation, sizes, most_features)?;
        let edit = self.intervention_of[index].map(|intervention| {
            Edit::new(base.site, base.units.clone(), intervention, operand).with_features(features)
        });
        Ok(Some(Step {
            representation: index,
            site: base.site,
            units: base.units,
            edit,
        }))
    }
}

/// The site of a component's own input.
pub(super) fn skipped_input(site: Site) -> Option<Site> {
    let Site::Block(layer, component) = site else {
        return None;
    };
    let input = match component {
        Component::BlockOutput => Component::BlockInput,
        Component::AttentionOutput => Component::AttentionInput,
        Component::MlpOutput => Component::MlpInput,
        _ => return None,
    };
    Some(Site::Block(layer, input))
}

fn edits(steps: &[Step]) -> Vec<Edit> {
    steps.iter().filter_map(|step| step.edit.clone()).collect()
}

/// Adds a world whose edits can fail.
fn try_world<B: Backend>(
    plan: &mut Plan<B>,
    input: InputId,
    edits: impl FnOnce(WorldId) -> Result<Vec<Edit>, AlignError>,
) -> Result<WorldId, AlignError> {
    let mut failed = None;
    let world = plan.world_with(input, |own| {
        edits(own).unwrap_or_else(|error| {
            failed = Some(error);
            Vec::new()
        })
    });
    failed.map_or(Ok(world), Err)
}

/// Assigns the locations of a link, which has one representation, to that one of all
/// representations.
fn only(side: &Locations, link: usize, links: usize) -> Result<Locations, AlignError> {
    match side {
        Locations::Everywhere(_) => Ok(side.clone()),
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
