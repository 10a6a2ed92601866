//! The one walk over everything in a plan: several plans that differ in their examples become one.
//!
//! Whatever turns plans into another one follows from it, so a new field of a plan is handled here
//! and nowhere else: [`Plan::join`] zips several plans; [`Plan::examples`], [`Plan::from_inner`],
//! [`Plan::to_device`] and [`Plan::held_bytes`] zip a single one.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Deref;

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::TokenBatch;

use super::cache::Caches;
use super::layout::merge_suffixes;
use super::origin::Difference;
use super::past::{Past, PastLayer};
use super::plan::{Edit, LogitPositions, Operand, Plan, Read, Resumed, World, WorldInput};
use super::{Indices, PlanError, Units};

/// What a tensor of a plan holds.
#[derive(Clone, Copy)]
pub(super) enum Role<'a> {
    /// An input, `[batch, pos, feature]`.
    Features,
    /// The residual stream of a resumed run, `[batch, pos, d_model]`.
    Residual {
        /// Number of positions of each example of the new plan.
        lengths: &'a [usize],
    },
    /// Cached keys or values, `[batch, pos, kv_head * d_head]`.
    Past {
        /// For each example of the new plan: the first position that still has to be computed.
        starts: &'a [usize],
    },
    /// Keys or values of a row that is continued, `[row * kv_head, pos, d_head]`: the same for any
    /// examples.
    Cache,
    /// An operand, `[batch or 1, unit or 1, d_site]`.
    Constant,
    /// The value of a read, `[batch, unit, feature]`.
    Known,
}

