//! Running the part of a plan that does not change in training, once.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_align_models::{AlignableTransformer, Component, Site, TokensError};

use super::execute::logit_units;
use super::layout::{lower, merge_suffixes};
use super::plan::{
    Edit, InputId, LogitPositions, Operand, Past, PastLayer, Plan, Read, ReadId, Resumed, World,
    WorldId, WorldInput,
};
use super::schedule::{Part, Stage, Stages};
use super::validate::validate;
use super::{Indices, PlanError, RunOptions, Units};
use crate::interventions::Intervention;

impl<B: Backend> Plan<B> {
    /// Runs everything that comes before the first edit by a trained intervention, and returns the
    /// plan that is left: its worlds begin at that edit, and what they take from untrained worlds
    /// is constant. It gives the same results, for any values of the trained parameters, and ids
    /// of the plan stay valid.
    ///
    /// - `trained`: whether the intervention with this index will change
    ///
    /// Where the model [computes suffixes](AlignableTransformer::computes_suffixes), positions that
    /// nothing changes or reads any more are not computed again either: their keys and values are
    /// kept, of every layer to come.
    ///
    /// Nothing is gained, and the plan comes back as it is, where the first edit is at the
    /// embedding, the model's blocks return more than the residual stream, or keys and values have
    /// been kept already.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with).
    pub fn freeze<M: AlignableTransformer<B>, I: Intervention<B>>(
        &self,
        model: &M,
        interventions: &[I],
        trained: impl Fn(usize) -> bool,
        options: &RunOptions,
    ) -> Result<Self, PlanError> {
        validate(self, model, interventions)?;
        if self.inputs.iter().any(|input| input.past().is_some()) {
            return Ok(self.clone());
        }
        let stages = Stages::new(model);
        let changing = self.changing_worlds(&trained);
        let changes = |edit: &Edit| {
            let taken = match &edit.operand {
                Operand::Activation { world, .. } => changing[world.0],
                Operand::None | Operand::Constant(_) => false,
            };
            taken || trained(edit.intervention)
        };
        let first = self
            .worlds
            .iter()
            .flat_map(|world| &world.edits)
            .filter(|edit| changes(edit))
            .map(|edit| stages.of(edit.site))
            .min();
        let Some((start, residual)) = first.and_then(|start| residual_before(start, model)) else {
            return Ok(self.clone());
        };
        let freezer = Freezer {
            plan: self,
            keys_values: keys_values(start, model),
            stages,
            start,
            residual,
            changing,
        };
        let (prefix, kept) = freezer.prefix();
        let results = prefix.run_with(model, interventions, options)?;
        Ok(freezer.rest(&kept, |read| results.get(read)))
    }

    /// Whether each world depends on a trained intervention.
    fn changing_worlds(&self, trained: &impl Fn(usize) -> bool) -> Vec<bool> {
        let mut changing = vec![false; self.worlds.len()];
        loop {
            let more: Vec<usize> = (0..self.worlds.len())
                .filter(|world| !changing[*world])
                .filter(|world| {
                    self.worlds[*world].edits.iter().any(|edit| {
                        trained(edit.intervention)
                            || matches!(&edit.operand,
                                Operand::Activation { world, .. } if changing[world.0])
                    })
                })
                .collect();
            if more.is_empty() {
                return changing;
            }
            for world in more {
                changing[world] = true;
            }
        }
    }

