//! Joining plans: parts of one plan back into a whole.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_align_models::TokenBatch;

use super::layout::{Layout, merge_suffixes};
use super::past::{Past, PastLayer};
use super::plan::{Edit, LogitPositions, Operand, Plan, Read, Resumed, World, WorldInput};
use super::{Indices, PlanError, Units};

impl<B: Backend> Plan<B> {
    /// Joins the examples of several plans into one plan. The plans must be equal except for their
    /// examples: parts of one plan from [`examples`](Self::examples), frozen or not.
    ///
    /// # Errors
    /// If the plans differ in more than their examples, or use all positions of inputs of different
    /// lengths.
    pub fn join(plans: &[Self]) -> Result<Self, PlanError> {
        let [first, others @ ..] = plans else {
            return Err(different("plans", "at least one", 0));
        };
        let counts = |plan: &Self| {
            [
                plan.inputs.len(),
                plan.constants.len(),
                plan.worlds.len(),
                plan.reads.len(),
            ]
        };
        if let Some(other) = others.iter().find(|other| counts(other) != counts(first)) {
            let what = "inputs, constants, worlds and reads";
            return Err(different(what, counts(first), counts(other)));
        }
        let batches: Vec<usize> = plans
            .iter()
            .map(|plan| plan.inputs.first().map_or(0, WorldInput::batch))
            .collect();
        let rows = |what, tensors: Vec<Tensor<B, 3>>| {
            let shape = |x: &Tensor<B, 3>| [x.dims()[1], x.dims()[2]];
            let expected = shape(&tensors[0]);
            if let Some(found) = tensors.iter().find(|x| shape(x) != expected) {
                return Err(different(what, expected, shape(found)));
            }
            // Tensors without a row per example are the same for all plans.
            let each = tensors.iter().zip(&batches);
            match each.into_iter().all(|(x, batch)| x.dims()[0] == *batch) {
                true => Ok(Tensor::cat(tensors, 0)),
                false => Ok(tensors[0].clone()),
            }
        };
        let pad = plans.iter().all(Self::names_its_positions);
        let inputs = (0..first.inputs.len()).map(|index| {
            let inputs = plans.iter().map(|plan| &plan.inputs[index]);
            join_inputs(&inputs.collect::<Vec<_>>(), pad)
        });
        let constants = (0..first.constants.len()).map(|index| {
            let constants = plans.iter().map(|plan| plan.constants[index].clone());
            rows("constants", constants.collect())
        });
        let known = (0..first.known.len()).map(|index| {
            let known = plans.iter().filter_map(|plan| plan.known[index].clone());
            let known: Vec<_> = known.collect();
            match known.len() {
                0 => Ok(None),
                all if all == plans.len() => rows("reads", known).map(Some),
                some => Err(different("frozen reads", plans.len(), some)),
            }
        });
        let units = |all: Vec<&Units>| -> Result<Units, PlanError> {
            let heads: Vec<_> = all.iter().map(|units| &units.heads).collect();
            let positions: Vec<_> = all.iter().map(|units| &units.positions).collect();
            Ok(Units {
                heads: join_indices(&heads, &batches)?,
                positions: join_indices(&positions, &batches)?,
            })
        };
        let worlds = (0..first.worlds.len()).map(|index| {
            let all: Vec<&World> = plans.iter().map(|plan| &plan.worlds[index]).collect();
            let same = |world: &&World| {
                let own = (all[0].input.0, all[0].edits.len(), all[0].frozen);
                (world.input.0, world.edits.len(), world.frozen) == own
            };
            if !all.iter().all(same) {
                return Err(different("worlds", "the same", index));
            }
            let edits = (0..all[0].edits.len()).map(|number| {
                let edits: Vec<&Edit> = all.iter().map(|world| &world.edits[number]).collect();
                join_edits(&edits, &batches, units)
            });
            Ok(World {
                edits: edits.collect::<Result<_, _>>()?,
                ..all[0].clone()
            })
        });
        let reads = (0..first.reads.len()).map(|index| {
            let reads: Vec<&Read> = plans.iter().map(|plan| &plan.reads[index]).collect();
            join_reads(&reads, units)
        });
        Ok(Self {
            inputs: inputs.collect::<Result<_, _>>()?,
            constants: constants.collect::<Result<_, _>>()?,
            worlds: worlds.collect::<Result<_, _>>()?,
            reads: reads.collect::<Result<_, _>>()?,
            known: known.collect::<Result<_, _>>()?,
            // The ids of the first plan stay valid, and so do those of the plan that it is a part
            // of.
            marks: first.marks.clone(),
        })
    }

