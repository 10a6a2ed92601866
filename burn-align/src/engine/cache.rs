//! Runs that can be continued: the keys and values of all their positions, kept.
//!
//! Rows of one length share a [`Cache`], in parts: what all rows have in common is there once. Each step
//! adds a short part, and short parts are joined now and then, so a step copies little. For example, three
//! worlds on a prompt of 5 positions, of which two are edited at position 3: layers before the edit have
//! one part, `[1, kv_head, 5, d_head]`; later ones have what comes before position 3 once, and the rest three
//! times, `[1, kv_head, 3, d_head]` and `[3, kv_head, 2, d_head]`.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::{KeysValues, Mixing, Sublayer};

use super::PlanError;
use super::groups::Groups;
use super::layout::{Layout, int_tensor};
use super::plan::{Plan, WorldId, WorldInput};
use super::schedule::{Pass, Schedule};
use super::stages::{Stage, Stages, Step};
use super::zip::{Role, TensorZip};

/// The keys and values of rows of one length.
#[derive(Clone, Debug)]
pub(super) struct Cache<B: Backend> {
    rows: usize,
    /// Number of positions.
    len: usize,
    layers: Vec<CachedLayer<B>>,
}

/// One layer of a [`Cache`].
#[derive(Clone, Debug)]
struct CachedLayer<B: Backend> {
    layer: usize,
    /// How many positions a query sees, itself included, if fewer than all.
    window: Option<usize>,
    /// In the order of their positions; each with one row for each row of the cache, or one for all.
    parts: Vec<[Tensor<B, 4>; 2]>,
}

/// A row of a run whose keys and values are kept: where it can be continued.
#[derive(Clone, Debug)]
pub struct CachedRow<B: Backend> {
    pub(super) cache: Arc<Cache<B>>,
    pub(super) row: usize,
}

impl<B: Backend> CachedRow<B> {
    /// Number of positions.
    pub fn pos(&self) -> usize {
        self.cache.len
    }

    /// The row with more tokens: an input of one example, whose worlds compute only these.
    pub fn then(&self, tokens: impl Into<Vec<u32>>) -> WorldInput<B> {
        WorldInput::Continued(Continued {
            tokens: tokens.into(),
            past: self.clone(),
        })
    }
}

/// For each world that was to be continued: a row for each example.
pub type CachedRows<B> = Vec<Vec<CachedRow<B>>>;

/// A row with tokens after it.
#[derive(Clone, Debug)]
pub struct Continued<B: Backend> {
    pub(super) tokens: Vec<u32>,
    pub(super) past: CachedRow<B>,
}

impl<B: Backend> Continued<B> {
    /// Number of positions, cached ones included.
    pub(super) fn pos(&self) -> usize {
        self.past.pos() + self.tokens.len()
    }
}

impl<B: Backend> Continued<B> {
    /// The same row with other tensors.
    pub(super) fn zip<A: Backend>(
        &self,
        tensor: &mut TensorZip<'_, B, A>,
    ) -> Result<Continued<A>, PlanError> {
        let CachedRow { cache, row } = &self.past;
        let starts = [cache.len];
        let mut convert = |x: &Tensor<B, 4>| {
            let [rows, kv_head, pos, d_head] = x.dims();
            let flat = x.clone().reshape([rows * kv_head, pos, d_head]);
            let role = Role::Past { starts: &starts };
            Ok(tensor(role, &[&flat])?.reshape([rows, kv_head, pos, d_head]))
        };
        let mut layers = Vec::with_capacity(cache.layers.len());
        for layer in &cache.layers {
            let mut parts = Vec::with_capacity(layer.parts.len());
            for [keys, values] in &layer.parts {
                parts.push([convert(keys)?, convert(values)?]);
            }
            layers.push(CachedLayer {
                layer: layer.layer,
                window: layer.window,
                parts,
            });
        }
        Ok(Continued {
            tokens: self.tokens.clone(),
            past: CachedRow {
                cache: Arc::new(Cache {
                    rows: cache.rows,
                    len: cache.len,
                    layers,
                }),
                row: *row,
            },
        })
    }
}

/// Positions of a part from which on it is no longer joined with the next one.
const LONG: usize = 64;

impl<B: Backend> CachedLayer<B> {
    /// Number of positions that are kept.
    fn len(&self) -> usize {
        let parts = self.parts.iter().map(|[keys, _]| keys.dims()[2]);
        parts.sum()
    }

