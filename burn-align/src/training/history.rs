use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Evaluation;

/// One step of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of the step, from 0.
    pub step: usize,
    /// Number of all steps.
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
    /// How the interventions do on held-out data, if there are any.
    pub held_out: Option<Evaluation>,
}

/// What training tells while it runs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TrainingEvent<'a> {
    /// What does not change in training has been computed for so many examples.
    Prepared {
        /// Number of examples so far.
        examples: usize,
        /// Number of all examples.
        of: usize,
    },
    /// The run goes on behind this history, from a checkpoint. Nothing of it is told again.
    Resumed(&'a History),
    /// A step has been made.
    Step(&'a StepReport),
    /// An epoch has ended.
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
    /// The history as JSON, which serde reads again.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are text")
    }

    /// A table with a line for each step. The columns of the held-out data are filled in the last
    /// step of each epoch:
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
