//! Metrics of many worlds: where a metric reads the logits of a few tokens, no others are computed.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align_models::nn::{part_of_rows, soft_cap};
use burn_align_models::{AlignableTransformer, Site};

use super::Metric;
use super::parts::positions_of;
use crate::engine::{Plan, ReadId, WorldId};

/// A metric, and what it reads of a run.
pub(in crate::methods) struct Measured<'a, B: Backend, M, T> {
    model: &'a M,
    metric: &'a T,
    few: Option<Few<B, T>>,
}

/// A metric of the logits of a few tokens.
struct Few<B: Backend, T> {
    /// Of these logits, in the order of the columns.
    metric: T,
    /// Of the unembedding, in f32, `[d_model, token]`.
    columns: Tensor<B, 2>,
    /// In f32, `[token]`.
    bias: Option<Tensor<B, 1>>,
    cap: Option<f64>,
    /// What the final norm reads.
    last: Site,
}

impl<'a, B: Backend, M: AlignableTransformer<B>, T: Metric> Measured<'a, B, M, T> {
    /// - metric: that fits the model
    pub(in crate::methods) fn new(model: &'a M, metric: &'a T) -> Self {
        let last = model.dims().last_stream();
        let readout = model.readout().filter(|_| model.site(last).is_some());
        let few = readout.zip(metric.narrowed());
        let few = few.map(|(readout, (tokens, metric))| {
            let (columns, bias) = readout.unembedding(&tokens);
            Few {
                metric,
                columns: columns.cast(DType::F32).transpose(),
                bias: bias.map(|bias| bias.cast(DType::F32)),
                cap: readout.logit_cap(),
                last,
            }
        });
        Self { model, metric, few }
    }

    /// Number of logits that are computed at a position.
    pub(in crate::methods) fn logits(&self) -> usize {
        match &self.few {
            None => self.model.dims().vocab,
            Some(few) => few.columns.dims()[1],
        }
    }

    /// Reads in a world what [`of_reads`](Self::of_reads) needs.
    ///
    /// - examples: those of the plan, among all
    /// - lengths: their numbers of tokens
    pub(in crate::methods) fn read(
        &self,
        plan: &mut Plan<B>,
        world: WorldId,
        examples: &[usize],
        lengths: &[usize],
    ) -> ReadId {
        let positions = positions_of(self.metric.positions(), examples);
        let Some(few) = &self.few else {
            return plan.read_logits(world, positions);
        };
        plan.read(world, few.last, positions.units(lengths))
    }

    /// The metric of some examples in each of some worlds, one world after the other.
    ///
    /// # Shapes
    /// - reads: what was [read](Self::read) in each, `[batch, unit, vocab or d_model]`
    /// - output: `[world * batch]`
    pub(in crate::methods) fn of_reads(
        &self,
        reads: Vec<Tensor<B, 3>>,
        examples: &[usize],
    ) -> Tensor<B, 1> {
        match &self.few {
            None => {
                let logits = reads.into_iter();
                let values = logits.map(|logits| self.metric.values(logits, examples));
                Tensor::cat(values.collect(), 0)
            }
            Some(_) => self.of_last(Tensor::cat(reads, 0), examples),
        }
    }

    /// The same, from what the final norm reads.
    ///
    /// # Shapes
    /// - last: at the positions of the metric, `[world * batch, unit, d_model]`
    /// - output: `[world * batch]`
    pub(in crate::methods) fn of_last(
        &self,
        last: Tensor<B, 3>,
        examples: &[usize],
    ) -> Tensor<B, 1> {
        let [rows, _unit, _d_model] = last.dims();
        let batch = examples.len();
        let normed = self.model.final_norm(last);
        let logits = match &self.few {
            None => self.model.unembed(normed),
            Some(few) => few.logits(normed),
        };
        let worlds = (0..rows).step_by(batch.max(1));
        let values = worlds.map(|first| {
            let own = part_of_rows(logits.clone(), first..first + batch);
            match &self.few {
                None => self.metric.values(own, examples),
                Some(few) => few.metric.values(own, examples),
            }
        });
        Tensor::cat(values.collect(), 0)
    }
}

impl<B: Backend, T> Few<B, T> {
    /// # Shapes
    /// - normed: `[row, unit, d_model]`
    /// - output: in f32, `[row, unit, token]`
    fn logits(&self, normed: Tensor<B, 3>) -> Tensor<B, 3> {
        let [rows, unit, d_model] = normed.dims();
        let [_d_model, tokens] = self.columns.dims();
        let normed = normed.cast(DType::F32).reshape([rows * unit, d_model]);
        let logits = normed.matmul(self.columns.clone()); // [row * unit, token]
        let logits = match &self.bias {
            None => logits,
            Some(bias) => logits + bias.clone().unsqueeze(),
        };
        let logits = match self.cap {
            None => logits,
            Some(cap) => soft_cap(logits, cap),
        };
        logits.reshape([rows, unit, tokens])
    }
}
