//! Gradients through plans, against finite differences.

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Distribution, Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Indices, LogitPositions, Operand, Plan, Units};
use burn_align::interventions::{AdditionIntervention, BuiltinIntervention, VanillaIntervention};
use burn_align_models::nn::Activation;
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, Site, TokenBatch,
};

use crate::support::{FAMILIES, checkpoints, values};

on_every_backend!(
    gradients_of_activations_are_their_derivatives,
    gradients_flow_through_worlds,
    loaded_weights_are_tracked_on_wish
);

/// Against differences in f64. Burn 0.21's own `gelu` would fail: on most backends, its gradient is
/// that of the tanh approximation.
fn gradients_of_activations_are_their_derivatives<B: Backend>(device: &B::Device) {
    const STEP: f64 = 1e-5;
    for name in [
        "gelu",
        "gelu_10",
        "gelu_new",
        "laplace",
        "leaky_relu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "tanh",
    ] {
        let activation: Activation = name.parse().expect("known");
        // None where a derivative jumps.
        let x: Vec<f64> = (0..200).map(|i| f64::from(i) * 0.0613 - 5.9).collect();
        let at = |shift: f64| -> Vec<f64> {
            let x: Vec<f64> = x.iter().map(|x| x + shift).collect();
            let data = TensorData::new(x, [200]);
            let x = Tensor::<Flex, 1>::from_data(data, (&Default::default(), DType::F64));
            activation.forward(x).into_data().iter().collect()
        };
        let pairs = at(STEP).into_iter().zip(at(-STEP));
        let expected = pairs.map(|(above, below)| (above - below) / (2.0 * STEP));
        let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let x = Tensor::<Autodiff<B>, 1>::from_data(TensorData::new(narrow, [200]), device);
        let x = x.require_grad();
        let gradients = activation.forward(x.clone()).sum().backward();
        let found = x.grad(&gradients).expect("tracked").into_data();
        for (index, (found, expected)) in found.iter::<f64>().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() < 2e-5,
                "{name}, {index}: {found}, not {expected}"
            );
        }
    }
}

/// A weighted sum of the logits of a world that swaps in an activation of another world, which in
/// turn has `steering` added at an earlier layer.
fn loss<B: Backend>(
    model: &Decoder<B>,
    steering: Tensor<B, 3>,
    weights: Tensor<B, 3>,
) -> Tensor<B, 1> {
    let batch = |ids: &[u32]| TokenBatch::new(vec![ids.to_vec()]).expect("a batch");
    let mut plan = Plan::new();
    let (base, source) = (
        plan.tokens(&batch(&[3, 1, 4])),
        plan.tokens(&batch(&[5, 9, 2])),
    );
    let steering = plan.constant(steering);
    let steer = Edit::new(
        Site::Block(0, Component::MlpOutput),
        Units::position(1),
        1,
        Operand::Constant(steering),
    );
    let source = plan.world(source, [steer]);
    // Where the second position has reached the third, through attention.
    let site = match model.dims().parallel {
        true => Component::AttentionOutput,
        false => Component::ResidualMid,
    };
    let site = Site::Block(1, site);
    let swap = Edit::from_world(source, site, Units::position(2), 0)
        .with_features(Indices::Same((0..10).collect()));
    let world = plan.world(base, [swap]);
    let read = plan.read_logits(world, LogitPositions::All);
    let interventions = [
        BuiltinIntervention::from(VanillaIntervention),
        BuiltinIntervention::from(AdditionIntervention),
    ];
    let logits = plan.run(model, &interventions).expect("valid").get(read);
    (logits * weights).sum()
}

fn gradients_flow_through_worlds<B: Backend>(device: &B::Device) {
    const STEP: f32 = 1e-2;
    for name in FAMILIES {
        let folder = checkpoints()[name].clone();
        let options = LoadOptions::default();
        let model = Decoder::<B>::from_pretrained(folder.clone(), &options, device);
        let model = model.expect("a fixture").model;
        let autodiff = Decoder::<Autodiff<B>>::from_pretrained(folder, &options, device);
        let autodiff = autodiff.expect("a fixture").model;

        B::seed(device, 1);
        let normal = Distribution::Normal(0.0, 1.0);
        let steering = Tensor::<B, 3>::random([1, 1, model.dims().d_model], normal, device);
        let weights = Tensor::<B, 3>::random([1, 3, 41], normal, device);
        let tracked = Tensor::from_inner(steering.clone()).require_grad();
        let gradients = loss(
            &autodiff,
            tracked.clone(),
            Tensor::from_inner(weights.clone()),
        )
        .backward();
        let gradient = values(tracked.grad(&gradients).expect("it is tracked"));
        let largest = gradient.iter().fold(0.0_f32, |max, g| max.max(g.abs()));
        assert!(
            largest > 1e-2,
            "{name}: the gradient vanishes: {gradient:?}"
        );

        let d_model = model.dims().d_model;
        for feature in 0..d_model {
            let moved = |by: f32| {
                let mut moved = values(steering.clone());
                moved[feature] += by;
                let moved = Tensor::<B, 1>::from_floats(moved.as_slice(), device);
                values(loss(
                    &model,
                    moved.reshape([1, 1, d_model]),
                    weights.clone(),
                ))[0]
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!(
                (gradient[feature] - difference).abs() <= 1e-2 * largest,
                "{name}, feature {feature}: gradient {}, by differences {difference}",
                gradient[feature]
            );
        }
    }
}

/// How many parameters are tracked, and how many are not.
struct Tracked([usize; 2]);

impl<B: Backend> ModuleVisitor<B> for Tracked {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tracked = param.is_require_grad() && param.val().is_require_grad();
        self.0[usize::from(!tracked)] += 1;
    }
}

fn loaded_weights_are_tracked_on_wish<B: Backend>(device: &B::Device) {
    for name in FAMILIES {
        for wished in [false, true] {
            let options = match wished {
                false => LoadOptions::default(),
                true => LoadOptions::default().with_require_grad(true),
            };
            let folder = checkpoints()[name].clone();
            let loaded = Decoder::<Autodiff<B>>::from_pretrained(folder, &options, device);
            let model = loaded.expect("a fixture").model;
            let mut tracked = Tracked([0, 0]);
            model.visit(&mut tracked);
            let [tracked, untracked] = tracked.0;
            assert!(tracked + untracked > 10, "{name}");
            assert_eq!([tracked > 0, untracked > 0], [wished, !wished], "{name}");
        }
    }
}