/// Makes a tensor from those that the plans have in its place, of which there is at least one.
pub(super) type TensorZip<'a, B, A> =
    dyn FnMut(Role<'_>, &[&Tensor<B, 3>]) -> Result<Tensor<A, 3>, PlanError> + 'a;

impl<B: Backend> Plan<B> {
    /// One plan with the examples of all, or with some examples of a single plan. The ids of the
    /// first plan stay valid, and so do those of the plan that it is a part of.
    ///
    /// - chosen: the examples to keep, of a single plan
    ///
    /// # Errors
    /// If the plans differ in more than their examples, or `tensor` fails. A single plan never
    /// differs.
    pub(super) fn zip<A: Backend>(
        plans: &[&Self],
        chosen: Option<&[usize]>,
        tensor: &mut TensorZip<'_, B, A>,
    ) -> Result<Plan<A>, PlanError> {
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
        let batches = plans.iter().map(|plan| plan.batch()).collect();
        let examples = Examples { batches, chosen };
        let mut caches = Caches::new();
        Ok(Plan {
            inputs: each(plans.iter().map(|plan| &plan.inputs), |_, inputs| {
                examples.input(inputs, tensor, &mut caches)
            })?,
            constants: each(plans.iter().map(|plan| &plan.constants), |_, constants| {
                tensor(Role::Constant, constants)
            })?,
            worlds: each(plans.iter().map(|plan| &plan.worlds), |index, worlds| {
                examples.world(index, worlds)
            })?,
            reads: each(plans.iter().map(|plan| &plan.reads), |_, reads| {
                examples.read(reads)
            })?,
            known: each(plans.iter().map(|plan| &plan.known), |_, values| {
                let values: Vec<&Tensor<B, 3>> = values.iter().copied().flatten().collect();
                match values.len() {
                    0 => Ok(None),
                    all if all == plans.len() => tensor(Role::Known, &values).map(Some),
                    some => Err(different("frozen reads", plans.len(), some)),
                }
            })?,
            marks: first.marks.clone(),
        })
    }

    /// Number of examples of the first input.
    pub(super) fn batch(&self) -> usize {
        self.inputs.first().map_or(0, WorldInput::batch)
    }

    /// Whether nothing in the plan depends on the number of positions.
    pub(super) fn names_its_positions(&self) -> bool {
        let named = |units: &Units| units.positions != Indices::All;
        let mut edits = self.worlds.iter().flat_map(|world| &world.edits);
        let edits_name = edits.all(|edit| match &edit.operand {
            Operand::None => true,
            Operand::Constant(_) => named(&edit.units),
            Operand::Activation {
                world: _,
                site: _,
                units,
            } => named(&edit.units) && named(units),
        });
        let known = self.reads.iter().zip(&self.known);
        let mut known = known.filter(|(_read, value)| value.is_some());
        let reads_name = known.all(|(read, _value)| match read {
            Read::Activation {
                world: _,
                site: _,
                units,
            } => named(units),
            Read::Logits {
                world: _,
                positions,
            } => *positions != LogitPositions::All,
        });
        edits_name && reads_name
    }
}

/// The error for plans that cannot be joined.
pub(super) fn different(what: &'static str, expected: impl Debug, found: impl Debug) -> PlanError {
    PlanError::Different {
        what,
        expected: format!("{expected:?}"),
        found: format!("{found:?}"),
    }
}

/// Zips lists of the same length, index by index.
fn each<'a, T: 'a, U>(
    lists: impl Iterator<Item = &'a Vec<T>>,
    mut zip: impl FnMut(usize, &[&'a T]) -> Result<U, PlanError>,
) -> Result<Vec<U>, PlanError> {
    let lists: Vec<&'a Vec<T>> = lists.collect();
    let entries = |index: usize| lists.iter().map(|list| &list[index]).collect::<Vec<_>>();
    let indices = 0..lists[0].len();
    indices.map(|index| zip(index, &entries(index))).collect()
}

/// How the examples of plans become those of the new plan.
struct Examples<'a> {
    /// Number of examples of each plan.
    batches: Vec<usize>,
    /// The examples to keep of a single plan.
    chosen: Option<&'a [usize]>,
}

impl Examples<'_> {
    /// Joins lists with an entry for each example, or selects from a single one.
    fn list<T: Clone, L: Deref<Target = [T]>>(&self, lists: impl IntoIterator<Item = L>) -> Vec<T> {
        let lists: Vec<L> = lists.into_iter().collect();
        match (&lists[..], self.chosen) {
            // A list of the wrong length is rejected when the plan is run.
            ([list], Some(chosen)) if chosen.iter().all(|example| *example < list.len()) => {
                chosen.iter().map(|it| list[*it].clone()).collect()
            }
            _ => lists.iter().flat_map(|list| list.iter().cloned()).collect(),
        }
    }

    fn input<B: Backend, A: Backend>(
        &self,
        inputs: &[&WorldInput<B>],
        tensor: &mut TensorZip<'_, B, A>,
        caches: &mut Caches<A>,
    ) -> Result<WorldInput<A>, PlanError> {
        let (mut ids, mut features, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        let mut continued = Vec::new();
        for input in inputs {
            match input {
                WorldInput::Tokens(tokens) => ids.push(tokens.ids()),
                WorldInput::Features(x) => features.push(x),
                WorldInput::Resumed(resumed) => runs.push(resumed),
                WorldInput::Continued(row) => continued.push(row),
            }
        }
        match [ids.len(), features.len(), runs.len()].map(|found| found == inputs.len()) {
            [true, _, _] => match TokenBatch::new(self.list(ids)) {
                Ok(tokens) => Ok(WorldInput::Tokens(tokens)),
                Err(cause) => Err(PlanError::Input { input: 0, cause }),
            },
            [_, true, _] => Ok(WorldInput::Features(tensor(Role::Features, &features)?)),
            [_, _, true] => Ok(WorldInput::Resumed(self.resumed(&runs, tensor)?)),
            _ => match &continued[..] {
                // A row is an input of its own.
                [row] if inputs.len() == 1 && self.chosen.is_none_or(|chosen| chosen == [0]) => {
                    Ok(WorldInput::Continued(row.zip(tensor, caches)?))
                }
                rows if rows.len() == inputs.len() => {
                    let found = self.chosen.map_or(inputs.len(), <[usize]>::len);
                    Err(different("examples of a row that is continued", 1, found))
                }
                _ => Err(different("kinds of inputs", "the same", "several")),
            },
        }
    }

    fn resumed<B: Backend, A: Backend>(
        &self,
        runs: &[&Resumed<B>],
        tensor: &mut TensorZip<'_, B, A>,
    ) -> Result<Resumed<A>, PlanError> {
        let Resumed { origin, stage, .. } = runs[0];
        if let Some(other) = runs.iter().find_map(|run| origin.difference(&run.origin)) {
            let Difference {
                what,
                expected,
                found,
            } = other;
            return Err(PlanError::Different {
                what,
                expected,
                found,
            });
        }
        if let Some(other) = runs.iter().find(|run| run.stage != *stage) {
            return Err(different("first stages", stage, other.stage));
        }
        let lengths = self.list(runs.iter().map(|run| &run.lengths[..]));
        let residuals: Vec<_> = runs.iter().map(|run| &run.x).collect();
        let pasts: Vec<_> = runs.iter().filter_map(|run| run.past.as_ref()).collect();
        Ok(Resumed {
            origin: origin.clone(),
            stage: *stage,
            x: tensor(Role::Residual { lengths: &lengths }, &residuals)?,
            lengths,
            // If some plans have none, all positions are computed, since the residuals are
            // complete.
            past: match pasts.len() == runs.len() {
                true => Some(self.past(&pasts, tensor)?),
                false => None,
            },
        })
    }

    fn past<B: Backend, A: Backend>(
        &self,
        pasts: &[&Past<B>],
        tensor: &mut TensorZip<'_, B, A>,
    ) -> Result<Past<A>, PlanError> {
        let starts = self.list(pasts.iter().map(|past| &past.starts[..]));
        // Each plan has few distinct ones, but together they may have more. All end alike.
        let suffixes = starts.iter().map(|start| (0, *start));
        let kinds = merge_suffixes(suffixes);
        let earlier = |start: &usize| {
            let kinds = kinds.iter().map(|(_, kind)| *kind);
            let earlier = kinds.filter(|kind| kind <= start);
            earlier.max().expect("the earliest is kept")
        };
        let starts: Vec<usize> = starts.iter().map(earlier).collect();
        let layers = each(pasts.iter().map(|past| &past.layers), |_, layers| {
            let keys: Vec<_> = layers.iter().map(|kept| &kept.keys).collect();
            let values: Vec<_> = layers.iter().map(|kept| &kept.values).collect();
            let role = Role::Past { starts: &starts };
            Ok(PastLayer {
                layer: layers[0].layer,
                keys: tensor(role, &keys)?,
                values: tensor(role, &values)?,
            })
        })?;
        Ok(Past {
            layers,
            kv_heads: pasts[0].kv_heads,
            starts,
        })
    }

    fn world(&self, index: usize, worlds: &[&World]) -> Result<World, PlanError> {
        let fixed = |world: &World| (world.input.0, world.edits.len(), world.frozen);
        let first = worlds[0];
        if worlds.iter().any(|world| fixed(world) != fixed(first)) {
            return Err(different("worlds", "the same", index));
        }
        Ok(World {
            input: first.input,
            edits: each(worlds.iter().map(|world| &world.edits), |_, edits| {
                self.edit(edits)
            })?,
            frozen: first.frozen,
        })
    }

    fn edit(&self, edits: &[&Edit]) -> Result<Edit, PlanError> {
        let (mut fixed, mut taken) = (Vec::new(), Vec::new());
        for edit in edits {
            let operand = match &edit.operand {
                Operand::None => None,
                Operand::Activation { world, site, units } => {
                    taken.push(units);
                    Some((world.0, Some(site)))
                }
                // Each frozen part has its own constants.
                Operand::Constant(id) => Some((id.0, None)),
            };
            fixed.push((edit.site, edit.intervention, operand));
        }
        if let Some((site, _, _)) = fixed.iter().find(|edit| **edit != fixed[0]) {
            return Err(different("edits", edits[0].site, site));
        }
        Ok(Edit {
            site: edits[0].site,
            units: self.units(edits.iter().map(|edit| &edit.units))?,
            features: self.indices(edits.iter().map(|edit| &edit.features))?,
            intervention: edits[0].intervention,
            operand: match edits[0].operand {
                Operand::None => Operand::None,
                Operand::Activation {
                    world,
                    site,
                    units: _,
                } => Operand::Activation {
                    world,
                    site,
                    units: self.units(taken.into_iter())?,
                },
                Operand::Constant(id) => Operand::Constant(id),
            },
        })
    }

    fn read(&self, reads: &[&Read]) -> Result<Read, PlanError> {
        let (mut taken, mut listed) = (Vec::new(), Vec::new());
        let mut fixed = Vec::new();
        for read in reads {
            fixed.push(match read {
                Read::Activation { world, site, units } => {
                    taken.push(units);
                    (world.0, Some(site), None)
                }
                Read::Logits { world, positions } => match positions {
                    LogitPositions::All | LogitPositions::Last => (world.0, None, Some(positions)),
                    LogitPositions::Each(each) => {
                        listed.push(&each[..]);
                        (world.0, None, None)
                    }
                },
            });
        }
        if fixed.iter().any(|read| *read != fixed[0]) {
            return Err(different("reads", "the same", "several"));
        }
        Ok(match reads[0] {
            Read::Activation {
                world,
                site,
                units: _,
            } => Read::Activation {
                world: *world,
                site: *site,
                units: self.units(taken.into_iter())?,
            },
            Read::Logits { world, positions } => Read::Logits {
                world: *world,
                positions: match positions {
                    LogitPositions::All => LogitPositions::All,
                    LogitPositions::Last => LogitPositions::Last,
                    LogitPositions::Each(_) => LogitPositions::Each(self.list(listed)),
                },
            },
        })
    }

    fn units<'b>(&self, all: impl Iterator<Item = &'b Units> + Clone) -> Result<Units, PlanError> {
        Ok(Units {
            heads: self.indices(all.clone().map(|units| &units.heads))?,
            positions: self.indices(all.map(|units| &units.positions))?,
        })
    }

    fn indices<'b>(&self, all: impl Iterator<Item = &'b Indices>) -> Result<Indices, PlanError> {
        let all: Vec<&Indices> = all.collect();
        let first = all[0];
        if !matches!(first, Indices::Each(_)) && all.iter().all(|other| *other == first) {
            return Ok(first.clone());
        }
        let lists = all.iter().zip(&self.batches);
        let lists = lists.map(|(indices, batch)| match indices {
            Indices::All => Err(different("indices", first, indices)),
            Indices::Each(each) => Ok(Cow::Borrowed(&each[..])),
            Indices::Same(same) => Ok(Cow::Owned(vec![same.clone(); *batch])),
        });
        let lists: Vec<Cow<'_, [Vec<usize>]>> = lists.collect::<Result<_, _>>()?;
        Ok(Indices::Each(self.list(lists)))
    }
}
