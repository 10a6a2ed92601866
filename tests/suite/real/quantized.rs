//! SmolLM2 with its weights as they are in the file.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Plan, Units};
use burn_align::interventions::{
    Orthonormal, OrthonormalMap, RotatedSpaceIntervention, TokenGrouping,
};
use burn_align_models::pretrained::Family;
use burn_align_models::{
    AlignableTransformer, Component, Decoder, FromPretrained, LoadOptions, ModelInput, Site,
};

use super::real;
use crate::support::{tokens, values};

/// The model with its weights in the file, and as tensors.
fn both<B: Backend>() -> Option<[Decoder<B>; 2]> {
    let file = real("SmolLM2-135M-Instruct.Q4_1.gguf")?;
    Some([true, false].map(|keep| {
        let options = LoadOptions::default().with_keep_quantised(keep);
        let loaded = Decoder::from_pretrained(file.clone(), &options, &Default::default());
        loaded.expect("the model").model
    }))
}

/// "The capital of France is".
const FRANCE: [i32; 5] = [504, 3575, 282, 4649, 314];

#[test]
fn smollm2_computes_the_same_whether_or_not_its_weights_stay_quantised() {
    let Some([mut kept, dense]) = both::<Flex>() else {
        return;
    };
    let weights = kept.weights_mut();
    let quantised = weights
        .iter()
        .filter(|(_, weight)| weight.quantized().is_some());
    assert_eq!(quantised.count(), 1 + 7 * 30);
    let tokens = Tensor::<Flex, 2, Int>::from_ints([FRANCE], &Default::default());
    let [kept, dense] = [kept, dense].map(|model| {
        let logits = model.forward(ModelInput::Tokens(tokens.clone()));
        values(logits)
    });
    assert!(dense.iter().all(|x| x.is_finite()) && dense.len() == 5 * 49152);
    assert!(kept == dense);
}

#[test]
fn gradients_of_das_on_smollm2_are_the_same() {
    type A = Autodiff<Flex>;
    let Some(models) = both::<A>() else {
        return;
    };
    let device = Default::default();
    let [kept, dense] = models.map(|model| {
        let d_model = model.dims().d_model;
        let rotation =
            Orthonormal::<A>::random([d_model, 8], OrthonormalMap::Retraction, 0, &device);
        let das = RotatedSpaceIntervention::new(rotation.expect("a shape"), TokenGrouping::Each);
        let mut plan = Plan::new();
        let base = plan.tokens(&tokens(&[&FRANCE.map(|id| id as u32)]));
        let source = plan.tokens(&tokens(&[&[504, 3575, 282, 1234, 314]]));
        let source = plan.world(source, []);
        let site = Site::Block(20, Component::BlockOutput);
        let world = plan.world(
            base,
            [Edit::from_world(source, site, Units::position(3), 0)],
        );
        let read = plan.read_logits(world, LogitPositions::Last);
        let logits = plan
            .run(&model, std::slice::from_ref(&das))
            .expect("valid")
            .get(read);
        let gradients = (logits.clone() * logits).mean().backward();
        values(
            das.featurizer
                .rotation
                .matrix()
                .grad(&gradients)
                .expect("it is tracked"),
        )
    });
    let largest = dense.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    assert!(largest > 0.0 && largest.is_finite() && kept.len() == dense.len());
    for (kept, dense) in kept.iter().zip(&dense) {
        assert!((kept - dense).abs() <= 1e-5 * largest, "{kept}, {dense}");
    }
}
