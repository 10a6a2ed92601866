//! Runs that can be continued: the keys and values of all their positions, kept.
//!
//! Rows of one length share a [`Cache`], in parts: what all rows have in common is there once. Each
//! step adds a short part, and short parts are joined now and then, so a step copies little. For
//! example, three worlds on a prompt of 5 positions, of which two are edited at position 3: layers
//! before the edit have one part, `[1, kv_head, 5, d_head]`; later ones have what comes before
//! position 3 once, and the rest three times, `[1, kv_head, 3, d_head]` and
//! `[3, kv_head, 2, d_head]`.

mod explain;
mod keeping;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align_models::KeysValues;

pub use self::explain::CacheExplanation;

pub(super) use self::keeping::keep;
use self::keeping::{CacheClass, classes};
use super::PlanError;
use super::layout::int_tensor;
use super::origin::Origin;
use super::plan::WorldInput;
use super::zip::{Role, TensorZip};

/// The keys and values of rows of one length.
#[derive(Clone, Debug)]
pub(super) struct Cache<B: Backend> {
    rows: usize,
    /// Number of positions.
    len: usize,
    /// The model that has computed them.
    origin: Origin,
    layers: Vec<CachedLayer<B>>,
}

/// One layer of a [`Cache`].
#[derive(Clone, Debug)]
struct CachedLayer<B: Backend> {
    layer: usize,
    /// How many positions a query sees, itself included, if fewer than all.
    window: Option<usize>,
    /// In the order of their positions; each with one row for each row of the cache, or one for
    /// all.
    parts: Vec<[Tensor<B, 4>; 2]>,
}

/// A row of a run whose keys and values are kept: where it can be continued.
#[derive(Clone, Debug)]
pub struct CachedRow<B: Backend> {
    pub(super) cache: Arc<Cache<B>>,
    pub(super) row: usize,
    tokens: Arc<[u32]>,
}

impl<B: Backend> CachedRow<B> {
    /// Number of positions.
    pub fn pos(&self) -> usize {
        self.cache.len
    }

    /// The token at each position.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The row as it was after its first `pos` positions, without the rows that were computed with
    /// it: where a text can be continued that begins alike and goes on differently. `None` if there
    /// are fewer positions, if `pos` is 0, or if a sliding window sees positions there that are no
    /// longer kept.
    pub fn first(&self, pos: usize) -> Option<Self> {
        let dropped = self.cache.len.checked_sub(pos).filter(|_| pos > 0)?;
        let own = Chosen::new(vec![self.row], self.cache.rows);
        let layers = self.cache.layers.iter();
        let layers = layers.map(|layer| layer.select(&own).without_last(dropped, pos));
        Some(Self {
            cache: Arc::new(Cache {
                rows: 1,
                len: pos,
                origin: self.cache.origin.clone(),
                layers: layers.collect::<Option<_>>()?,
            }),
            row: 0,
            tokens: self.tokens.iter().take(pos).copied().collect(),
        })
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

    /// The tokens at all positions, cached ones included.
    pub(super) fn all_tokens(&self) -> Vec<u32> {
        [&self.past.tokens[..], &self.tokens].concat()
    }
}

/// Caches that have been converted, by the address of the original, so that rows go on sharing
/// them.
pub(super) type Caches<B> = HashMap<usize, Arc<Cache<B>>>;

impl<B: Backend> Continued<B> {
    /// The same row with other tensors.
    pub(super) fn zip<A: Backend>(
        &self,
        tensor: &mut TensorZip<'_, B, A>,
        caches: &mut Caches<A>,
    ) -> Result<Continued<A>, PlanError> {
        let CachedRow { cache, row, tokens } = &self.past;
        let address = Arc::as_ptr(cache) as usize;
        let cache = match caches.get(&address) {
            Some(known) => known.clone(),
            None => {
                let new = Arc::new(cache.zip(tensor)?);
                caches.insert(address, new.clone());
                new
            }
        };
        Ok(Continued {
            tokens: self.tokens.clone(),
            past: CachedRow {
                cache,
                row: *row,
                tokens: tokens.clone(),
            },
        })
    }
}

impl<B: Backend> CachedRow<B> {
    /// Whether it was kept by this model, as far as the engine can tell.
    pub(super) fn is_of(&self, model: &Origin) -> bool {
        self.cache.origin == *model
    }
}

impl<B: Backend> Cache<B> {
    fn zip<A: Backend>(&self, tensor: &mut TensorZip<'_, B, A>) -> Result<Cache<A>, PlanError> {
        let mut convert = |x: &Tensor<B, 4>| {
            let [rows, kv_head, pos, d_head] = x.dims();
            let flat = x.clone().reshape([rows * kv_head, pos, d_head]);
            Ok(tensor(Role::Cache, &[&flat])?.reshape([rows, kv_head, pos, d_head]))
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
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
        Ok(Cache {
            rows: self.rows,
            len: self.len,
            origin: self.origin.clone(),
            layers,
        })
    }
}

/// Positions of a part from which on it is no longer joined with the next one.
const LONG: usize = 64;

/// Some rows of a cache: copied to the device once for all layers.
struct Chosen<B: Backend> {
    rows: Vec<usize>,
    /// Number of rows of the cache.
    of: usize,
    indices: OnceCell<Tensor<B, 1, Int>>,
}

impl<B: Backend> Chosen<B> {
    fn new(rows: Vec<usize>, of: usize) -> Self {
        Self {
            rows,
            of,
            indices: OnceCell::new(),
        }
    }

