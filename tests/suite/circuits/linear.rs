//! A linear transformer, on which every estimate is exact and effects add up.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_align::methods::attribution::{Metric, Patching};
use burn_align::methods::circuits::{
    CircuitError, EdgeGraph, EdgeOptions, EdgeScores, clean_corrupted, eap, eap_ig_activations,
    eap_ig_inputs, patch_all_edges,
};
use burn_align::paths::Node;
use burn_align_models::nn::{Norm, ParamInit, Projection, SelfAttention, SelfAttentionConfig};
use burn_align_models::{
    AlignableTransformer, ByHead, Component, Cx, ModelDims, ModelInput, ModelLayout, Pass, Site,
};

use super::assert_scores;
use crate::support::{Everywhere, message, random};

on_every_backend!(
    estimates_are_exact_and_add_up,
    heads_that_cannot_be_told_apart_are_refused
);

const WIDTH: usize = 6;
const OUTPUTS: usize = 3;
const SIZE: [usize; 2] = [2, 4];

/// Heads that attend to all positions alike, MLPs without an activation function, and no norms.
#[derive(Module, Debug)]
struct Linear<B: Backend> {
    layers: Vec<Layer<B>>,
    readout: Projection<B>,
    has_heads: bool,
    #[module(skip)]
    layout: ModelLayout,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    attention: SelfAttention<B>,
    hidden: Projection<B>,
    output: Projection<B>,
}

fn model<B: Backend>(has_heads: bool, device: &B::Device) -> Linear<B> {
    let dims = ModelDims {
        heads: 2,
        kv_heads: 1,
        d_head: 3,
        d_mlp: 5,
        ..ModelDims::features(2, WIDTH, OUTPUTS)
    };
    let product = |seed, shape: [usize; 2]| {
        Projection::new(
            Param::from_tensor(random::<B, 2>(seed, shape, device)),
            None,
        )
    };
    let config = SelfAttentionConfig {
        // All scores are 0.
        scale: 0.0,
        ..SelfAttentionConfig::new(&dims)
    };
    let layers = (0..2).map(|layer| {
        let seed = 10 * layer;
        let mut init = ParamInit::new(device, DType::F32, 0, 1.0);
        let mut attention = SelfAttention::new(&config, &mut init);
        attention.q = Some(product(seed, [WIDTH, 6]));
        attention.k = Some(product(seed + 1, [WIDTH, 3]));
        attention.v = Some(product(seed + 2, [WIDTH, 3]));
        attention.output = product(seed + 3, [6, WIDTH]);
        Layer {
            attention,
            hidden: product(seed + 4, [WIDTH, 5]),
            output: product(seed + 5, [5, WIDTH]),
        }
    });
    Linear {
        layers: layers.collect(),
        readout: product(30, [WIDTH, OUTPUTS]),
        has_heads,
        layout: ModelLayout::transformer(dims, |_layer| None),
    }
}

impl<B: Backend> AlignableTransformer<B> for Linear<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.readout.weight.device()
    }

    fn embed(&self, input: ModelInput<B>, _pass: &Pass<B>) -> Tensor<B, 3> {
        match input {
            ModelInput::Features(x) => x,
            ModelInput::Tokens(_) => panic!("this test gives vectors"),
        }
    }

    fn sublayer(
        &self,
        layer: usize,
        sublayer: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let own = &self.layers[layer];
        let site = |component| Site::Block(layer, component);
        if sublayer == 0 {
            let x = cx.stream(site(Component::AttentionInput), x);
            return own.attention.forward(layer, x, cx);
        }
        let x = cx.stream(site(Component::MlpInput), x);
        let hidden = cx.stream(site(Component::MlpActivation), own.hidden.forward(x));
        own.output.forward(hidden)
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.readout.forward(x)
    }

    fn by_head(&self) -> Option<&dyn ByHead<B>> {
        self.has_heads.then_some(self as &dyn ByHead<B>)
    }
}

impl<B: Backend> ByHead<B> for Linear<B> {
    fn head_output(&self, layer: usize, head: usize, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        self.layers[layer].attention.head_output(head, mixed)
    }

    fn attention_norm(&self, _layer: usize) -> Option<&Norm<B>> {
        None
    }

    fn mlp_norm(&self, _layer: usize) -> Option<&Norm<B>> {
        None
    }

    fn head_mixed_normed(
        &self,
        layer: usize,
        head: usize,
        inputs: [Tensor<B, 3>; 3],
        pass: &Pass<B>,
    ) -> Tensor<B, 3> {
        let attention = &self.layers[layer].attention;
        attention.head_mixed(layer, head, inputs, pass)
    }
}

fn input<B: Backend>(seed: u64, device: &B::Device) -> Tensor<B, 3> {
    let [batch, pos] = SIZE;
    random::<B, 3>(seed, [batch, pos, WIDTH], device)
}

/// The mean metric of a prompt.
fn mean<B: Backend>(model: &Linear<B>, x: Tensor<B, 3>) -> f64 {
    let [batch, _pos] = SIZE;
    let logits = model.forward(ModelInput::Features(x));
    let values = crate::support::values(Everywhere.values(logits, &[0, 1]));
    values.into_iter().map(f64::from).sum::<f64>() / batch as f64
}

fn estimates_are_exact_and_add_up<B: Backend>(device: &B::Device) {
    let tracked = model::<Autodiff<B>>(true, device);
    let plain = tracked.valid();
    let patching = Patching::noising(input::<B>(40, device), input::<B>(41, device));
    let options = EdgeOptions::default().with_steps(3).with_own_edges(true);
    let exact = patch_all_edges(&plain, &patching, &Everywhere, &options).expect("valid");
    let estimates: [Result<EdgeScores, CircuitError>; 4] = [
        eap(&tracked, &patching, &Everywhere, &options),
        eap_ig_inputs(&tracked, &patching, &Everywhere, &options),
        eap_ig_activations(&tracked, &patching, &Everywhere, &options),
        clean_corrupted(&tracked, &patching, &Everywhere, &options),
    ];
    for estimate in estimates {
        let estimate = estimate.expect("valid");
        let what = format!("{:?}", estimate.provenance().method);
        assert_scores(estimate.values(), exact.values(), 1e-4, &what);
    }
    // The embedding's edges carry the whole difference between the prompts.
    let graph = exact.graph();
    let embedding = graph.writer(Node::Embedding).expect("always");
    let from_embedding = (graph.edges().zip(exact.values()))
        .filter(|(edge, _)| edge.writer == embedding)
        .map(|(_, score)| score);
    let sum: f64 = from_embedding.sum();
    let [base, source] = [40, 41].map(|seed| mean(&plain, input(seed, device)));
    assert!((base - source).abs() > 0.5);
    assert!((sum - (base - source)).abs() <= 1e-3 * (base - source).abs().max(1.0));
}

fn heads_that_cannot_be_told_apart_are_refused<B: Backend>(device: &B::Device) {
    let model = model::<Autodiff<B>>(false, device);
    let refused = EdgeGraph::of(&model).expect_err("refused");
    assert!(matches!(refused, CircuitError::NoHeads));
    assert!(message(&refused).contains("implement ByHead"));
    let patching = Patching::noising(input::<B>(40, device), input::<B>(41, device));
    let found = eap(&model, &patching, &Everywhere, &EdgeOptions::default());
    assert!(matches!(found, Err(CircuitError::NoHeads)));
    let plain = model.valid();
    let found = patch_all_edges(&plain, &patching, &Everywhere, &EdgeOptions::default());
    assert!(matches!(found, Err(CircuitError::NoHeads)));
}