    /// Some rows of `all`.
    fn select(&self, rows: &[usize], all: usize) -> Self {
        let chosen = (!rows.iter().copied().eq(0..all)).then_some(rows);
        let parts = self.parts.iter().map(|part| match chosen {
            Some(chosen) if part[0].dims()[0] == all && all > 1 => {
                let device = part[0].device();
                let indices: Tensor<B, 1, Int> = int_tensor(chosen.iter().copied(), &device);
                part.clone().map(|x| x.select(0, indices.clone()))
            }
            // Shared by all rows.
            _ => part.clone(),
        });
        Self {
            parts: parts.collect(),
            ..self.clone()
        }
    }

    /// Adds keys and values of the next positions, `[row, kv_head, pos, d_head]`.
    fn push(&mut self, new: [Tensor<B, 4>; 2]) {
        let [rows, _, more, _] = new[0].dims();
        let Some(last) = self.parts.last_mut() else {
            self.parts.push(new);
            return;
        };
        let [last_rows, _, count, _] = last[0].dims();
        if last_rows != rows || count >= LONG {
            self.parts.push(new);
        } else {
            *last = cat(last.clone(), new);
            if count + more >= LONG {
                self.settle(rows);
            }
        }
    }

    /// Joins the last part with the one before, and leaves out what no query can see.
    fn settle(&mut self, rows: usize) {
        if let [.., before, _] = &self.parts[..]
            && before[0].dims()[0] == rows
            && let (Some(last), Some(before)) = (self.parts.pop(), self.parts.pop())
        {
            self.parts.push(cat(before, last));
        }
        let Some(window) = self.window else {
            return;
        };
        let mut unseen = self.len().saturating_sub(window);
        while unseen > 0 {
            let [_, _, count, _] = self.parts[0][0].dims();
            if count <= unseen {
                self.parts.remove(0);
                unseen -= count;
            } else {
                let first = self.parts[0].clone();
                self.parts[0] = first.map(|x| x.narrow(2, unseen, count - unseen));
                unseen = 0;
            }
        }
    }
}

fn cat<B: Backend>(
    [k, v]: [Tensor<B, 4>; 2],
    [k_new, v_new]: [Tensor<B, 4>; 2],
) -> [Tensor<B, 4>; 2] {
    [
        Tensor::cat(vec![k, k_new], 2),
        Tensor::cat(vec![v, v_new], 2),
    ]
}

impl<B: Backend> Cache<B> {
    /// Keys and values before the suffixes of rows, which all have the same number of positions.
    pub(super) fn prefixes(rows: &[&CachedRow<B>]) -> Vec<KeysValues<B>> {
        // Neighbours in one cache.
        let mut runs: Vec<(&Arc<Self>, Vec<usize>)> = Vec::new();
        for row in rows {
            match runs.last_mut() {
                Some((last, chosen)) if Arc::ptr_eq(last, &row.cache) => chosen.push(row.row),
                _ => runs.push((&row.cache, vec![row.row])),
            }
        }
        let Some((first, _)) = runs.first() else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for index in 0..first.layers.len() {
            let layer = first.layers[index].layer;
            let chosen = runs
                .iter()
                .map(|(cache, rows)| (cache.layers[index].select(rows, cache.rows), rows.len()));
            let chosen: Vec<(CachedLayer<B>, usize)> = chosen.collect();
            let parts = match &chosen[..] {
                [(only, _)] => only.parts.clone(),
                // Caches have different parts, and what no query sees may be left out of some.
                several => {
                    let shortest = several.iter().map(|(layer, _)| layer.len()).min();
                    let shortest = shortest.unwrap_or(0);
                    let whole = several.iter().map(|(layer, rows)| {
                        let parts = layer.parts.iter().map(|part| {
                            part.clone().map(|x| match x.dims()[0] == *rows {
                                true => x,
                                false => x.repeat_dim(0, *rows),
                            })
                        });
                        let [k, v] = parts.reduce(cat).expect("a cache is not empty");
                        let skipped = layer.len() - shortest;
                        [k, v].map(|x| x.narrow(2, skipped, shortest))
                    });
                    let (keys, values): (Vec<_>, Vec<_>) = whole.map(|[k, v]| (k, v)).unzip();
                    vec![[Tensor::cat(keys, 0), Tensor::cat(values, 0)]]
                }
            };
            all.extend(parts.into_iter().map(|[keys, values]| KeysValues {
                layer,
                keys,
                values,
            }));
        }
        all
    }
}

/// Where the keys and values of a pass are.
struct Computed<'a, B: Backend> {
    pass: &'a Pass,
    stages: &'a Stages,
    kept: &'a [KeysValues<B>],
}

