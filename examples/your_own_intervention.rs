//! How do you write your own intervention?
//!
//! As a Burn module with one method, a pure function of tensors. Here: blend in the source's
//! activation, keeping the base's norm. It has a parameter, the share of the source, which Burn's
//! optimizers could train.
//!
//! ```sh
//! cargo run --release --example your_own_intervention
//! ```
//!
//! Prints what the bundled model predicts after "The capital of Spain is" as the share of Italy
//! grows.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::front::{AlignableConfig, AlignableModel, AlignableRepresentationConfig};
use burn_align::interventions::{Intervention, Operands};
use burn_align_models::{Component, Decoder};
use clap::Parser;
use workbench::table::table;
use workbench::{BackendArgs, ModelArgs, on_backend, out};

/// `b + share · (s - b)`, scaled to the norm of `b`.
#[derive(Module, Debug)]
struct NormKeepingBlend<B: Backend> {
    /// Between 0 and 1, `[1]`.
    share: Param<Tensor<B, 1>>,
}

impl<B: Backend> Intervention<B> for NormKeepingBlend<B> {
    fn needs_source(&self) -> bool {
        true
    }

    fn apply(&self, base: Tensor<B, 3>, operands: Operands<B>) -> Tensor<B, 3> {
        let norm = |x: Tensor<B, 3>| (x.clone() * x).sum_dim(2).sqrt(); // [batch, unit, 1]
        let share = self.share.val().unsqueeze(); // [1, 1, 1]
        let blend = base.clone() + (operands.source() - base.clone()) * share;
        let blend = blend.clone() * (norm(base.clone()) / norm(blend));
        operands.within_subspace(base, blend)
    }
}

const MODEL: &str = "bundled:capitals";

/// Runs a custom intervention.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The layer whose output is changed.
    #[arg(long, default_value_t = 1)]
    layer: usize,
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| blend::<B>(&args, &device))
    })
}

fn blend<B: Backend>(args: &Args, device: &B::Device) -> Result<()> {
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<B, Decoder<B>>(MODEL, dtype, device)?;
    let tokenizer = loaded.tokenizer()?.clone();
    let base = tokenizer.encode_batch(["The capital of Spain is"])?;
    let sources = [tokenizer.encode_batch(["The capital of Italy is"])?];

    let mut report = table(["share", "next word", "p"]);
    let mut words = Vec::new();
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let intervention = NormKeepingBlend {
            share: Param::from_tensor(Tensor::from_floats([share], device)),
        };
        let config = AlignableConfig::new([AlignableRepresentationConfig::new(
            args.layer,
            Component::BlockOutput,
        )]);
        let alignable =
            AlignableModel::with_interventions(config, loaded.model.clone(), vec![intervention])?;
        let output = alignable.forward(&base, &sources, base.pos() - 1)?;
        let best = tokenizer
            .top_tokens(output.counterfactual_last(), 1)
            .remove(0)
            .remove(0);
        report.add_row([
            share.to_string(),
            best.text.clone(),
            format!("{:.4}", best.probability),
        ]);
        words.push(best.text);
    }
    out!("{report}")?;
    if args.model.source(MODEL) == MODEL {
        ensure!(
            words[0] == "Madrid" && words[4] == "Rome",
            "unexpected predictions at the ends: {words:?}"
        );
    }
    Ok(())
}
