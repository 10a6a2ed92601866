//! What a pass has computed becomes caches.

use std::collections::BTreeMap;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::KeysValues;

use super::{Cache, CachedLayer, CachedRow, Chosen};
use crate::engine::groups::{GroupOf, Groups};
use crate::engine::layout::{Layout, int_tensor};
use crate::engine::origin::Origin;
use crate::engine::plan::{Plan, WorldId, WorldInput};
use crate::engine::schedule::Schedule;

/// Where the keys and values of a layer are that a pass has computed.
struct Computed<'a, B: Backend> {
    layout: &'a Layout,
    group_of: Rc<GroupOf>,
    window: Option<usize>,
    kept: &'a KeysValues<B>,
}

/// The layers of a pass that attend; `None` if one of them has kept nothing.
fn computed<'a, B: Backend>(
    schedule: &'a Schedule,
    pass: usize,
    kept: &'a [KeysValues<B>],
) -> Option<Vec<Computed<'a, B>>> {
    let mut layers: Vec<Computed<'a, B>> = Vec::new();
    // The groups of many layers are the same.
    let mut last: Option<(&Groups, Rc<GroupOf>)> = None;
    for (layer, window, stage) in schedule.attentions(pass) {
        let groups: &Groups = &stage.groups;
        let group_of = match last.take() {
            Some((known, group_of)) if ptr::eq(known, groups) => group_of,
            _ => Rc::new(groups.by_world()),
        };
        last = Some((groups, group_of.clone()));
        layers.push(Computed {
            layout: &stage.layout,
            group_of,
            window,
            kept: kept.iter().find(|kept| kept.layer == layer)?,
        });
    }
    Some(layers)
}

/// Rows that get one cache: of one length, and continuing the same cache, if any.
pub(super) struct CacheClass<'p, B: Backend> {
    /// Number of positions.
    pub(super) len: usize,
    /// As `(world, example)`.
    pub(super) rows: Vec<(WorldId, usize)>,
    /// What each of them continues; empty if they continue nothing.
    pub(super) before: Vec<&'p CachedRow<B>>,
}

/// The caches that worlds get which run in one pass.
pub(super) fn classes<'p, B: Backend>(
    plan: &'p Plan<B>,
    worlds: &[WorldId],
) -> Vec<CacheClass<'p, B>> {
    let mut classes: BTreeMap<(usize, Option<usize>), CacheClass<'p, B>> = BTreeMap::new();
    for world in worlds {
        let input = plan.input_of(*world);
        let before = match input {
            WorldInput::Continued(it) => Some(&it.past),
            _ => None,
        };
        let continues = before.map(|it| Arc::as_ptr(&it.cache) as usize);
        for (example, len) in input.lengths().into_iter().enumerate() {
            let class = classes.entry((len, continues));
            let class = class.or_insert_with(|| CacheClass {
                len,
                rows: Vec::new(),
                before: Vec::new(),
            });
            class.rows.push((*world, example));
            class.before.extend(before);
        }
    }
    classes.into_values().collect()
}

/// Rows of worlds, as `(world, example)`, with what they continue; `None` if a layer that attends
/// has not kept its keys and values.
///
/// - kept: what the model's layers have kept
/// - origin: the model
pub(in crate::engine) fn keep<B: Backend>(
    plan: &Plan<B>,
    schedule: &Schedule,
    pass: usize,
    worlds: &[WorldId],
    (kept, origin): (&[KeysValues<B>], &Origin),
) -> Option<Vec<(WorldId, usize, CachedRow<B>)>> {
    let computed = computed(schedule, pass, kept)?;
    let mut tokens_known = Known::new();
    let mut all = Vec::new();
    for CacheClass { len, rows, before } in classes(plan, worlds) {
        let start = before.first().map_or(0, |row| row.pos());
        let chosen = before.iter().map(|row| row.row).collect();
        let continued = before.first().map(|row| &row.cache);
        let continued = continued.map(|cache| (cache, Chosen::new(chosen, cache.rows)));
        let mut layers = Vec::new();
        for (index, of_layer) in computed.iter().enumerate() {
            let layout = of_layer.layout;
            let mut layer = match &continued {
                Some((cache, chosen)) => cache.layers[index].select(chosen),
                None => CachedLayer {
                    layer: of_layer.kept.layer,
                    window: of_layer.window,
                    parts: Vec::new(),
                },
            };
            let first_rows: Vec<usize> = rows
                .iter()
                .map(|(world, example)| layout.first_row(of_layer.group_of.at(*world)) + example)
                .collect();
            let shared = layout.shared(&first_rows, start..len);
            for (range, rows) in [
                (start..shared, &first_rows[..1]),
                (shared..len, &first_rows[..]),
            ] {
                if !range.is_empty() {
                    let tokens = rows
                        .iter()
                        .flat_map(|row| range.clone().map(|position| layout.token(*row, position)));
                    let tokens: Vec<usize> = tokens.collect();
                    let sizes = [rows.len(), range.len()];
                    let new = [&of_layer.kept.keys, &of_layer.kept.values]
                        .map(|x| take(x, &tokens, sizes, &mut tokens_known));
                    layer.push(new);
                }
            }
            if start == 0 {
                layer.settle(rows.len());
            }
            layers.push(layer);
        }
        let cache = Arc::new(Cache {
            rows: rows.len(),
            len,
            origin: origin.clone(),
            layers,
        });
        for (row, (world, example)) in rows.into_iter().enumerate() {
            let cached = CachedRow {
                cache: cache.clone(),
                row,
                tokens: plan.tokens_of_example(world, example).into(),
            };
            all.push((world, example, cached));
        }
    }
    Some(all)
}

/// Lists of tokens that have been copied to the device. Layers with the same rows share them.
type Known<B> = Vec<(Vec<usize>, Tensor<B, 1, Int>)>;

/// Some tokens of all rows, row by row.
///
/// # Shapes
/// - x: `[row, kv_head, pos, d_head]`
/// - output: `[rows, kv_head, count, d_head]`
fn take<B: Backend>(
    x: &Tensor<B, 4>,
    tokens: &[usize],
    [rows, count]: [usize; 2],
    known: &mut Known<B>,
) -> Tensor<B, 4> {
    let [all_rows, kv_head, pos, d_head] = x.dims();
    // All tokens, one for each row.
    if all_rows == 1 && count == 1 && tokens.iter().copied().eq(0..pos) {
        return x
            .clone()
            .swap_dims(0, 2)
            .swap_dims(1, 2)
            .reshape([rows, kv_head, 1, d_head]);
    }
    let latest = known.iter().rev().find(|(other, _)| other == tokens);
    let indices = match latest {
        Some((_, indices)) => indices.clone(),
        None => {
            let indices = int_tensor(tokens.iter().copied(), &x.device());
            known.push((tokens.to_vec(), indices.clone()));
            indices
        }
    };
    x.clone()
        .swap_dims(1, 2)
        .reshape([all_rows * pos, kv_head * d_head])
        .select(0, indices)
        .reshape([rows, count, kv_head, d_head])
        .swap_dims(1, 2)
}