impl<B: Backend> Computed<'_, B> {
    /// For each layer that attends: its layout, the groups' first rows by world, and the tensors.
    fn layers(&self) -> impl Iterator<Item = (&Layout, &Groups, Option<usize>, &KeysValues<B>)> {
        let attends = self.pass.stages.iter().filter(|stage| {
            matches!(
                stage.stage,
                Stage::Layer {
                    step: Step::Run,
                    ..
                }
            ) && matches!(self.stages.mixing(stage.stage), Mixing::Causal { .. })
        });
        attends.filter_map(|stage| {
            let Stage::Layer { layer, .. } = stage.stage else {
                return None;
            };
            let kept = self.kept.iter().find(|kept| kept.layer == layer)?;
            let window = match self.stages.sublayer(stage.stage).map(Sublayer::mixing) {
                Some(Mixing::Causal { window }) => window,
                _ => None,
            };
            Some((&*stage.layout, &*stage.groups, window, kept))
        })
    }
}

/// Rows of worlds, as `(world, example)`, with what they continue.
pub(super) fn keep<B: Backend>(
    plan: &Plan<B>,
    schedule: &Schedule,
    pass: usize,
    worlds: &[WorldId],
    kept: &[KeysValues<B>],
) -> Vec<(WorldId, usize, CachedRow<B>)> {
    let computed = Computed {
        pass: &schedule.passes[pass],
        stages: &schedule.stages,
        kept,
    };
    // Rows of one length that continue the same cache, if any, get one cache.
    type Key = (usize, Option<usize>);
    let mut classes: Vec<(Key, Vec<(WorldId, usize)>)> = Vec::new();
    for world in worlds {
        let input = plan.input_of(*world);
        for (example, length) in input.lengths().into_iter().enumerate() {
            let continues = match input {
                WorldInput::Continued(it) => Some(Arc::as_ptr(&it.past.cache) as usize),
                _ => None,
            };
            let key = (length, continues);
            match classes.iter_mut().find(|(other, _)| *other == key) {
                Some((_, rows)) => rows.push((*world, example)),
                None => classes.push((key, vec![(*world, example)])),
            }
        }
    }
    let mut all = Vec::new();
    for ((len, _), rows) in classes {
        let before: Vec<&CachedRow<B>> = rows
            .iter()
            .filter_map(|(world, _)| match plan.input_of(*world) {
                WorldInput::Continued(it) => Some(&it.past),
                _ => None,
            })
            .collect();
        let start = before.first().map_or(0, |row| row.pos());
        let mut layers = Vec::new();
        // Where the rows are; the groups of many layers are the same.
        let mut places: Option<(&Groups, HashMap<WorldId, usize>)> = None;
        for (index, (layout, groups, window, kept)) in computed.layers().enumerate() {
            let (_, group_of) = match places.take() {
                Some(known) if ptr::eq(known.0, groups) => places.insert(known),
                _ => places.insert((groups, groups.by_world())),
            };
            let mut layer = match before.first() {
                Some(first) => {
                    let chosen: Vec<usize> = before.iter().map(|row| row.row).collect();
                    first.cache.layers[index].select(&chosen, first.cache.rows)
                }
                None => CachedLayer {
                    layer: kept.layer,
                    window,
                    parts: Vec::new(),
                },
            };
            let first_rows: Vec<usize> = rows
                .iter()
                .map(|(world, example)| layout.first_row(group_of[world]) + example)
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
                    let new = [&kept.keys, &kept.values]
                        .map(|x| take(x, &tokens, [rows.len(), range.len()]));
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
            layers,
        });
        for (row, (world, example)) in rows.into_iter().enumerate() {
            let cache = cache.clone();
            all.push((world, example, CachedRow { cache, row }));
        }
    }
    all
}

/// Some tokens of all rows, row by row.
///
/// # Shapes
/// - x: `[row, kv_head, pos, d_head]`
/// - output: `[rows, kv_head, count, d_head]`
fn take<B: Backend>(x: &Tensor<B, 4>, tokens: &[usize], [rows, count]: [usize; 2]) -> Tensor<B, 4> {
    let [all_rows, kv_head, pos, d_head] = x.dims();
    // All tokens, one for each row.
    if all_rows == 1 && count == 1 && tokens.iter().copied().eq(0..pos) {
        return x
            .clone()
            .swap_dims(0, 2)
            .swap_dims(1, 2)
            .reshape([rows, kv_head, 1, d_head]);
    }
    let device = x.device();
    let x = x
        .clone()
        .swap_dims(1, 2)
        .reshape([all_rows * pos, kv_head * d_head]);
    x.select(0, int_tensor(tokens.iter().copied(), &device))
        .reshape([rows, count, kv_head, d_head])
        .swap_dims(1, 2)
}