    /// Whether nothing in the plan depends on the number of positions.
    pub(super) fn names_its_positions(&self) -> bool {
        let named = |units: &Units| units.positions != Indices::All;
        let mut edits = self.worlds.iter().flat_map(|world| &world.edits);
        let edits_name = edits.all(|edit| match &edit.operand {
            Operand::None => true,
            Operand::Constant(_) => named(&edit.units),
            Operand::Activation { units, .. } => named(&edit.units) && named(units),
        });
        let mut known = self.reads.iter().zip(&self.known);
        let reads_name = known.all(|(read, known)| match read {
            Read::Activation { units, .. } => known.is_none() || named(units),
            Read::Logits { positions, .. } => known.is_none() || *positions != LogitPositions::All,
        });
        edits_name && reads_name
    }
}

/// The error for plans that cannot be joined.
fn different(
    what: &'static str,
    expected: impl std::fmt::Debug,
    found: impl std::fmt::Debug,
) -> PlanError {
    PlanError::Different {
        what,
        expected: format!("{expected:?}"),
        found: format!("{found:?}"),
    }
}

/// - pad: whether runs that have reached some layer may get more positions
fn join_inputs<B: Backend>(
    inputs: &[&WorldInput<B>],
    pad: bool,
) -> Result<WorldInput<B>, PlanError> {
    let kinds = || different("kinds of inputs", "the same", "several");
    match inputs[0] {
        WorldInput::Tokens(_) => {
            let mut ids = Vec::new();
            for input in inputs {
                let WorldInput::Tokens(tokens) = input else {
                    return Err(kinds());
                };
                ids.extend_from_slice(tokens.ids());
            }
            let joined = TokenBatch::new(ids);
            joined
                .map(WorldInput::Tokens)
                .map_err(|cause| PlanError::Input { input: 0, cause })
        }
        WorldInput::Features(first) => {
            let [_batch, expected @ ..] = first.dims();
            let mut rows = Vec::new();
            for input in inputs {
                let WorldInput::Features(x) = input else {
                    return Err(kinds());
                };
                let [_batch, found @ ..] = x.dims();
                if found != expected {
                    return Err(different("positions and features", expected, found));
                }
                rows.push(x.clone());
            }
            Ok(WorldInput::Features(Tensor::cat(rows, 0)))
        }
        WorldInput::Resumed(first) => {
            let pos = inputs.iter().map(|input| input.pos()).max().unwrap_or(0);
            let (mut rows, mut lengths, mut pasts) = (Vec::new(), Vec::new(), Vec::new());
            for input in inputs {
                let WorldInput::Resumed(resumed) = input else {
                    return Err(kinds());
                };
                if resumed.stage != first.stage {
                    return Err(different("first stages", first.stage, resumed.stage));
                }
                let [_batch, found, _d_model] = resumed.x.dims();
                if found != pos && !pad {
                    return Err(different("positions", pos, found));
                }
                let x = padded(resumed.x.clone(), pos);
                rows.push(x);
                lengths.extend_from_slice(&resumed.lengths);
                pasts.extend(&resumed.past);
            }
            Ok(WorldInput::Resumed(Resumed {
                stage: first.stage,
                x: Tensor::cat(rows, 0),
                lengths,
                // If some plans have none, all positions are computed, since the residuals are
                // complete.
                past: (pasts.len() == inputs.len()).then(|| join_pasts(&pasts, pos)),
            }))
        }
    }
}

fn join_edits(
    edits: &[&Edit],
    batches: &[usize],
    units: impl Fn(Vec<&Units>) -> Result<Units, PlanError>,
) -> Result<Edit, PlanError> {
    let first = edits[0];
    let mut taken = Vec::new();
    for edit in edits {
        let same = match (&edit.operand, &first.operand) {
            (
                Operand::Activation {
                    world,
                    site,
                    units: from,
                },
                Operand::Activation {
                    world: first_world,
                    site: first_site,
                    ..
                },
            ) => {
                taken.push(from);
                (world.0, site) == (first_world.0, first_site)
            }
            // Each frozen part has its own constants.
            (Operand::Constant(id), Operand::Constant(first)) => id.0 == first.0,
            (operand, first) => operand == first,
        };
        if !same || (edit.site, edit.intervention) != (first.site, first.intervention) {
            return Err(different("edits", first.site, edit.site));
        }
    }
    let features: Vec<_> = edits.iter().map(|edit| &edit.features).collect();
    Ok(Edit {
        units: units(edits.iter().map(|edit| &edit.units).collect())?,
        features: join_indices(&features, batches)?,
        operand: match &first.operand {
            Operand::Activation { world, site, .. } => Operand::Activation {
                world: *world,
                site: *site,
                units: units(taken)?,
            },
            other => other.clone(),
        },
        ..first.clone()
    })
}

