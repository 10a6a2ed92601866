//! A tap that checks everything computed by one world.

use std::collections::HashMap;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_align_models::{Component, Site};

use super::{NonFinite, NonFiniteCause, NonFiniteValue};
use crate::engine::PlanError;
use crate::engine::host::read_data;
use crate::engine::plan::{Operand, Plan, WorldId};

/// What has been found in a world.
pub(in crate::engine) struct Watch {
    world: WorldId,
    /// Number of positions of each example, without padding.
    lengths: Vec<usize>,
    /// The last site that the world is run to; `None` for the logits.
    until: Option<Site>,
    largest: Option<(f64, Site)>,
    /// Attention scores that are not finite, by example, head and query: they count if a weight is
    /// not finite because of them.
    scores: HashMap<[usize; 3], NonFinite>,
    found: Option<NonFinite>,
    failed: Option<PlanError>,
}

impl Watch {
    pub(super) fn new<B: Backend>(plan: &Plan<B>, world: WorldId, until: Option<Site>) -> Self {
        Self {
            world,
            lengths: plan.input_of(world).lengths(),
            until,
            largest: None,
            scores: HashMap::new(),
            found: None,
            failed: None,
        }
    }

    /// The last site that is checked; `None` for the logits.
    pub(in crate::engine) fn until(&self) -> Option<Site> {
        self.until
    }

    /// Whether nothing more needs to be checked.
    pub(in crate::engine) fn is_done(&self) -> bool {
        self.found.is_some() || self.failed.is_some()
    }

    pub(in crate::engine) fn wants(&self, site: Site) -> bool {
        !self.is_done() && self.until.is_none_or(|until| site <= until)
    }

    /// Checks the model's starting point, `[batch, pos, width]`.
    pub(super) fn given<B: Backend>(
        &mut self,
        site: Site,
        x: &Tensor<B, 3>,
        cause: NonFiniteCause,
    ) -> Result<(), PlanError> {
        let [batch, pos, width] = x.dims();
        self.look(site, &x.clone().reshape([batch, 1, pos, width]), cause);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Checks an activation as the model computed it.
    pub(in crate::engine) fn computed<B: Backend>(&mut self, site: Site, x: &Tensor<B, 4>) {
        self.look(site, x, NonFiniteCause::Computed);
    }

    /// Checks an activation that an edit has changed.
    ///
    /// - source: what the edit was given
    pub(in crate::engine) fn edited<B: Backend>(
        &mut self,
        site: Site,
        x: &Tensor<B, 4>,
        index: usize,
        (operand, source): (&Operand, Option<&Tensor<B, 3>>),
    ) {
        if self.is_done() {
            return;
        }
        let of_source = match (operand, source) {
            (Operand::None, _) | (_, None) => false,
            (_, Some(source)) => match read_data(source.clone()) {
                Ok(data) => !data.iter::<f64>().all(f64::is_finite),
                Err(error) => return self.failed = Some(error),
            },
        };
        let cause = match of_source {
            true => NonFiniteCause::Source { index },
            false => NonFiniteCause::Intervention { index },
        };
        self.look(site, x, cause);
    }

    fn look<B: Backend>(&mut self, site: Site, x: &Tensor<B, 4>, cause: NonFiniteCause) {
        if self.is_done() {
            return;
        }
        let [_batch, heads, pos, width] = x.dims();
        let dtype = x.dtype();
        let data = match read_data(x.clone()) {
            Ok(data) => data,
            Err(error) => return self.failed = Some(error),
        };
        let component = match site {
            Site::Block(_, component) => Some(component),
            Site::Embedding | Site::FinalNorm => None,
        };
        // Masked scores do not matter, unless they are read.
        let waits = component == Some(Component::AttentionScores) && self.until != Some(site);
        if waits {
            self.scores.clear();
        }
        let has_heads = component.is_some_and(Component::has_heads);
        let mut largest: f64 = 0.0;
        for (index, value) in data.iter::<f64>().enumerate() {
            let Some(value) = NonFiniteValue::of(value) else {
                largest = largest.max(value.abs());
                continue;
            };
            let position = index / width % pos;
            let head = index / (width * pos) % heads;
            let example = index / (width * pos * heads);
            if position >= self.lengths[example] {
                continue;
            }
            let place = [example, head, position];
            let found = self.non_finite(Some(site), place, has_heads, value, cause.clone(), dtype);
            if waits {
                self.scores.entry(place).or_insert(found);
                continue;
            }
            let of_scores = match component {
                Some(Component::AttentionWeights) => self.scores.remove(&place),
                _ => None,
            };
            self.found = Some(of_scores.unwrap_or(found));
            return;
        }
        let known = self.largest.map_or(0.0, |(magnitude, _)| magnitude);
        if largest > known && !waits {
            self.largest = Some((largest, site));
        }
    }

    fn non_finite(
        &self,
        site: Option<Site>,
        [example, head, position]: [usize; 3],
        has_heads: bool,
        value: NonFiniteValue,
        cause: NonFiniteCause,
        dtype: DType,
    ) -> NonFinite {
        NonFinite {
            run: format!("world {}", self.world.0),
            world: self.world.0,
            site,
            example,
            position,
            head: has_heads.then_some(head),
            value,
            cause,
            largest: self.largest,
            dtype,
        }
    }

    /// What was found, checking the logits last.
    ///
    /// # Shapes
    /// - logits: `[batch, pos, vocab]`, if the world is run that far
    pub(super) fn finish<B: Backend>(
        mut self,
        logits: Option<Tensor<B, 3>>,
    ) -> Result<Option<NonFinite>, PlanError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let (None, Some(logits)) = (&self.found, logits) {
            let [_batch, pos, vocab] = logits.dims();
            let dtype = logits.dtype();
            let data = read_data(logits)?;
            for (index, value) in data.iter::<f64>().enumerate() {
                let [example, position] = [index / (vocab * pos), index / vocab % pos];
                if let Some(value) = NonFiniteValue::of(value)
                    && position < self.lengths[example]
                {
                    let place = [example, 0, position];
                    let cause = NonFiniteCause::Computed;
                    return Ok(Some(
                        self.non_finite(None, place, false, value, cause, dtype),
                    ));
                }
            }
        }
        Ok(self.found)
    }
}
