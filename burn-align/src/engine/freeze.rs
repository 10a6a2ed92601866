//! Running the part of a plan that does not change in training, once.
//!
//! Training usually edits one layer, so everything before it gives the same result in every epoch.
//! A frozen plan starts at that layer.

mod together;

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Site};

use super::marks::Marks;
use super::origin::Origin;
use super::past::{KeysValueSites, PastReads, keys_values};
use super::plan::{
    Edit, InputId, Operand, Plan, Read, ReadId, Resumed, World, WorldId, WorldInput,
};
use super::stages::{Stage, Stages};
use super::validate::validate;
use super::{PlanError, RunOptions, Units};
use crate::interventions::Intervention;

impl<B: Backend> Plan<B> {
    /// Runs everything before the first edit by a trained intervention, and returns the remaining
    /// plan: its worlds start at that edit, and what they use from untrained worlds is constant. It
    /// gives the same results for any values of the trained parameters, and ids of the plan's
    /// worlds and reads stay valid. It runs on this model and copies of it; a model that is made up
    /// differently or computes in another dtype is rejected, but not one with other weights.
    ///
    /// - `trained`: whether the intervention with this index will change
    ///
    /// If no sublayer of the model [needs whole rows](burn_align_models::Mixing::Rows), positions
    /// that are no longer changed or read are not recomputed either: their keys and values are
    /// cached for all remaining layers.
    ///
    /// The plan is returned unchanged if there is nothing to gain: if the first edit is at the
    /// embedding, if the model's stream is not an activation between its layers, or if the plan has
    /// cached keys and values already.
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
        let Some(freezer) = self.freezer(model, &trained) else {
            return Ok(self.clone());
        };
        let (prefix, kept) = freezer.prefix();
        let results = prefix.run_with(model, interventions, options)?;
        Ok(freezer.rest(&kept, |read| results.get(read)))
    }

    /// Where a plan is cut; `None` if there is nothing to gain.
    fn freezer<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        trained: &impl Fn(usize) -> bool,
    ) -> Option<Freezer<'_, B>> {
        if self.inputs.iter().any(|input| input.starts().is_some()) {
            return None;
        }
        let stages = Stages::new(model.layout());
        let changing = self.changing_worlds(trained);
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
        let (start, residual) = stages.residual_before(first?)?;
        Some(Freezer {
            plan: self,
            origin: Origin::of(model),
            keys_values: keys_values(start, &stages, model.dims().kv_heads),
            stages,
            start,
            residual,
            changing,
        })
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
}

pub(super) struct Freezer<'a, B: Backend> {
    pub(super) plan: &'a Plan<B>,
    pub(super) origin: Origin,
    pub(super) keys_values: Option<KeysValueSites>,
    pub(super) stages: Stages,
    pub(super) start: Stage,
    pub(super) residual: Site,
    pub(super) changing: Vec<bool>,
}

/// Where the first part of a plan has what the rest uses.
pub(super) struct Kept<'a> {
    /// The residual stream, for worlds that are equal so far.
    pub(super) residuals: Vec<(InputId, Vec<&'a Edit>, ReadId)>,
    /// For each residual: where it still has to be computed, and each layer's keys and values
    /// before that, if caching them pays off.
    pub(super) pasts: Vec<Option<PastReads>>,
    /// For each world that continues: the residual it starts from.
    pub(super) residual_of: Vec<Option<usize>>,
    /// Operands, by world and index of the edit.
    pub(super) operands: BTreeMap<(usize, usize), ReadId>,
    /// Reads that are already done.
    pub(super) reads: Vec<Option<ReadId>>,
}

impl<B: Backend> Freezer<'_, B> {
    pub(super) fn is_early(&self, site: Site) -> bool {
        self.stages.of(site) < self.start
    }

    /// Whether the first part can provide an activation of a world.
    fn is_frozen(&self, world: WorldId, site: Site) -> bool {
        !self.changing[world.0] || self.is_early(site)
    }

    /// The plan of the first part: each world as far as it does not change, under its own id.
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
            marks: Marks {
                reads: Vec::new(),
                ..plan.marks.clone()
            },
        };
        for (world, changing) in plan.worlds.iter().zip(&self.changing) {
            let edits = match changing {
                true => early(&world.edits),
                false => world.edits.clone(),
            };
            prefix.worlds.push(World {
                edits,
                ..world.clone()
            });
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
                let read = prefix.read(plan.world_id(index), self.residual, Units::ALL);
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

    /// The plan of the rest.
    fn rest(&self, kept: &Kept<'_>, value: impl Fn(ReadId) -> Tensor<B, 3>) -> Plan<B> {
        let plan = self.plan;
        let mut rest = Plan {
            inputs: Vec::new(),
            constants: plan.constants.clone(),
            worlds: Vec::new(),
            reads: plan.reads.clone(),
            known: plan.known.clone(),
            marks: Marks {
                inputs: Vec::new(),
                ..plan.marks.clone()
            },
        };
        for ((input, _edits, read), past) in kept.residuals.iter().zip(&kept.pasts) {
            rest.input(WorldInput::Resumed(Resumed {
                origin: self.origin.clone(),
                stage: self.start,
                x: value(*read),
                lengths: plan.inputs[input.0].lengths(),
                past: past.as_ref().map(|past| past.kept(&value)),
            }));
        }
        for (index, world) in plan.worlds.iter().enumerate() {
            let Some(residual) = kept.residual_of[index] else {
                rest.worlds.push(World {
                    input: rest.input_id(0),
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
                input: rest.input_id(residual),
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
