//! A linear model, on which every estimate is exact.

use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::dictionaries::{Dictionary, FeatureActivation};
use burn_align::engine::{RunOptions, Units};
use burn_align::methods::attribution::{
    AtpOptions, AttributionError, IntegrationOptions, IntegrationPath, Patching, Steps,
    SubsetOptions, attribute_features, attribution_patching, bound_missed, integrated_gradients,
    patch_features, patch_nodes,
};
use burn_align_models::{
    AlignableTransformer, Component, Cx, InputKinds, LayerLayout, ModelDims, ModelInput,
    ModelLayout, Pass, Site, Sublayer,
};

use super::assert_same_effects;
use crate::support::{Everywhere, random};

on_every_backend!(
    estimates_are_exact,
    features_are_attributed_exactly,
    bounds_contain_exact_effects,
    a_layer_that_replaces_the_stream_cannot_be_dropped,
);

const WIDTH: usize = 6;
const OUTPUTS: usize = 3;
const SIZE: [usize; 2] = [2, 4];
const LAYERS: usize = 3;

/// Layers that replace the stream by a product with a matrix, and a linear readout; positions do
/// not meet.
#[derive(Module, Debug)]
struct Linear<B: Backend> {
    layers: Vec<Param<Tensor<B, 2>>>,
    readout: Param<Tensor<B, 2>>,
    #[module(skip)]
    layout: ModelLayout,
}

fn model<B: Backend>(device: &B::Device) -> Linear<B> {
    let matrix = |seed, shape: [usize; 2]| Param::from_tensor(random::<B, 2>(seed, shape, device));
    let layer = Sublayer::by_position("layer").followed_by(Component::BlockOutput);
    Linear {
        layers: (0..LAYERS)
            .map(|layer| matrix(layer as u64, [WIDTH, WIDTH]))
            .collect(),
        readout: matrix(10, [WIDTH, OUTPUTS]),
        layout: ModelLayout::new(
            ModelDims::features(LAYERS, WIDTH, OUTPUTS),
            InputKinds::features(WIDTH),
            vec![LayerLayout::new([layer]); LAYERS],
        ),
    }
}

/// `x W`, for every position.
fn times<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, pos, width] = x.dims();
    let [_width, outputs] = weight.dims();
    let product = x.reshape([batch * pos, width]).matmul(weight);
    product.reshape([batch, pos, outputs])
}

impl<B: Backend> AlignableTransformer<B> for Linear<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.readout.val().device()
    }

    fn embed(&self, input: ModelInput<B>, _pass: &Pass<B>) -> Tensor<B, 3> {
        match input {
            ModelInput::Features(x) => x,
            ModelInput::Tokens(_) => panic!("this model reads features"),
        }
    }

    fn sublayer(&self, layer: usize, _: usize, x: Tensor<B, 3>, _: &mut Cx<'_, B>) -> Tensor<B, 3> {
        times(x, self.layers[layer].val())
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        times(x, self.readout.val())
    }
}

fn patching<B: Backend>(device: &B::Device) -> Patching<B> {
    let [batch, pos] = SIZE;
    let input = |seed| random::<B, 3>(seed, [batch, pos, WIDTH], device);
    Patching::denoising(input(20), input(21))
}

fn after(layer: usize) -> Site {
    Site::Block(layer, Component::BlockOutput)
}

fn nodes() -> Vec<(Site, Units)> {
    let sites = [Site::Embedding, after(0), after(1), after(2)];
    let [_batch, pos] = SIZE;
    let by_position = sites
        .iter()
        .flat_map(|site| (0..pos).map(move |at| (*site, Units::position(at))));
    let whole = sites.iter().map(|site| (*site, Units::ALL));
    by_position.chain(whole).collect()
}

fn estimates_are_exact<B: Backend>(device: &B::Device) {
    let (plain, tracked) = (model::<B>(device), model::<Autodiff<B>>(device));
    let options = RunOptions::default();
    let exact = patch_nodes(&plain, &patching(device), &nodes(), &Everywhere, &options);
    let exact = exact.expect("valid");
    let effects = exact.means();
    assert!(
        effects.iter().any(|effect| effect.abs() > 0.5),
        "{effects:?}"
    );
    let options = AtpOptions::default();
    let found = attribution_patching(&tracked, &patching(device), &nodes(), &Everywhere, &options);
    assert_same_effects(&found.expect("valid"), &exact, 1e-4);
    for path in [IntegrationPath::Embedding, IntegrationPath::EachNode] {
        let options = IntegrationOptions::default()
            .with_path(path)
            .with_steps(Steps::left(2));
        let found =
            integrated_gradients(&tracked, &patching(device), &nodes(), &Everywhere, &options);
        assert_same_effects(&found.expect("valid"), &exact, 1e-4);
    }
}

