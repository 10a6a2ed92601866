//! How does one intervene on a recurrent model, at a time step?
//!
//! A GRU's steps are the engine's layers: step `t` reads the hidden state of step `t - 1`, so
//! changing the state at step `t` affects all later ones. The unit is `t`.
//!
//! ```sh
//! cargo run --release --example gru_time_steps
//! ```
//!
//! Swaps the hidden state at each step in from another sequence. The two sequences have the same
//! end, so the swap gives the source's prediction from the step on at which they no longer differ.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Distribution, Tensor, backend::Backend};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig, Unit,
};
use burn_align_models::{
    AlignableTransformer, Component, Cx, InputKinds, LayerLayout, ModelDims, ModelInput,
    ModelLayout, Pass, Site, Sublayer,
};
use clap::Parser;
use workbench::{BackendArgs, on_backend, out};

const STEPS: usize = 6;
const D_INPUT: usize = 3;
const D_HIDDEN: usize = 8;

/// A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078).
///
/// Its stream has a position for each step: `[batch, step, input features | hidden state]`.
#[derive(Module, Debug)]
struct Gru<B: Backend> {
    /// Update and reset gates, from input and hidden state.
    gates: Linear<B>,
    /// Candidate state, from input and reset hidden state.
    candidate: Linear<B>,
    output: Linear<B>,
    #[module(skip)]
    layout: ModelLayout,
}

impl<B: Backend> AlignableTransformer<B> for Gru<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.gates.weight.val().device()
    }

    fn embed(&self, input: ModelInput<B>, _pass: &Pass<B>) -> Tensor<B, 3> {
        let ModelInput::Features(x) = input else {
            panic!("this model reads features, not tokens");
        };
        let [batch, step, _] = x.dims();
        let hidden = Tensor::zeros([batch, step, D_HIDDEN], &x.device());
        Tensor::cat(vec![x, hidden], 2)
    }

    fn sublayer(&self, step: usize, _: usize, x: Tensor<B, 3>, cx: &mut Cx<'_, B>) -> Tensor<B, 3> {
        let inputs = x.clone().narrow(2, 0, D_INPUT);
        let states = x.narrow(2, D_INPUT, D_HIDDEN); // [batch, step, d_hidden]
        let input = inputs.clone().narrow(1, step, 1);
        let before = match step {
            0 => states.clone().narrow(1, 0, 1).zeros_like(),
            _ => states.clone().narrow(1, step - 1, 1),
        };
        let gates = sigmoid(
            self.gates
                .forward(Tensor::cat(vec![input.clone(), before.clone()], 2)),
        );
        let (update, reset) = (
            gates.clone().narrow(2, 0, D_HIDDEN),
            gates.narrow(2, D_HIDDEN, D_HIDDEN),
        );
        let candidate = Tensor::cat(vec![input, reset * before.clone()], 2);
        let candidate = self.candidate.forward(candidate).tanh();
        let state = before.clone() + update * (candidate - before);
        let [batch, _, _] = state.dims();
        let states = states.slice_assign([0..batch, step..step + 1, 0..D_HIDDEN], state);
        let states = cx.stream(Site::Block(step, Component::BlockOutput), states);
        Tensor::cat(vec![inputs, states], 2)
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.output.forward(x.narrow(2, D_INPUT, D_HIDDEN))
    }
}

/// Intervenes on a recurrent model.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| swap_states::<B>(&device))
    })
}

fn swap_states<B: Backend>(device: &B::Device) -> Result<()> {
    B::seed(device, 0);
    let linear = |from, to| LinearConfig::new(from, to).init(device);
    // The stream also holds the inputs, so the states are tapped within a step.
    let step = LayerLayout::new([Sublayer::of_rows("step").tapping([Component::BlockOutput])]);
    let model = Gru {
        gates: linear(D_INPUT + D_HIDDEN, 2 * D_HIDDEN),
        candidate: linear(D_INPUT + D_HIDDEN, D_HIDDEN),
        output: linear(D_HIDDEN, 2),
        layout: ModelLayout::new(
            ModelDims::features(STEPS, D_HIDDEN, 2),
            InputKinds::features(D_INPUT),
            vec![step; STEPS],
        )
        .with_opaque_stream()
        .with_layers_as_steps(),
    };
    let random =
        |steps| Tensor::<B, 3>::random([1, steps, D_INPUT], Distribution::Normal(0.0, 2.0), device);
    // The sequences only differ in their first half.
    let end = random(STEPS / 2);
    let base = Tensor::cat(vec![random(STEPS / 2), end.clone()], 1);
    let source = Tensor::cat(vec![random(STEPS / 2), end], 1);
    let last = |logits: Tensor<B, 3>| logits.narrow(1, STEPS - 1, 1);
    let expected = last(model.forward(ModelInput::Features(source.clone())));

    let state = AlignableRepresentationConfig::new(0, Component::BlockOutput).with_unit(Unit::Step);
    let alignable = AlignableModel::new(AlignableConfig::new([state]), model)?;
    let mut differences = Vec::new();
    for step in 0..STEPS {
        let inputs = AlignableInputs::new(base.clone())
            .with_sources([source.clone()])
            .with_locations(step);
        let swapped = last(alignable.forward_inputs(&inputs)?.counterfactual);
        let difference = (swapped - expected.clone()).abs().max().into_data();
        differences.push(difference.iter::<f32>().next().unwrap_or(f32::NAN));
        out!(
            "state swapped at step {step}: {:.6} from the source's logits",
            differences[step]
        )?;
    }
    ensure!(
        differences[..STEPS / 2 - 1].iter().all(|d| *d > 1e-4),
        "the sequences still differ there"
    );
    ensure!(
        differences[STEPS / 2 - 1..].iter().all(|d| *d < 1e-6),
        "the sequences end the same"
    );
    Ok(())
}
