//! How much memory caches will take.

use burn::tensor::backend::Backend;
use burn_align_models::AlignableTransformer;
use serde::Serialize;

use super::{CacheClass, LONG, classes};
use crate::engine::PlanError;
use crate::engine::memory::Memory;
use crate::engine::plan::{Plan, WorldId};
use crate::engine::validate::{check_continuable, validate_without_interventions};

/// What is cached of a layer's keys and values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CacheExplanation {
    /// The layer.
    pub layer: usize,
    /// How many positions a query sees, itself included, if fewer than all.
    pub window: Option<usize>,
    /// Number of positions that are kept once for several rows: the beginnings of prompts that the
    /// layer sees alike.
    pub shared_positions: usize,
    /// Number of positions that are kept for a single row, over all rows.
    pub row_positions: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// Steps from which on no more are counted: more than any model takes.
const MOST_STEPS: usize = 1 << 24;

/// The memory of worlds that are continued.
pub(crate) struct ContinuedMemory {
    /// Caches after the plan has run.
    pub(crate) at_start: Vec<CacheExplanation>,
    /// Caches with the steps after it.
    pub(crate) at_end: Vec<CacheExplanation>,
    /// Bytes that the last step needs for a while, besides the caches: of all rows, and of one.
    pub(crate) step: [u64; 2],
}

impl<B: Backend> Plan<B> {
    /// Estimates the memory of continuing worlds, each row by some steps of one token, or to the
    /// end of the model.
    ///
    /// # Errors
    /// As [`run_to_continue`](Self::run_to_continue), except for what depends on the interventions.
    pub(crate) fn explain_continued<M: AlignableTransformer<B>>(
        &self,
        model: &M,
        worlds: &[WorldId],
        steps: usize,
    ) -> Result<ContinuedMemory, PlanError> {
        check_continuable(self, model.layout(), worlds)?;
        let schedule = validate_without_interventions(self, model, worlds)?;
        let memory = Memory::new(self, model, &schedule);
        let dims = model.dims();
        let most = dims.max_positions.unwrap_or(usize::MAX);
        let steps = steps.min(MOST_STEPS);
        let bytes = 2 * (dims.kv_heads * dims.d_head) as u64 * memory.element();
        let caches = |steps: usize| {
            let mut layers: Vec<CacheExplanation> = Vec::new();
            for pass in 0..schedule.passes.len() {
                let here = worlds.iter().copied();
                let here = here.filter(|world| schedule.pass_of[world.0] == Some(pass));
                let classes = classes(self, &here.collect::<Vec<_>>());
                let attentions = schedule.attentions(pass).enumerate();
                for (number, (layer, window, stage)) in attentions {
                    let (mut shared, mut own) = (0, 0);
                    let group_of = stage.groups.by_world();
                    for class in &classes {
                        let more = steps.min(most.saturating_sub(class.len));
                        let rows = class.rows.iter().map(|(world, example)| {
                            stage.layout.first_row(group_of.at(*world)) + example
                        });
                        let rows: Vec<usize> = rows.collect();
                        let shared_until = |start| stage.layout.shared(&rows, start..class.len);
                        let [of_all, of_each] =
                            positions(class, number, window, more, shared_until);
                        shared += of_all;
                        own += of_each * class.rows.len();
                    }
                    let explained = CacheExplanation {
                        layer,
                        window,
                        shared_positions: shared,
                        row_positions: own,
                        bytes: (shared + own) as u64 * bytes,
                    };
                    match layers.iter_mut().find(|known| known.layer == layer) {
                        None => layers.push(explained),
                        Some(known) => {
                            known.shared_positions += shared;
                            known.row_positions += own;
                            known.bytes += explained.bytes;
                        }
                    }
                }
            }
            layers
        };
        let mut lengths = Vec::new();
        for world in worlds {
            lengths.extend(self.input_of(*world).lengths());
        }
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let longest = (longest + steps).min(most.max(longest));
        let of_step = |rows| match steps {
            0 => 0,
            _ => memory.of_step(rows, longest),
        };
        Ok(ContinuedMemory {
            at_start: caches(0),
            at_end: caches(steps),
            step: [of_step(lengths.len()), of_step(lengths.len().min(1))],
        })
    }
}

/// Number of positions of a layer that are kept once for all rows of a cache, and of those that are
/// kept for each row.
///
/// - `number`: of the layer, among those that attend
/// - `more`: steps of one token after the pass
/// - `shared_until`: from a position on, the first one where the rows differ
fn positions<B: Backend>(
    class: &CacheClass<'_, B>,
    number: usize,
    window: Option<usize>,
    more: usize,
    shared_until: impl Fn(usize) -> usize,
) -> [usize; 2] {
    let before = class.before.first();
    let [mut shared, mut own] = before.map_or([0, 0], |row| row.cache.positions(number));
    let start = before.map_or(0, |row| row.pos());
    let parted = shared_until(start);
    shared += parted - start;
    own += class.len - parted + more;
    if class.rows.len() == 1 {
        (shared, own) = (0, shared + own);
    }
    // What no query sees is left out now and then, the earliest positions first.
    let kept = window.map_or(usize::MAX, |window| window.saturating_add(LONG));
    own = own.min(kept);
    shared = shared.min(kept - own);
    [shared, own]
}