fn dictionary<B: Backend>(device: &B::Device) -> Dictionary<B> {
    const FEATURES: usize = 9;
    let encoder = (
        random(30, [WIDTH, FEATURES], device),
        random(31, [FEATURES], device),
    );
    let decoder = (
        random(32, [FEATURES, WIDTH], device),
        random(33, [WIDTH], device),
    );
    Dictionary::new(encoder, FeatureActivation::top_k(4), decoder).expect("it fits")
}

fn features_are_attributed_exactly<B: Backend>(device: &B::Device) {
    let (plain, tracked) = (model::<B>(device), model::<Autodiff<B>>(device));
    let sites = [after(1), after(1)];
    let options = RunOptions::default();
    let found = attribute_features(
        &tracked,
        &patching(device),
        &dictionary(device),
        sites,
        &Units::ALL,
        &Everywhere,
        &options,
    );
    let found = found.expect("valid");
    let all: Vec<usize> = (0..dictionary::<B>(device).features()).collect();
    let selected = dictionary::<B>(device).select(&all).expect("they exist");
    let exact = patch_features(
        &plain,
        &patching(device),
        &selected,
        sites,
        &Units::ALL,
        &Everywhere,
        &options,
    );
    let exact = exact.expect("valid");
    let mut largest = 0.0_f64;
    for (example, row) in found.effects.iter().enumerate() {
        for (feature, effect) in row.iter().enumerate() {
            let expected = exact.effects[feature][example];
            assert!((effect - expected).abs() <= 1e-4, "{effect}, {expected}");
            largest = largest.max(effect.abs());
        }
        // Features and error together are the activation.
        let whole = found.source[example] - found.base[example];
        let sum = row.iter().sum::<f64>() + found.error[example];
        assert!((sum - whole).abs() <= 1e-4, "{sum}, {whole}");
    }
    assert!(largest > 0.1, "no feature has an effect");
    let ranked = found.ranked();
    assert!(ranked.is_sorted_by(|a, b| a.1.abs() >= b.1.abs()));

    let wrong = attribute_features(
        &tracked,
        &patching(device),
        &dictionary(device),
        [after(0), after(1)],
        &Units::ALL,
        &Everywhere,
        &options,
    );
    assert!(
        matches!(wrong, Err(AttributionError::Option { .. })),
        "{wrong:?}"
    );
}

fn bounds_contain_exact_effects<B: Backend>(device: &B::Device) {
    let plain = model::<B>(device);
    // Nodes that do not interact.
    let [_batch, pos] = SIZE;
    let nodes: Vec<_> = (0..pos).map(|at| (after(0), Units::position(at))).collect();
    let run = RunOptions::default();
    let exact = patch_nodes(&plain, &patching(device), &nodes, &Everywhere, &run);
    let exact = exact.expect("valid").means();
    let options = SubsetOptions::default()
        .with_samples(100)
        .with_probability(0.3);
    let bound = |verified: &[usize]| {
        bound_missed(
            &plain,
            &patching(device),
            &nodes,
            verified,
            &Everywhere,
            &options,
        )
    };
    let found = bound(&[2]).expect("valid");
    assert_eq!(found.nodes, [0, 1, 3]);
    for (index, node) in found.nodes.iter().enumerate() {
        let (bound, effect) = (found.bounds[index], exact[*node]);
        assert!(
            effect.abs() <= bound,
            "node {node}: {effect}, bound {bound}"
        );
        assert!(bound.is_finite());
    }
    let largest = found.bounds.iter().copied().fold(0.0, f64::max);
    assert_eq!(found.largest(), largest);
    // More samples, tighter bounds.
    let more = options.clone().with_samples(1600);
    let more = bound_missed(&plain, &patching(device), &nodes, &[2], &Everywhere, &more);
    assert!(more.expect("valid").largest() < largest);
    // One node alone is measured without noise.
    let alone = bound(&[0, 1, 2]).expect("valid");
    assert!((alone.largest() - exact[3].abs()).abs() <= 1e-4);
    assert_eq!(bound(&[0, 1, 2, 3]).expect("valid").largest(), 0.0);
}

fn a_layer_that_replaces_the_stream_cannot_be_dropped<B: Backend>(device: &B::Device) {
    let tracked = model::<Autodiff<B>>(device);
    let options = AtpOptions::star();
    let found = attribution_patching(&tracked, &patching(device), &nodes(), &Everywhere, &options);
    assert!(
        matches!(found, Err(AttributionError::NotResidual { layer: 0 })),
        "{found:?}"
    );
}
