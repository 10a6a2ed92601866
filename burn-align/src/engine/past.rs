//! Cached keys and values of positions that are no longer computed.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{Component, Mixing, Site};

use super::Units;
use super::freeze::{Freezer, Kept};
use super::layout::{lower, merge_suffixes};
use super::plan::{Operand, Plan, Read, ReadId, WorldId};
use super::stages::{Stage, Stages};

/// Keys and values of the positions that edits no longer reach.
#[derive(Clone, Debug)]
pub(super) struct Past<B: Backend> {
    /// For each example: the first position that still has to be computed.
    pub(super) starts: Vec<usize>,
    pub(super) kv_heads: usize,
    pub(super) layers: Vec<PastLayer<B>>,
}

/// Keys and values of one layer, `[batch, pos, kv_head * d_head]`.
#[derive(Clone, Debug)]
pub(super) struct PastLayer<B: Backend> {
    pub(super) layer: usize,
    pub(super) keys: Tensor<B, 3>,
    pub(super) values: Tensor<B, 3>,
}

/// The sites of the keys and values that are computed from a stage on, if the engine can pass them
/// back to the model.
pub(super) fn keys_values(
    start: Stage,
    stages: &Stages,
    kv_heads: usize,
) -> Option<KeysValueSites> {
    if !stages.run_suffixes() {
        return None;
    }
    let mut layers = Vec::new();
    for stage in stages.mixing_stages().filter(|stage| *stage >= start) {
        let (Stage::Layer { layer, .. }, Some(sublayer)) = (stage, stages.sublayer(stage)) else {
            continue;
        };
        if let Mixing::Causal { .. } = sublayer.mixing() {
            layers.push((layer, sublayer.attended_keys()?));
        }
    }
    (!layers.is_empty()).then_some(KeysValueSites { layers, kv_heads })
}

/// Where the keys and values of the remaining layers are.
pub(super) struct KeysValueSites {
    /// Layers, with the component of their keys.
    layers: Vec<(usize, Component)>,
    kv_heads: usize,
}

/// The reads that become a [`Past`] when the first part of a plan has run.
pub(super) struct PastReads {
    starts: Vec<usize>,
    kv_heads: usize,
    /// Layers with the reads of their keys and values.
    layers: Vec<(usize, [ReadId; 2])>,
}

impl PastReads {
    pub(super) fn kept<B: Backend>(&self, value: impl Fn(ReadId) -> Tensor<B, 3>) -> Past<B> {
        let longest = self.starts.iter().copied().max().unwrap_or(0);
        let layers = self.layers.iter().map(|(layer, reads)| {
            let [keys, values] = reads.map(|read| value(read).narrow(1, 0, longest));
            PastLayer {
                layer: *layer,
                keys,
                values,
            }
        });
        Past {
            starts: self.starts.clone(),
            kv_heads: self.kv_heads,
            layers: layers.collect(),
        }
    }
}

impl<B: Backend> Freezer<'_, B> {
    /// Adds reads of the keys and values of positions that are no longer changed or read.
    pub(super) fn pasts(&self, kept: &Kept<'_>, prefix: &mut Plan<B>) -> Vec<Option<PastReads>> {
        let none = kept.residuals.iter().map(|_| None).collect();
        let Some(sites) = &self.keys_values else {
            return none;
        };
        let Some(starts) = self.starts(kept) else {
            return none;
        };
        let past = |(residual, starts): (usize, Vec<usize>)| {
            let input = &self.plan.inputs[kept.residuals[residual].0.0];
            // Worth it from a tenth of all positions on, as for suffixes within a pass.
            if 10 * starts.iter().sum::<usize>() < input.batch() * input.pos() {
                return None;
            }
            let world = kept
                .residual_of
                .iter()
                .position(|of| *of == Some(residual))?;
            let longest = starts.iter().copied().max().unwrap_or(0);
            // All positions, if some example is shorter.
            let before = match input.lengths().iter().all(|length| *length >= longest) {
                true => Units::positions(0..longest),
                false => Units::ALL,
            };
            let reads = sites.layers.iter().map(|(layer, key)| {
                let reads = [*key, Component::ValueOutput].map(|component| {
                    let site = Site::Block(*layer, component);
                    prefix.read(self.plan.world_id(world), site, before.clone())
                });
                (*layer, reads)
            });
            Some(PastReads {
                layers: reads.collect(),
                starts,
                kv_heads: sites.kv_heads,
            })
        };
        starts.into_iter().enumerate().map(past).collect()
    }

    /// For each residual and each example: the first position that is still changed or read; `None`
    /// if whole attention patterns are.
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
                used.push((plan.world_id(index), edit.site, edit.units.clone()));
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
                    let units = positions.units(&plan.input_of(*world).lengths());
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
        // Limit the number of distinct ones.
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
}
