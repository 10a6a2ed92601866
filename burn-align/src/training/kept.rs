//! Caching what does not change during training.
//!
//! The layers before the first trained intervention compute the same in every epoch. They are run
//! once, and batches are gathered from the result.

use std::slice;

use burn::tensor::backend::Backend;

use crate::engine::{Plan, PlanError, ReadId};

/// Bytes at which a part is full: large enough that a batch comes from few parts, small enough that
/// a part can be copied while it is assembled.
const PART: usize = 64 << 20;

/// A dataset's plan, with the part that does not change in training, for as many examples as the
/// budget allows.
#[derive(Clone, Debug)]
pub(crate) struct Kept<B: Backend> {
    /// All examples, with nothing computed.
    plan: Plan<B>,
    /// The read of the logits.
    pub(super) logits: ReadId,
    /// Frozen plans of consecutive examples, each with the index of its first example.
    parts: Vec<(usize, Plan<B>)>,
    /// Number of examples in all parts.
    kept: usize,
}

impl<B: Backend> Kept<B> {
    /// Nothing cached yet.
    pub(crate) fn new((plan, logits): (Plan<B>, ReadId)) -> Self {
        Self {
            plan,
            logits,
            parts: Vec::new(),
            kept: 0,
        }
    }

    /// The plan of all examples, with nothing computed, and the read of its logits.
    pub(super) fn plan(&self) -> (Plan<B>, ReadId) {
        (self.plan.clone(), self.logits)
    }

    /// Positions of an example that a step computes, on average.
    pub(crate) fn computed_positions(&self) -> usize {
        let plan = self.parts.first().map_or(&self.plan, |(_, plan)| plan);
        plan.computed_positions()
    }

    /// Computes what does not change for consecutive examples, `piece` at a time, until `left`, the
    /// rest of the budget, is used up.
    ///
    /// - done: gets the number of examples of each piece
    pub(super) fn fill(
        &mut self,
        examples: usize,
        piece: usize,
        left: &mut usize,
        freeze: &impl Fn(&Plan<B>) -> Result<Plan<B>, PlanError>,
        done: impl FnMut(usize),
    ) -> Result<(), PlanError> {
        let each = |plans: &[Plan<B>]| -> Result<Vec<Plan<B>>, PlanError> {
            plans.iter().map(freeze).collect()
        };
        Self::fill_together(slice::from_mut(self), examples, piece, left, &each, done)
    }

    /// Fills several at a time, whose plans differ in what they change: `freeze` gets the plans of
    /// the same examples, and may run once what they have in common.
    ///
    /// - done: gets the number of examples of each piece
    pub(crate) fn fill_together(
        all: &mut [Self],
        examples: usize,
        piece: usize,
        left: &mut usize,
        freeze: &impl Fn(&[Plan<B>]) -> Result<Vec<Plan<B>>, PlanError>,
        mut done: impl FnMut(usize),
    ) -> Result<(), PlanError> {
        let numbers: Vec<usize> = (0..examples).collect();
        let mut pieces: Vec<Vec<Plan<B>>> = vec![Vec::new(); all.len()];
        let (mut bytes, mut end) = (0, 0);
        for chosen in numbers.chunks(piece) {
            let plans = all.iter().map(|kept| kept.plan.examples(chosen));
            let frozen = freeze(&plans.collect::<Result<Vec<_>, _>>()?)?;
            let more = frozen.iter().map(Plan::held_bytes).sum::<usize>();
            if more > *left {
                break;
            }
            *left -= more;
            bytes += more;
            end += chosen.len();
            for (pieces, frozen) in pieces.iter_mut().zip(frozen) {
                pieces.push(frozen);
            }
            done(chosen.len());
            if bytes >= PART * all.len() {
                bytes = 0;
                if !Self::close_all(all, &mut pieces, end) {
                    return Ok(());
                }
            }
        }
        Self::close_all(all, &mut pieces, end);
        Ok(())
    }

    fn close_all(all: &mut [Self], pieces: &mut [Vec<Plan<B>>], end: usize) -> bool {
        let closed = all.iter_mut().zip(pieces);
        let closed: Vec<bool> = closed.map(|(kept, it)| kept.close(it, end)).collect();
        closed.into_iter().all(|is_closed| is_closed)
    }

    /// Assembles a part that ends at this example.
    fn close(&mut self, pieces: &mut Vec<Plan<B>>, end: usize) -> bool {
        if pieces.is_empty() {
            return true;
        }
        let part = Plan::join(pieces);
        pieces.clear();
        // Vectors at all positions of examples of different lengths have no common shape.
        let Ok(part) = part else {
            return false;
        };
        self.parts.push((self.kept, part));
        self.kept = end;
        true
    }

    /// The plan of some examples, with what is cached. The examples are reordered: cached ones
    /// first, in the order of the cache.
    pub(super) fn batch(
        &self,
        examples: &mut [usize],
        freeze: &impl Fn(&Plan<B>) -> Result<Plan<B>, PlanError>,
    ) -> Result<Plan<B>, PlanError> {
        examples.sort_unstable();
        // Examples that are not cached belong to no part, and come last.
        let part = |example: usize| match example < self.kept {
            true => self.parts.partition_point(|(first, _)| *first <= example) - 1,
            false => self.parts.len(),
        };
        let mut plans = Vec::new();
        for chosen in examples.chunk_by(|a, b| part(*a) == part(*b)) {
            let number = part(chosen[0]);
            plans.push(match self.parts.get(number) {
                Some((first, plan)) => {
                    let next = self.parts.get(number + 1);
                    let end = next.map_or(self.kept, |(next, _)| *next);
                    match chosen.len() == end - first {
                        true => plan.clone(),
                        false => {
                            let own: Vec<usize> = chosen.iter().map(|it| it - first).collect();
                            plan.examples(&own)?
                        }
                    }
                }
                None => freeze(&self.plan.examples(chosen)?)?,
            });
        }
        match &plans[..] {
            [_] => Ok(plans.remove(0)),
            _ => match Plan::join(&plans) {
                // Vectors at all positions may be fewer if computed for fewer examples.
                Err(PlanError::Different { .. }) => freeze(&self.plan.examples(examples)?),
                joined => joined,
            },
        }
    }
}
