use burn::tensor::backend::Backend;

use crate::engine::{Plan, PlanError, ReadId};

/// Bytes from which on a part is whole: large enough that a batch comes from few parts, small
/// enough that a part can be copied while it is put together.
const PART: usize = 64 << 20;

/// A dataset's plan, and what does not change of it in training, for as many examples as the
/// budget allows.
pub(super) struct Kept<B: Backend> {
    /// All examples, with nothing computed.
    plan: Plan<B>,
    /// Where the logits come out.
    pub(super) logits: ReadId,
    /// Frozen plans of examples one after another, from the first, with the number of the first
    /// example of each.
    parts: Vec<(usize, Plan<B>)>,
    /// Number of examples in all parts.
    kept: usize,
}

impl<B: Backend> Kept<B> {
    /// Nothing kept yet.
    pub(super) fn new((plan, logits): (Plan<B>, ReadId)) -> Self {
        Self {
            plan,
            logits,
            parts: Vec::new(),
            kept: 0,
        }
    }

    /// Computes what does not change for the examples one after another, `piece` at a time, until
    /// what is `left` of the budget is used up.
    ///
    /// - done: is told of the number of examples of each piece
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

    /// Puts a part together, up to an example.
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

    /// The plan of some examples without what does not change. They are put in order: that in
    /// which they are kept, with those that are not behind them.
    pub(super) fn batch(
        &self,
        examples: &mut [usize],
        freeze: &impl Fn(&Plan<B>) -> Result<Plan<B>, PlanError>,
    ) -> Result<Plan<B>, PlanError> {
        examples.sort_unstable();
        // Of no part, and so behind all of them, are examples that are not kept.
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
                // Computed for fewer examples, vectors at all positions may be fewer.
                Err(PlanError::Different { .. }) => freeze(&self.plan.examples(examples)?),
                joined => joined,
            },
        }
    }
}
