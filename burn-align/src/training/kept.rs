//! Caching what does not change during training.
//!
//! The layers before the first trained intervention compute the same in every epoch. They are run
//! once, and batches are gathered from the result.

use burn::tensor::backend::Backend;

use crate::engine::{Plan, PlanError, ReadId};

/// Bytes at which a part is full: large enough that a batch comes from few parts, small enough that
/// a part can be copied while it is assembled.
const PART: usize = 64 << 20;

/// A dataset's plan, with the part that does not change in training, for as many examples as the
/// budget allows.
pub(super) struct Kept<B: Backend> {
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
    pub(super) fn new((plan, logits): (Plan<B>, ReadId)) -> Self {
        Self {
            plan,
            logits,
            parts: Vec::new(),
            kept: 0,
        }
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
        mut done: impl FnMut(usize),
    ) -> Result<(), PlanError> {
        let all: Vec<usize> = (0..examples).collect();
        let mut pieces: Vec<Plan<B>> = Vec::new();
        let mut bytes = 0;
        let mut end = 0;
        for chosen in all.chunks(piece) {
            let frozen = freeze(&self.plan.examples(chosen)?)?;
            let more = frozen.held_bytes();
            if more > *left {
                break;
            }
            *left -= more;
            bytes += more;
            pieces.push(frozen);
            end += chosen.len();
            done(chosen.len());
            if bytes >= PART {
                bytes = 0;
                if !self.close(&mut pieces, end) {
                    return Ok(());
                }
            }
        }
        self.close(&mut pieces, end);
        Ok(())
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