    /// The same plan for some of its examples, in this order.
    ///
    /// # Errors
    /// If the inputs have different numbers of examples, no example is named, or one that is not
    /// there.
    pub fn examples(&self, examples: &[usize]) -> Result<Self, PlanError> {
        let batch = self.inputs.first().map_or(0, WorldInput::batch);
        if let Some(found) = self.inputs.iter().find(|input| input.batch() != batch) {
            return Err(PlanError::WrongBatch {
                at: "inputs of a plan whose examples are chosen".to_owned(),
                batch,
                found: found.batch(),
            });
        }
        let wrong = match examples.iter().find(|example| **example >= batch) {
            Some(found) => Some(TokensError::NoSuchExample {
                found: *found,
                batch,
            }),
            None => examples.is_empty().then_some(TokensError::EmptyBatch),
        };
        if let Some(source) = wrong {
            return Err(PlanError::Input { input: 0, source });
        }
        let tensors = |x: &Tensor<B, 3>| match x.dims()[0] {
            size if size == batch => select(x.clone(), examples),
            _ => x.clone(),
        };
        let units = |units: &Units| Units {
            heads: indices(&units.heads, examples),
            positions: indices(&units.positions, examples),
        };
        let edit = |edit: &Edit| Edit {
            site: edit.site,
            units: units(&edit.units),
            features: indices(&edit.features, examples),
            intervention: edit.intervention,
            operand: match &edit.operand {
                Operand::Activation {
                    world,
                    site,
                    units: taken,
                } => Operand::Activation {
                    world: *world,
                    site: *site,
                    units: units(taken),
                },
                other => other.clone(),
            },
        };
        let inputs = self.inputs.iter().map(|input| match input {
            WorldInput::Tokens(tokens) => {
                WorldInput::Tokens(tokens.select(examples).expect("checked above"))
            }
            WorldInput::Features(x) => WorldInput::Features(select(x.clone(), examples)),
            WorldInput::Resumed(resumed) => WorldInput::Resumed(Resumed {
                stage: resumed.stage,
                x: select(resumed.x.clone(), examples),
                lengths: examples.iter().map(|e| resumed.lengths[*e]).collect(),
                past: resumed.past.as_ref().map(|past| {
                    let starts = examples.iter().map(|e| past.starts[*e]).collect();
                    past.map(starts, |x| select(x.clone(), examples))
                }),
            }),
        });
        let reads = self.reads.iter().map(|read| match read {
            Read::Activation {
                world,
                site,
                units: read,
            } => Read::Activation {
                world: *world,
                site: *site,
                units: units(read),
            },
            Read::Logits { world, positions } => Read::Logits {
                world: *world,
                positions: match positions {
                    LogitPositions::Each(each)
                        if examples.iter().all(|example| *example < each.len()) =>
                    {
                        LogitPositions::Each(examples.iter().map(|e| each[*e].clone()).collect())
                    }
                    other => other.clone(),
                },
            },
        });
        Ok(Self {
            inputs: inputs.collect(),
            constants: self.constants.iter().map(tensors).collect(),
            worlds: self
                .worlds
                .iter()
                .map(|world| World {
                    input: world.input,
                    edits: world.edits.iter().map(edit).collect(),
                    frozen: world.frozen,
                })
                .collect(),
            reads: reads.collect(),
            known: self
                .known
                .iter()
                .map(|value| value.as_ref().map(tensors))
                .collect(),
        })
    }

    /// The same plan on the backend that differentiates. Its own tensors are constants there.
    pub fn from_inner<A: AutodiffBackend<InnerBackend = B>>(&self) -> Plan<A> {
        let lift = |x: &Tensor<B, 3>| Tensor::from_inner(x.clone());
        Plan {
            inputs: self
                .inputs
                .iter()
                .map(|input| match input {
                    WorldInput::Tokens(tokens) => WorldInput::Tokens(tokens.clone()),
                    WorldInput::Features(x) => WorldInput::Features(lift(x)),
                    WorldInput::Resumed(resumed) => WorldInput::Resumed(Resumed {
                        stage: resumed.stage,
                        x: lift(&resumed.x),
                        lengths: resumed.lengths.clone(),
                        past: resumed
                            .past
                            .as_ref()
                            .map(|past| past.map(past.starts.clone(), lift)),
                    }),
                })
                .collect(),
            constants: self.constants.iter().map(lift).collect(),
            worlds: self.worlds.clone(),
            reads: self.reads.clone(),
            known: self
                .known
                .iter()
                .map(|value| value.as_ref().map(lift))
                .collect(),
        }
    }

