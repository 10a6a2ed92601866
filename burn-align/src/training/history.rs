//! Progress and history of training.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Evaluation;

/// One step of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of this step, from 0.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// The loss without the penalty, averaged over the step's batches.
    pub loss: f64,
}

/// One pass over the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// The loss without the penalty, averaged over the epoch.
    pub loss: f64,
    /// The evaluation on held-out data, if there are any.
    pub held_out: Option<Evaluation>,
}

/// Progress of training.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TrainingEvent<'a> {
    /// The part that does not change in training has been computed for this many examples.
    Prepared {
        /// Number of examples so far.
        examples: usize,
        /// Total number of examples.
        of: usize,
    },
    /// The run resumes after this history, from a checkpoint. Its events are not repeated.
    Resumed(&'a History),
    /// A step is done.
    Step(&'a StepReport),
    /// An epoch is done.
    Epoch(&'a EpochReport),
}

/// How training went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Every step.
    pub steps: Vec<StepReport>,
    /// Every epoch.
    pub epochs: Vec<EpochReport>,
}

impl History {
    /// The history as JSON, which serde can read back.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are text")
    }

    /// A table with one line per step. The columns for held-out data are filled in the last step of
    /// each epoch:
    ///
    /// `step,epoch,loss,accuracy,accuracy_low,accuracy_high,logit_difference,kl_divergence`
    pub fn to_csv(&self) -> String {
        let mut csv = String::from(
            "step,epoch,loss,accuracy,accuracy_low,accuracy_high,logit_difference,kl_divergence\n",
        );
        for (
            index,
            StepReport {
                step, epoch, loss, ..
            },
        ) in self.steps.iter().enumerate()
        {
            let next = self.steps.get(index + 1);
            let is_last = next.is_none_or(|next| next.epoch != *epoch);
            let report = self.epochs.iter().find(|it| is_last && it.epoch == *epoch);
            let held_out = report.and_then(|report| report.held_out);
            let cells = [
                held_out.map(|it| it.accuracy),
                held_out.map(|it| it.interval[0]),
                held_out.map(|it| it.interval[1]),
                held_out
                    .and_then(|it| it.logit_difference)
                    .map(|it| it.mean),
                held_out.map(|it| it.kl_divergence.mean),
            ];
            let cells = cells.map(|cell| cell.map(|value| value.to_string()).unwrap_or_default());
            let cells = cells.join(",");
            writeln!(csv, "{step},{epoch},{loss},{cells}").expect("a string takes all");
        }
        csv
    }
}
