//! How do you make your own model alignable?
//!
//! By saying what its layers are made of, and running one of them at a time. Here: a plain MLP
//! classifier, whose input is features, with one position and no tokens.
//!
//! ```sh
//! cargo run --release --example your_own_model
//! ```
//!
//! Swaps one hidden layer in from another input, whole and by halves, and prints the logits.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Distribution, Tensor, activation::relu, backend::Backend};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig, Subspaces,
};
use burn_align_models::{
    AlignableTransformer, Component, Cx, InputKinds, LayerLayout, ModelDims, ModelInput,
    ModelLayout, Pass, Sublayer,
};
use clap::Parser;
use workbench::{BackendArgs, on_backend, out};

/// `relu(x W)`, layer by layer, then a linear classifier.
#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    input: Linear<B>,
    hidden: Vec<Linear<B>>,
    output: Linear<B>,
    #[module(skip)]
    layout: ModelLayout,
}

impl<B: Backend> AlignableTransformer<B> for Mlp<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.input.weight.val().device()
    }

    fn embed(&self, input: ModelInput<B>, _pass: &Pass<B>) -> Tensor<B, 3> {
        let ModelInput::Features(x) = input else {
            panic!("this model reads features, not tokens");
        };
        self.input.forward(x)
    }

    fn sublayer(&self, layer: usize, _: usize, x: Tensor<B, 3>, _: &mut Cx<'_, B>) -> Tensor<B, 3> {
        relu(self.hidden[layer].forward(x))
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.output.forward(x)
    }
}

/// Makes a custom model alignable.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
}

fn main() -> ExitCode {
    workbench::run(|args: Args| {
        args.backend.check()?;
        on_backend!(args.backend.backend, |B, device| swap_hidden::<B>(&device))
    })
}

fn swap_hidden<B: Backend>(device: &B::Device) -> Result<()> {
    B::seed(device, 0);
    let linear = |from, to| LinearConfig::new(from, to).init(device);
    let hidden = Sublayer::by_position("hidden layer").followed_by(Component::BlockOutput);
    let model = Mlp {
        input: linear(4, 16),
        hidden: vec![linear(16, 16), linear(16, 16)],
        output: linear(16, 3),
        layout: ModelLayout::new(
            ModelDims::features(2, 16, 3), // layers, width, outputs
            InputKinds::features(4),
            vec![LayerLayout::new([hidden]); 2],
        ),
    };
    let random = || Tensor::<B, 3>::random([1, 1, 4], Distribution::Normal(0.0, 1.0), device);
    let (base, source) = (random(), random());
    let expected = model.forward(ModelInput::Features(source.clone()));

    let hidden = AlignableRepresentationConfig::new(0, Component::BlockOutput)
        .with_subspace_partition(vec![vec![0, 8], vec![8, 16]]);
    let alignable = AlignableModel::new(AlignableConfig::new([hidden]), model)?;
    let inputs = AlignableInputs::new(base)
        .with_sources([source])
        .with_original_output();
    let whole = alignable.forward_inputs(&inputs)?;
    let show = |name: &str, logits: &Tensor<B, 3>| {
        let logits = logits.to_data().iter::<f32>().collect::<Vec<f32>>();
        out!("{name:<22} {logits:+.4?}")
    };
    show("base", whole.original.as_ref().expect("requested above"))?;
    show("source", &expected)?;
    for half in [0, 1] {
        let inputs = inputs
            .clone()
            .with_subspaces(Subspaces::Everywhere(vec![half]));
        let swapped = alignable.forward_inputs(&inputs)?.counterfactual;
        show(&format!("half {half} swapped in"), &swapped)?;
    }
    show("whole layer swapped in", &whole.counterfactual)?;
    let difference = (whole.counterfactual - expected).abs().max().into_data();
    let difference = difference.iter::<f32>().next().unwrap_or(f32::NAN);
    ensure!(
        difference < 1e-6,
        "the whole layer does not bring the source's logits"
    );
    Ok(())
}
