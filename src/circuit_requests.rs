//! Requests for circuits, as JSON: what the example `circuit` serves.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_align::engine::RunOptions;
use burn_align::methods::attribution::{LogitDifference, Metric, Patching};
use burn_align::methods::circuits::{
    Circuit, CircuitFile, CurveArea, CurveOptions, EdgeAblation, EdgeChoice, EdgeOptions,
    EdgeRanking, EdgeScores, FaithfulnessCurve, clean_corrupted, eap, eap_ig_activations,
    eap_ig_inputs, faithfulness_curves, information_flow_routes, patch_all_edges,
};
use burn_align_models::{AlignableTransformer, Decoder, ModelSource};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::requests::{Input, Model, from_json, model_source};

/// Share of an interval, and how many resamples it is taken from.
pub(crate) const INTERVAL: (f64, usize) = (0.95, 1000);

/// The contents of a request file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitRequest {
    model: String,
    clean: Input,
    corrupt: Input,
    metric: MetricRequest,
    method: Method,
    steps: Option<usize>,
    #[serde(default)]
    ablation: Ablation,
    top_n: Option<usize>,
    threshold: Option<f64>,
    absolute: Option<bool>,
    #[serde(default)]
    evaluate: bool,
    #[serde(default)]
    seed: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum MetricRequest {
    /// Tokens whose logits should be high, and those whose logits should be low: one for each
    /// example, or one for all.
    LogitDifference([Vec<u32>; 2]),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    Eap,
    EapIgInputs,
    EapIgActivations,
    CleanCorrupted,
    Ifr,
    Exact,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ablation {
    #[default]
    Counterfactual,
    Mean,
    Zero,
}

impl From<Ablation> for EdgeAblation {
    fn from(ablation: Ablation) -> Self {
        match ablation {
            Ablation::Counterfactual => Self::Counterfactual,
            Ablation::Mean => Self::Mean,
            Ablation::Zero => Self::Zero,
        }
    }
}

/// The answer to a request.
#[derive(Debug)]
pub struct CircuitAnswer {
    /// The scores of all edges, and which of them were chosen.
    pub circuit: CircuitFile,
    /// The curves, if they were asked for.
    pub curve: Option<Value>,
}

impl CircuitRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// If it is not a valid request. The error names the path of the wrong value.
    pub fn parse(json: &str) -> Result<Self> {
        let request: Self = from_json(json)?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<()> {
        let chosen = match (self.top_n, self.threshold) {
            (Some(_), Some(_)) => bail!("threshold: expected none together with top_n"),
            (Some(_), None) => "top_n",
            (None, Some(_)) => "threshold",
            (None, None) => {
                ensure!(
                    self.absolute.is_none(),
                    "absolute: expected none without top_n or threshold"
                );
                return self.check_steps();
            }
        };
        ensure!(
            self.absolute.is_some(),
            "absolute: expected true or false together with {chosen}: whether edges are ranked by \
             the magnitude of their score"
        );
        self.check_steps()
    }

    fn check_steps(&self) -> Result<()> {
        let has_steps = matches!(self.method, Method::EapIgInputs | Method::EapIgActivations);
        ensure!(
            has_steps || self.steps.is_none(),
            "steps: expected none, the method has no steps"
        );
        ensure!(self.steps != Some(0), "steps: expected at least 1, found 0");
        Ok(())
    }

    /// The model named in a request in `folder`: a folder relative to it, or any other source.
    pub fn model(&self, folder: &Path) -> ModelSource {
        model_source(&self.model, folder)
    }

    /// Computes the answer to the request.
    ///
    /// # Errors
    /// If it does not fit the model, or if values stop being finite.
    pub fn answer<A: AutodiffBackend>(
        &self,
        model: &Model<A>,
        run: &RunOptions,
    ) -> Result<CircuitAnswer> {
        let tokenizer = model.tokenizer.as_ref();
        let clean = self.clean.tokens(tokenizer).context("clean")?;
        let corrupt = self.corrupt.tokens(tokenizer).context("corrupt")?;
        let dims = model.model.dims();
        clean.check(dims).context("clean")?;
        corrupt.check(dims).context("corrupt")?;
        let batch = clean.batch();
        ensure!(
            corrupt.batch() == batch,
            "corrupt: expected {batch} examples, as many as in clean, found {}",
            corrupt.batch()
        );
        let lengths = clean.lengths().into_iter().zip(corrupt.lengths());
        for (example, (clean, corrupt)) in lengths.enumerate() {
            ensure!(
                clean == corrupt,
                "corrupt: example {example}: expected {clean} tokens, as many as in clean, found \
                 {corrupt}"
            );
        }
        let MetricRequest::LogitDifference([good, bad]) = &self.metric;
        let metric = LogitDifference::new(good.clone(), bad.clone());
        metric.check(batch, dims.vocab)?;

        let plain = model.model.valid();
        let patching = Patching::<A::InnerBackend>::noising(clean.clone(), corrupt);
        let mut options = EdgeOptions::default()
            .with_ablation(self.ablation.into())
            .with_run(run.clone());
        if let Some(steps) = self.steps {
            options = options.with_steps(steps);
        }
        let tracked = &model.model;
        let scores = match self.method {
            Method::Eap => eap(tracked, &patching, &metric, &options),
            Method::EapIgInputs => eap_ig_inputs(tracked, &patching, &metric, &options),
            Method::EapIgActivations => eap_ig_activations(tracked, &patching, &metric, &options),
            Method::CleanCorrupted => clean_corrupted(tracked, &patching, &metric, &options),
            Method::Ifr => information_flow_routes(&plain, clean, &options),
            Method::Exact => patch_all_edges(&plain, &patching, &metric, &options),
        }?;
        let circuit = match self.choice() {
            None => CircuitFile::of_scores(&scores),
            Some(choice) => {
                let key = self.top_n.map_or("threshold", |_| "top_n");
                let circuit = Circuit::choose(&scores, choice).context(key)?;
                CircuitFile::new(&circuit.pruned())
            }
        };
        let curve = match self.evaluate {
            false => None,
            true => {
                let options = CurveOptions::default()
                    .with_greedy(matches!(self.method, Method::Ifr))
                    .with_ablation(options.ablation.into())
                    .with_run(run.clone());
                Some(self.curve(&plain, &patching, &scores, &metric, &options)?)
            }
        };
        Ok(CircuitAnswer { circuit, curve })
    }

    /// Which edges are chosen, if any are.
    fn choice(&self) -> Option<EdgeChoice> {
        let by = match self.absolute? {
            true => EdgeRanking::Absolute,
            false => EdgeRanking::Signed,
        };
        match (self.top_n, self.threshold) {
            (Some(edges), _) => Some(EdgeChoice::TopN { edges, by }),
            (None, Some(at_least)) => Some(EdgeChoice::Threshold { at_least, by }),
            (None, None) => None,
        }
    }

    fn curve<B: Backend>(
        &self,
        model: &Decoder<B>,
        patching: &Patching<B>,
        scores: &EdgeScores,
        metric: &LogitDifference,
        options: &CurveOptions,
    ) -> Result<Value> {
        let rankings = [EdgeRanking::Signed, EdgeRanking::Absolute];
        let curves = faithfulness_curves(model, patching, scores, &rankings, metric, options)?;
        let described = curves.iter().map(|curve| describe(curve, self.seed));
        let described = described.collect::<Result<Vec<Value>>>()?;
        let [signed, absolute] = curves.as_slice() else {
            bail!("expected a curve for each of two rankings");
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        Ok(json!({
            "sizes": options.sizes,
            "clean": mean(&signed.values.base),
            "all_ablated": mean(&signed.values.ablated),
            "curves": described,
            // As in MIB's table.
            "cpr": {"ranking": "signed", "value": signed.area(CurveArea::Cpr)},
            "cmd": {"ranking": "absolute", "value": absolute.area(CurveArea::Cmd)},
        }))
    }
}

fn describe(curve: &FaithfulnessCurve, seed: u64) -> Result<Value> {
    let (share, resamples) = INTERVAL;
    let interval = |area: CurveArea| -> Result<[f64; 2]> {
        let found = curve.interval(area, share, resamples, seed)?;
        Ok([found.low, found.high])
    };
    Ok(json!({
        "ranking": ranking_name(curve.by),
        "edges": curve.edges,
        "faithfulness": curve.faithfulness(),
        "cpr": curve.area(CurveArea::Cpr),
        "cpr_interval": interval(CurveArea::Cpr)?,
        "cmd": curve.area(CurveArea::Cmd),
        "cmd_interval": interval(CurveArea::Cmd)?,
    }))
}

/// What a ranking is called in answers and tables.
pub fn ranking_name(by: EdgeRanking) -> &'static str {
    match by {
        EdgeRanking::Signed => "signed",
        EdgeRanking::Absolute => "absolute",
    }
}