fn join_reads(
    reads: &[&Read],
    units: impl Fn(Vec<&Units>) -> Result<Units, PlanError>,
) -> Result<Read, PlanError> {
    let unequal = || different("reads", "the same", "several");
    match reads[0] {
        Read::Activation { world, site, .. } => {
            let all = reads.iter().map(|read| match read {
                Read::Activation {
                    world: other,
                    site: place,
                    units,
                } if (other.0, place) == (world.0, site) => Ok(units),
                _ => Err(unequal()),
            });
            let all = all.collect::<Result<Vec<_>, _>>()?;
            Ok(Read::Activation {
                world: *world,
                site: *site,
                units: units(all)?,
            })
        }
        Read::Logits { world, positions } => {
            let mut each = Vec::new();
            for read in reads {
                match (read, positions) {
                    (
                        Read::Logits {
                            world: other,
                            positions: LogitPositions::Each(more),
                        },
                        LogitPositions::Each(_),
                    ) if other.0 == world.0 => each.extend_from_slice(more),
                    (
                        Read::Logits {
                            world: other,
                            positions: same,
                        },
                        LogitPositions::All | LogitPositions::Last,
                    ) if other.0 == world.0 && same == positions => {}
                    _ => return Err(unequal()),
                }
            }
            let positions = match positions {
                LogitPositions::Each(_) => LogitPositions::Each(each),
                same => same.clone(),
            };
            let world = *world;
            Ok(Read::Logits { world, positions })
        }
    }
}

fn join_indices(all: &[&Indices], batches: &[usize]) -> Result<Indices, PlanError> {
    if all.iter().all(|indices| *indices == all[0]) && !matches!(all[0], Indices::Each(_)) {
        return Ok(all[0].clone());
    }
    let mut each = Vec::new();
    for (indices, batch) in all.iter().zip(batches) {
        match indices {
            Indices::All => return Err(different("indices", all[0], indices)),
            Indices::Same(same) => each.extend(std::iter::repeat_n(same.clone(), *batch)),
            Indices::Each(more) => each.extend_from_slice(more),
        }
    }
    Ok(Indices::Each(each))
}

/// Keys and values of all examples, up to first positions that take few distinct values.
fn join_pasts<B: Backend>(pasts: &[&Past<B>], pos: usize) -> Past<B> {
    let all = pasts.iter().flat_map(|past| past.starts.iter().copied());
    let kinds = merge_suffixes(all.clone().map(|start| (pos, start)), Layout::MOST_CLASSES);
    let starts: Vec<usize> = all
        .map(|start| {
            let kinds = kinds.iter().map(|(_, kind)| *kind);
            let earlier = kinds.filter(|kind| *kind <= start);
            earlier.max().expect("the earliest is kept")
        })
        .collect();
    let longest = starts.iter().copied().max().unwrap_or(0);
    let cat = |tensor: &dyn Fn(&Past<B>) -> Tensor<B, 3>| {
        let all = pasts.iter().map(|past| {
            let x = tensor(past);
            let [_batch, found, _width] = x.dims();
            padded(x.narrow(1, 0, found.min(longest)), longest)
        });
        Tensor::cat(all.collect(), 0)
    };
    let layers = pasts[0].layers.iter().enumerate();
    let layers = layers.map(|(index, kept)| PastLayer {
        layer: kept.layer,
        keys: cat(&|past| past.layers[index].keys.clone()),
        values: cat(&|past| past.layers[index].values.clone()),
    });
    Past {
        layers: layers.collect(),
        kv_heads: pasts[0].kv_heads,
        starts,
    }
}

/// Appends zeros, up to `pos` positions.
fn padded<B: Backend>(x: Tensor<B, 3>, pos: usize) -> Tensor<B, 3> {
    let [batch, found, features] = x.dims();
    if found == pos {
        return x;
    }
    let kind = (&x.device(), x.dtype());
    let none = Tensor::zeros([batch, pos - found, features], kind);
    Tensor::cat(vec![x, none], 1)
}
