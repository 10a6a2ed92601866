//! Activations of a model, and the directions found in them.

use burn::tensor::backend::Backend;
use burn_align::engine::{Indices, Plan, PlanError, RunOptions, Units};
use burn_align::interventions::VanillaIntervention;
use burn_align::methods::{
    Activations, DirectionData, DirectionError, DirectionMethod, DirectionOptions, PromptPositions,
    collect_activations, collect_activations_at, find_direction,
};
use burn_align::saved::{ControlVector, ControlVectorError};
use burn_align_models::{AlignableTransformer, Component, Site, TokenBatch};

use super::SITE;
use crate::support::{load, message, tokens, values};

on_every_backend!(
    activations_are_those_of_a_plan,
    directions_of_a_model,
    prompts_that_do_not_fit_are_refused,
);

fn prompts() -> TokenBatch {
    tokens(&[&[3, 1, 4, 1, 5], &[7, 7], &[9, 2, 6]])
}

fn collected<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    site: Site,
    positions: &PromptPositions,
) -> Result<Activations, DirectionError> {
    collect_activations::<B, M>(model, &prompts(), site, positions, &RunOptions::default())
}

fn activations_are_those_of_a_plan<B: Backend>(device: &B::Device) {
    for name in ["gpt2_plain", "llama_gqa"] {
        let model = load::<B>(name, device);
        let heads = Site::Block(0, Component::AttentionValueOutput);
        let sites = [Site::Embedding, heads, SITE];
        let mut plan = Plan::<B>::new();
        let input = plan.tokens(&prompts());
        let world = plan.world(input, []);
        let reads = sites.map(|site| plan.read(world, site, Units::ALL));
        let results = plan.run(&model, &[VanillaIntervention; 0]).expect("valid");

        for (positions, expected) in [
            (PromptPositions::Last, vec![(0, 4), (1, 1), (2, 2)]),
            (
                PromptPositions::From(1),
                vec![(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (2, 1), (2, 2)],
            ),
            (
                PromptPositions::At(Indices::each([[3], [0], [1]])),
                vec![(0, 3), (1, 0), (2, 1)],
            ),
            (
                PromptPositions::At(Indices::same([1, 0])),
                vec![(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)],
            ),
            (
                PromptPositions::At(Indices::All),
                (0..5)
                    .map(|pos| (0, pos))
                    .chain([(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
                    .collect(),
            ),
        ] {
            let options = RunOptions::default();
            let found = collect_activations_at(&model, &prompts(), &sites, &positions, &options);
            let found = found.expect("valid");
            assert_eq!(found.len(), sites.len());
            for (found, read) in found.iter().zip(reads) {
                let read = results.get(read); // [batch, pos, d_site]
                let [_batch, pos, width] = read.dims();
                let read = values(read);
                assert_eq!((found.count(), found.width()), (expected.len(), width));
                let prompts: Vec<usize> = expected.iter().map(|(example, _)| *example).collect();
                assert_eq!(found.prompts(), prompts);
                for (row, (example, position)) in found.rows().zip(&expected) {
                    let start = (example * pos + position) * width;
                    for (found, expected) in row.iter().zip(&read[start..start + width]) {
                        let error = (found - f64::from(*expected)).abs();
                        assert!(error <= 1e-5, "{name}, {positions}: {error}");
                    }
                }
            }
        }
    }
}

fn directions_of_a_model<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let batch = |salt: usize| {
        let prompts = (0..12).map(|example| {
            let id = |pos: usize| ((example * 17 + pos * 29 + salt) % 41) as u32;
            (0..4).map(id).collect()
        });
        TokenBatch::new(prompts.collect()).expect("a batch")
    };
    let sites: Vec<Site> = (0..2)
        .map(|layer| Site::Block(layer, Component::BlockOutput))
        .collect();
    let [positive, negative] = [1, 20].map(|salt| {
        let (positions, options) = (PromptPositions::Last, RunOptions::default());
        collect_activations_at(&model, &batch(salt), &sites, &positions, &options).expect("valid")
    });
    let options = DirectionOptions::default()
        .with_model("gpt2_plain")
        .with_positions(&PromptPositions::Last)
        .with_labels("first", "second");
    let mut found = Vec::new();
    for (site, (positive, negative)) in sites.iter().zip(positive.iter().zip(&negative)) {
        let data = DirectionData::pairs(positive, negative).expect("pairs");
        let method = DirectionMethod::MeanDifference;
        let direction = find_direction(&data, *site, method, &options).expect("a direction");
        direction.check(&model).expect("of this model");
        assert_eq!(direction.provenance.model, "gpt2_plain");
        assert_eq!(direction.provenance.positions, "last token");
        assert_eq!(direction.provenance.labels, ["first", "second"]);
        found.push(direction);
    }

    let mut elsewhere = found[1].clone();
    elsewhere.site = Site::Block(2, Component::BlockOutput);
    let error = elsewhere.check(&model).expect_err("two layers");
    let plan = matches!(error, DirectionError::Plan(PlanError::NoSuchSite { .. }));
    assert!(plan, "{error:?}");
    elsewhere.site = Site::Block(1, Component::MlpActivation);
    let error = elsewhere.check(&model).expect_err("another width");
    assert!(message(&error).ends_with("features, found 16"), "{error:?}");

    // The control vector has the second layer's direction; it cannot have the first's.
    let vector = ControlVector::from_directions("gpt2", &found[1..], 0.5).expect("after block 1");
    let expected: Vec<f32> = found[1].vector.iter().map(|x| 0.5 * x).collect();
    assert_eq!(vector.directions()[&1], expected);
    vector.check(model.dims()).expect("of this model");
    let error = ControlVector::from_directions("gpt2", &found, 0.5).expect_err("after block 0");
    assert!(matches!(error, ControlVectorError::LayerZero), "{error:?}");
    found[0].site = Site::Embedding;
    let error = ControlVector::from_directions("gpt2", &found, 0.5).expect_err("not after one");
    assert!(
        message(&error).starts_with("embedding: expected a direction after a block"),
        "{error:?}"
    );
    let error = ControlVector::from_directions("gpt2", &found[1..], f32::NAN);
    let error = error.expect_err("not finite");
    assert!(
        matches!(error, ControlVectorError::NotFinite { layer: 1, .. }),
        "{error:?}"
    );
}

fn prompts_that_do_not_fit_are_refused<B: Backend>(device: &B::Device) {
    let model = load::<B>("gpt2_plain", device);
    let refused = |site, positions: PromptPositions| {
        collected::<B, _>(&model, site, &positions).expect_err("refused")
    };
    let error = refused(SITE, PromptPositions::From(2));
    assert_eq!(
        message(&error),
        "example 1: expected more than 2 tokens, found 2"
    );
    let scores = Site::Block(0, Component::AttentionScores);
    let error = refused(scores, PromptPositions::Last);
    assert_eq!(error, DirectionError::NoFeatures { site: scores });
    let error = refused(
        Site::Block(9, Component::BlockOutput),
        PromptPositions::Last,
    );
    let plan = matches!(error, DirectionError::Plan(PlanError::NoSuchSite { .. }));
    assert!(plan, "{error:?}");
    let error = refused(SITE, PromptPositions::At(Indices::same([4])));
    let plan = matches!(
        error,
        DirectionError::Plan(PlanError::PositionOutOfRange { .. })
    );
    assert!(plan, "{error:?}");
    let error = refused(SITE, PromptPositions::At(Indices::one_each([0, 0])));
    let plan = matches!(error, DirectionError::Plan(PlanError::WrongBatch { .. }));
    assert!(plan, "{error:?}");
    let unknown = collect_activations(
        &model,
        &tokens(&[&[3, 41]]),
        SITE,
        &PromptPositions::Last,
        &RunOptions::default(),
    );
    let error = unknown.expect_err("an unknown token");
    let plan = matches!(error, DirectionError::Plan(PlanError::Input { .. }));
    assert!(plan, "{error:?}");
}