    /// Number of numbers that the plan's tensors hold: residuals and constants.
    pub fn held_elements(&self) -> usize {
        let inputs = self.inputs.iter().map(|input| match input {
            WorldInput::Tokens(_) => 0,
            WorldInput::Features(x) => x.shape().num_elements(),
            WorldInput::Resumed(resumed) => {
                let layers = resumed.past.iter().flat_map(|past| &past.layers);
                let past = layers.map(|kept| 2 * kept.keys.shape().num_elements());
                resumed.x.shape().num_elements() + past.sum::<usize>()
            }
        });
        let tensors = self.constants.iter().chain(self.known.iter().flatten());
        inputs.sum::<usize>()
            + tensors
                .map(|tensor| tensor.shape().num_elements())
                .sum::<usize>()
    }
}

/// The stage that a run resumes at, and the site of the residual stream before it.
fn residual_before<B: Backend, M: AlignableTransformer<B>>(
    start: Stage,
    model: &M,
) -> Option<(Stage, Site)> {
    let site = match start {
        Stage::Embed | Stage::Unembed => None,
        Stage::Layer(0, Part::Block) => Some(Site::Embedding),
        Stage::Layer(layer, Part::Block) => Some(Site::Block(layer - 1, Component::BlockOutput)),
        Stage::Layer(layer, Part::Output) => Some(Site::Block(layer, Component::BlockOutput)),
        Stage::FinalNorm => {
            let last = model.dims().layers.checked_sub(1)?;
            Some(Site::Block(last, Component::BlockOutput))
        }
    }?;
    let there = model.block_output_is_stream() && model.site(site).is_some();
    there.then_some((start, site))
}

/// The sites of the keys and values that blocks from a stage on compute, where the engine can give
/// them back.
fn keys_values<B: Backend, M: AlignableTransformer<B>>(
    start: Stage,
    model: &M,
) -> Option<KeysValueSites> {
    let dims = model.dims();
    let first = match start {
        Stage::Layer(layer, Part::Block) => layer,
        Stage::Layer(layer, Part::Output) => layer + 1,
        Stage::Embed | Stage::FinalNorm | Stage::Unembed => return None,
    };
    (model.computes_suffixes() && first < dims.layers).then(|| KeysValueSites {
        layers: first..dims.layers,
        key: match dims.rotary {
            true => Component::RotaryKey,
            false => Component::KeyOutput,
        },
        kv_heads: dims.kv_heads,
    })
}

/// Where the keys and values of the layers to come are.
struct KeysValueSites {
    layers: Range<usize>,
    key: Component,
    kv_heads: usize,
}

struct Freezer<'a, B: Backend> {
    plan: &'a Plan<B>,
    keys_values: Option<KeysValueSites>,
    stages: Stages,
    start: Stage,
    residual: Site,
    changing: Vec<bool>,
}

/// Where the first part of a plan has what the rest takes from it.
struct Kept<'a> {
    /// The residual stream, of worlds that are the same so far.
    residuals: Vec<(InputId, Vec<&'a Edit>, ReadId)>,
    /// Of each residual: where it is still to be computed, and keys and values of each layer
    /// before that, if it is worth while.
    pasts: Vec<Option<(Vec<usize>, Vec<[ReadId; 2]>)>>,
    /// Of each world that goes on: which of the residuals it starts from.
    residual_of: Vec<Option<usize>>,
    /// Operands, by world and number of the edit.
    operands: BTreeMap<(usize, usize), ReadId>,
    /// Reads that are already made.
    reads: Vec<Option<ReadId>>,
}

