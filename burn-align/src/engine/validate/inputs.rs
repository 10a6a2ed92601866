//! Checking the inputs of a plan, and rows that are continued or are to be.

use std::collections::HashSet;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_align_models::{
    AlignableTransformer, InputKinds, Mixing, ModelDims, ModelLayout, TokenBatch, TokensError,
};

use super::check_world;
use crate::engine::cache::Continued;
use crate::engine::origin::{Difference, Origin};
use crate::engine::plan::{Plan, Read, WorldId};
use crate::engine::stages::Stages;
use crate::engine::{PlanError, WorldInput};

/// Checks that the keys and values of worlds can be kept.
pub(in crate::engine) fn check_continuable<B: Backend>(
    plan: &Plan<B>,
    layout: &ModelLayout,
    worlds: &[WorldId],
) -> Result<(), PlanError> {
    let attends_twice = layout.layers().iter().any(|layer| {
        let sublayers = layer.sublayers().iter();
        let attentions = sublayers.filter(|it| matches!(it.mixing(), Mixing::Causal { .. }));
        attentions.count() > 1
    });
    let needs_rows = !Stages::new(layout).run_suffixes();
    let logits = plan.open_reads().filter_map(|(_, read)| match read {
        Read::Logits { world, .. } => Some(*world),
        Read::Activation { .. } => None,
    });
    let logits: HashSet<WorldId> = logits.collect();
    for world in worlds {
        check_world(plan, *world)?;
        let reason = match plan.input_of(*world) {
            _ if needs_rows => "a layer of the model needs whole rows",
            _ if attends_twice => "a layer of the model attends twice",
            WorldInput::Features(_) => "its input is vectors, not tokens",
            WorldInput::Resumed(_) => "the plan was frozen",
            _ if !logits.contains(world) => "none of its logits are read",
            WorldInput::Tokens(_) | WorldInput::Continued(_) => continue,
        };
        return Err(PlanError::NotContinuable {
            world: world.0,
            reason,
        });
    }
    Ok(())
}

/// Checks that a model can read the inputs of a plan.
pub(super) fn check_inputs<B: Backend, M: AlignableTransformer<B>>(
    plan: &Plan<B>,
    model: &M,
) -> Result<(), PlanError> {
    let layout = model.layout();
    let (dims, kinds) = (layout.dims(), layout.inputs());
    let (mut tokens, mut resumed, mut continued) = (0, 0, 0);
    let is_continued = |input: &WorldInput<B>| matches!(input, WorldInput::Continued(_));
    let any_continued = plan.inputs.iter().any(is_continued);
    let needs_rows = any_continued && !Stages::new(layout).run_suffixes();
    let goes_on =
        |input: &WorldInput<B>| matches!(input, WorldInput::Resumed(_) | WorldInput::Continued(_));
    let origin = plan.inputs.iter().any(goes_on).then(|| Origin::of(model));
    // Rows share caches.
    let mut fitting: HashSet<usize> = HashSet::new();
    for (index, input) in plan.inputs.iter().enumerate() {
        let found = match input {
            WorldInput::Tokens(_) => InputKinds {
                tokens: true,
                features: None,
            },
            WorldInput::Features(x) => InputKinds::features(x.dims()[2]),
            WorldInput::Resumed(_) => kinds,
            WorldInput::Continued(_) => InputKinds {
                tokens: true,
                features: None,
            },
        };
        if (found.tokens && !kinds.tokens)
            || (found.features.is_some() && found.features != kinds.features)
        {
            return Err(PlanError::InputKind {
                input: index,
                expected: kinds,
                found,
            });
        }
        let checked = match input {
            WorldInput::Tokens(batch) => {
                tokens += 1;
                batch.check(dims)
            }
            WorldInput::Features(features) => check_features_input(features.dims(), dims),
            WorldInput::Resumed(run) => {
                resumed += 1;
                let difference = |model| run.origin.difference(model);
                if let Some(difference) = origin.as_ref().and_then(difference) {
                    let Difference {
                        what,
                        expected,
                        found,
                    } = difference;
                    return Err(PlanError::FrozenMisfit {
                        input: index,
                        what,
                        expected,
                        found,
                    });
                }
                Ok(())
            }
            WorldInput::Continued(row) => {
                continued += 1;
                let is_new = fitting.insert(Arc::as_ptr(&row.past.cache) as usize);
                let fits = || origin.as_ref().is_some_and(|model| row.past.is_of(model));
                if needs_rows || (is_new && !fits()) {
                    return Err(PlanError::CacheMisfit { input: index });
                }
                check_continued(row, dims)
            }
        };
        checked.map_err(|cause| PlanError::Input {
            input: index,
            cause,
        })?;
    }
    if [tokens, resumed, continued]
        .iter()
        .any(|count| *count != 0 && *count != plan.inputs.len())
    {
        return Err(PlanError::MixedInputs);
    }
    Ok(())
}

/// Checks the sizes of vectors, as for token ids.
fn check_features_input(
    [batch, pos, _feature]: [usize; 3],
    dims: &ModelDims,
) -> Result<(), TokensError> {
    match dims.max_positions {
        _ if batch == 0 => Err(TokensError::EmptyBatch),
        _ if pos == 0 => Err(TokensError::EmptyExample { example: 0 }),
        Some(max_positions) if pos > max_positions => Err(TokensError::TooLong {
            example: 0,
            found: pos,
            max_positions,
        }),
        _ => Ok(()),
    }
}

/// Checks the new tokens of a row, and its length.
fn check_continued<B: Backend>(row: &Continued<B>, dims: &ModelDims) -> Result<(), TokensError> {
    let new = TokenBatch::new(vec![row.tokens.clone()])?;
    new.check(dims)?;
    match dims.max_positions {
        Some(max_positions) if row.pos() > max_positions => Err(TokensError::TooLong {
            example: 0,
            found: row.pos(),
            max_positions,
        }),
        _ => Ok(()),
    }
}
