//! Edges of the residual graph: what attributes them, what patches them, and curves of circuits.

use anyhow::Result;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::{LogitDifference, Patching};
use burn_align::methods::circuits::{
    CurveOptions, EdgeGraph, EdgeOptions, EdgeRanking, MIB_SIZES, eap, eap_ig_inputs,
    faithfulness_curves, patch_all_edges,
};
use burn_align_models::{Decoder, ModelDims};

use crate::catalogue::{Choices, Inputs, Task, Workload};
use crate::run::Bench;
use crate::timing::{Times, time, time_once};

/// The family that takes minutes.
pub(crate) const EXACT: &str = "circuits_exact";
/// Tokens whose logits are compared, as in `benches/peers/circuits.py`.
const TOKENS: [u32; 2] = [5, 6];

/// What is computed of edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circuits {
    /// Attribution of all edges.
    Eap,
    /// The same with gradients along a path of inputs.
    EapIgInputs { steps: usize },
    /// The metric of circuits of MIB's sizes, which are chosen by given scores.
    Curve,
    /// The effect of patching each edge alone.
    Exact,
}

/// Workloads on pairs of prompts that differ at every position.
pub(crate) fn workloads(dims: &ModelDims, choices: &Choices) -> [Workload; 4] {
    let inputs = choices.inputs(16, 15);
    let edges = EdgeGraph::new(dims.layers, dims.heads, dims.parallel, dims.d_model).edge_count();
    let sizes = MIB_SIZES.len();
    let workload = |family, what, kind| Workload {
        family,
        name: format!("{family}_{inputs}"),
        what,
        task: Task::Circuits { inputs, kind },
    };
    [
        workload(
            "circuits_eap",
            format!("scores of all {edges} edges by edge attribution patching"),
            Circuits::Eap,
        ),
        workload(
            "circuits_eap_ig5",
            format!("scores of all {edges} edges by EAP-IG, 5 steps between the inputs"),
            Circuits::EapIgInputs { steps: 5 },
        ),
        workload(
            "circuits_curve",
            format!("circuits of {sizes} sizes by signed and by absolute scores, for CPR and CMD"),
            Circuits::Curve,
        ),
        workload(
            EXACT,
            format!("each of {edges} edges patched alone; one repeat, without a warm-up"),
            Circuits::Exact,
        ),
    ]
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn circuits(&self, inputs: Inputs, kind: Circuits) -> Result<Times> {
        let [clean, corrupt] = [1, 2].map(|seed| self.tokens(inputs, seed));
        let patching = Patching::<B>::noising(clean, corrupt);
        let [token, other] = TOKENS;
        let metric = LogitDifference::new([token], [other]);
        // The defaults of the methods, so memory does not depend on what the machine has.
        let run = match self.max_rows {
            Some(rows) => RunOptions::default().with_max_rows(rows),
            None => RunOptions::default(),
        };
        let options = EdgeOptions::default().with_run(run.clone());
        let tracked = || Decoder::<Autodiff<B>>::from_inner(self.model.clone());
        match kind {
            Circuits::Eap => {
                let model = tracked();
                let score = || {
                    let scores = eap::<Autodiff<B>, _, _>(&model, &patching, &metric, &options);
                    Ok(scores?)
                };
                time::<B, _>(score, self.repeats, self.device)
            }
            Circuits::EapIgInputs { steps } => {
                let model = tracked();
                let options = options.with_steps(steps);
                let score = || {
                    let scores =
                        eap_ig_inputs::<Autodiff<B>, _, _>(&model, &patching, &metric, &options);
                    Ok(scores?)
                };
                time::<B, _>(score, self.repeats, self.device)
            }
            Circuits::Curve => {
                let scores = eap::<Autodiff<B>, _, _>(&tracked(), &patching, &metric, &options)?;
                let rankings = [EdgeRanking::Signed, EdgeRanking::Absolute];
                let options = CurveOptions::default().with_run(run);
                let evaluate = || {
                    let curves = faithfulness_curves(
                        &self.model,
                        &patching,
                        &scores,
                        &rankings,
                        &metric,
                        &options,
                    );
                    Ok(curves?)
                };
                time::<B, _>(evaluate, self.repeats, self.device)
            }
            Circuits::Exact => {
                let patch = || Ok(patch_all_edges(&self.model, &patching, &metric, &options)?);
                time_once::<B, _>(patch, self.device)
            }
        }
    }
}