impl<B: Backend> Freezer<'_, B> {
    fn is_early(&self, site: Site) -> bool {
        self.stages.of(site) < self.start
    }

    /// Whether the first part can give an activation of a world.
    fn is_frozen(&self, world: WorldId, site: Site) -> bool {
        !self.changing[world.0] || self.is_early(site)
    }

    /// The plan of what comes first: each world as far as it does not change, under its own id.
    fn prefix(&self) -> (Plan<B>, Kept<'_>) {
        let plan = self.plan;
        let early = |edits: &[Edit]| -> Vec<Edit> {
            let early = edits.iter().filter(|edit| self.is_early(edit.site));
            early.cloned().collect()
        };
        let mut prefix = Plan {
            inputs: plan.inputs.clone(),
            constants: plan.constants.clone(),
            worlds: Vec::new(),
            reads: Vec::new(),
            known: Vec::new(),
        };
        for (world, changing) in plan.worlds.iter().zip(&self.changing) {
            let edits = match changing {
                true => early(&world.edits),
                false => world.edits.clone(),
            };
            prefix.world(world.input, edits);
        }
        let mut kept = Kept {
            residuals: Vec::new(),
            pasts: Vec::new(),
            residual_of: vec![None; plan.worlds.len()],
            operands: BTreeMap::new(),
            reads: vec![None; plan.reads.len()],
        };
        for (index, world) in plan.worlds.iter().enumerate() {
            if !self.changing[index] {
                continue;
            }
            let edits: Vec<&Edit> = world
                .edits
                .iter()
                .filter(|edit| self.is_early(edit.site))
                .collect();
            let same = kept
                .residuals
                .iter()
                .position(|(input, others, _)| *input == world.input && *others == edits);
            kept.residual_of[index] = Some(same.unwrap_or_else(|| {
                let read = prefix.read(WorldId(index), self.residual, Units::ALL);
                kept.residuals.push((world.input, edits, read));
                kept.residuals.len() - 1
            }));
            for (number, edit) in world.edits.iter().enumerate() {
                if let Operand::Activation { world, site, units } = &edit.operand
                    && !self.is_early(edit.site)
                    && self.is_frozen(*world, *site)
                {
                    let read = prefix.read(*world, *site, units.clone());
                    kept.operands.insert((index, number), read);
                }
            }
        }
        for (index, read) in plan.reads.iter().enumerate() {
            if plan.known[index].is_some() {
                continue;
            }
            kept.reads[index] = match read {
                Read::Activation { world, site, units } if self.is_frozen(*world, *site) => {
                    Some(prefix.read(*world, *site, units.clone()))
                }
                Read::Logits { world, positions } if !self.changing[world.0] => {
                    Some(prefix.read_logits(*world, positions.clone()))
                }
                _ => None,
            };
        }
        kept.pasts = self.pasts(&kept, &mut prefix);
        (prefix, kept)
    }

    /// Asks for the keys and values of the positions that nothing changes or reads any more.
    fn pasts(
        &self,
        kept: &Kept<'_>,
        prefix: &mut Plan<B>,
    ) -> Vec<Option<(Vec<usize>, Vec<[ReadId; 2]>)>> {
        let none = kept.residuals.iter().map(|_| None).collect();
        let Some(sites) = &self.keys_values else {
            return none;
        };
        let Some(starts) = self.starts(kept) else {
            return none;
        };
        let past = |(residual, starts): (usize, Vec<usize>)| {
            let input = &self.plan.inputs[kept.residuals[residual].0.0];
            // A tenth of all positions, as for suffixes within a pass.
            if 10 * starts.iter().sum::<usize>() < input.batch() * input.pos() {
                return None;
            }
            let world = kept
                .residual_of
                .iter()
                .position(|of| *of == Some(residual))?;
            let before = Indices::Same((0..starts.iter().copied().max()?).collect());
            let reads = sites.layers.clone().map(|layer| {
                [sites.key, Component::ValueOutput].map(|component| {
                    let site = Site::Block(layer, component);
                    prefix.read(WorldId(world), site, Units::positions(before.clone()))
                })
            });
            Some((starts, reads.collect()))
        };
        starts.into_iter().enumerate().map(past).collect()
    }

    /// Of each residual and each example: the first position that is still changed or read; `None`
    /// where whole attention patterns are.
    fn starts(&self, kept: &Kept<'_>) -> Option<Vec<Vec<usize>>> {
        let plan = self.plan;
        let mut used: Vec<(WorldId, Site, Units)> = Vec::new();
        for (index, world) in plan
            .worlds
            .iter()
            .enumerate()
            .filter(|(i, _)| self.changing[*i])
        {
            let late = world.edits.iter().enumerate();
            for (number, edit) in late.filter(|(_, edit)| !self.is_early(edit.site)) {
                used.push((WorldId(index), edit.site, edit.units.clone()));
                if let Operand::Activation { world, site, units } = &edit.operand
                    && !kept.operands.contains_key(&(index, number))
                {
                    used.push((*world, *site, units.clone()));
                }
            }
        }
        for (index, read) in plan.open_reads() {
            if kept.reads[index].is_some() {
                continue;
            }
            used.push(match read {
                Read::Activation { world, site, units } => (*world, *site, units.clone()),
                Read::Logits { world, positions } => {
                    let units = logit_units(positions, plan.input_of(*world));
                    (*world, Site::FinalNorm, units)
                }
            });
        }
        if used.iter().any(|(_, site, _)| site.is_attention_pattern()) {
            return None;
        }
        let inputs = kept
            .residuals
            .iter()
            .map(|(input, _, _)| &plan.inputs[input.0]);
        let mut starts: Vec<Vec<usize>> = inputs
            .clone()
            .map(|input| vec![input.pos(); input.batch()])
            .collect();
        for (world, _, units) in &used {
            if let Some(residual) = kept.residual_of[world.0] {
                lower(&mut starts[residual], &units.positions);
            }
        }
        // Not too many different ones.
        for (starts, input) in starts.iter_mut().zip(inputs) {
            let kinds = merge_suffixes(starts.iter().map(|start| (input.pos(), *start)));
            for start in starts {
                let earlier = kinds
                    .iter()
                    .map(|(_, kind)| *kind)
                    .filter(|kind| kind <= start);
                *start = earlier.max().expect("the earliest is kept");
            }
        }
        Some(starts)
    }

    /// The plan of what is left.
    fn rest(&self, kept: &Kept<'_>, value: impl Fn(ReadId) -> Tensor<B, 3>) -> Plan<B> {
        let plan = self.plan;
        let mut rest = Plan {
            inputs: Vec::new(),
            constants: plan.constants.clone(),
            worlds: Vec::new(),
            reads: plan.reads.clone(),
            known: plan.known.clone(),
        };
        for ((input, _edits, read), past) in kept.residuals.iter().zip(&kept.pasts) {
            rest.inputs.push(WorldInput::Resumed(Resumed {
                stage: self.start,
                x: value(*read),
                lengths: plan.inputs[input.0].lengths(),
                past: past.as_ref().zip(self.keys_values.as_ref()).map(
                    |((starts, reads), sites)| Past {
                        starts: starts.clone(),
                        kv_heads: sites.kv_heads,
                        layers: sites
                            .layers
                            .clone()
                            .zip(reads)
                            .map(|(layer, [keys, values])| PastLayer {
                                layer,
                                keys: value(*keys),
                                values: value(*values),
                            })
                            .collect(),
                    },
                ),
            }));
        }
        for (index, world) in plan.worlds.iter().enumerate() {
            let Some(residual) = kept.residual_of[index] else {
                rest.worlds.push(World {
                    input: InputId(0),
                    edits: Vec::new(),
                    frozen: true,
                });
                continue;
            };
            let edits = world.edits.iter().enumerate();
            let late = edits.filter(|(_, edit)| !self.is_early(edit.site));
            let edits = late.map(|(number, edit)| {
                let mut edit = edit.clone();
                if let Some(read) = kept.operands.get(&(index, number)) {
                    edit.operand = Operand::Constant(rest.constant(value(*read)));
                }
                edit
            });
            let edits = edits.collect();
            rest.worlds.push(World {
                input: InputId(residual),
                edits,
                frozen: false,
            });
        }
        for (known, read) in rest.known.iter_mut().zip(&kept.reads) {
            if let Some(read) = read {
                *known = Some(value(*read));
            }
        }
        rest
    }
}

fn indices(indices: &Indices, examples: &[usize]) -> Indices {
    match indices {
        // A list of a wrong length is refused when the plan is run.
        Indices::Each(each) if examples.iter().all(|example| *example < each.len()) => {
            Indices::Each(examples.iter().map(|e| each[*e].clone()).collect())
        }
        other => other.clone(),
    }
}

fn select<B: Backend>(x: Tensor<B, 3>, examples: &[usize]) -> Tensor<B, 3> {
    let rows: Vec<i64> = examples.iter().map(|example| *example as i64).collect();
    let rows = TensorData::new(rows, [examples.len()]);
    let device = x.device();
    x.select(0, Tensor::<B, 1, Int>::from_data(rows, &device))
}