    fn are_all(&self) -> bool {
        self.rows.iter().copied().eq(0..self.of)
    }

    fn indices(&self, device: &B::Device) -> Tensor<B, 1, Int> {
        let make = || int_tensor(self.rows.iter().copied(), device);
        self.indices.get_or_init(make).clone()
    }
}

impl<B: Backend> CachedLayer<B> {
    /// Number of positions that are kept.
    fn len(&self) -> usize {
        let parts = self.parts.iter().map(|[keys, _]| keys.dims()[2]);
        parts.sum()
    }

    /// Some of its rows.
    fn select(&self, chosen: &Chosen<B>) -> Self {
        let parts = self.parts.iter().map(|part| match chosen.are_all() {
            false if part[0].dims()[0] == chosen.of && chosen.of > 1 => {
                let indices = chosen.indices(&part[0].device());
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

    /// The layer without its last positions, if all is there that is seen from the first `pos`.
    fn without_last(mut self, mut dropped: usize, pos: usize) -> Option<Self> {
        let left = self.len().checked_sub(dropped)?;
        if left < self.window.map_or(pos, |window| window.min(pos)) {
            return None;
        }
        while dropped > 0 {
            let last = self.parts.pop()?;
            let [_, _, count, _] = last[0].dims();
            let kept = count.saturating_sub(dropped);
            dropped -= count - kept;
            if kept > 0 {
                self.parts.push(last.map(|x| x.narrow(2, 0, kept)));
            }
        }
        Some(self)
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
    /// Number of positions in a layer, counted among those that attend, that are there once for all
    /// rows, and of those that are there for each row.
    pub(super) fn positions(&self, layer: usize) -> [usize; 2] {
        let (mut shared, mut own) = (0, 0);
        for [keys, _] in &self.layers[layer].parts {
            let [rows, _, count, _] = keys.dims();
            match rows == self.rows {
                true => own += count,
                false => shared += count,
            }
        }
        [shared, own]
    }

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
        let runs = runs.into_iter().map(|(cache, rows)| {
            let chosen = Chosen::new(rows, cache.rows);
            (cache, chosen)
        });
        let runs: Vec<(&Arc<Self>, Chosen<B>)> = runs.collect();
        let Some((first, _)) = runs.first() else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for index in 0..first.layers.len() {
            let layer = first.layers[index].layer;
            let chosen = runs
                .iter()
                .map(|(cache, own)| (cache.layers[index].select(own), own.rows.len()));
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
