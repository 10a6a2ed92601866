//! Values that stop being finite: where, in which run, and what to do.

use burn::backend::{Autodiff, Flex};
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use burn_align::engine::{
    Edit, LogitPositions, NonFinite, NonFiniteCause, NonFiniteValue, Operand, Plan, PlanError,
    RunOptions, Units,
};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType,
};
use burn_align::generate::{
    GenerateError, GenerateOptions, GeneratedWorld, StepEdit, StepOperand, generate,
};
use burn_align::interventions::{
    BuiltinIntervention, LambdaIntervention, Operands, VanillaIntervention,
};
use burn_align::methods::{SweepGrid, probability, sweep};
use burn_align::training::{
    InterchangeData, TrainingConfig, TrainingError, evaluate, losses, train,
};
use burn_align_models::{Component, Decoder, DecoderConfig, FromPretrained, LoadOptions, Site};
use serde_json::json;
use workbench::requests::Request;

use crate::support::{fixtures, tokens};

type B = Flex;

fn at(layer: usize, component: Component) -> Site {
    Site::Block(layer, component)
}

/// A GPT-2 of two layers, in which the second MLP computes numbers of several hundred thousand from
/// weights and activations that fit into f16.
fn loud(dtype: DType) -> Decoder<B> {
    let config = DecoderConfig::from_json(&json!({
        "model_type": "gpt2",
        "vocab_size": 20,
        "n_positions": 8,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
    }))
    .expect("a valid configuration");
    let mut model = config.init_seeded::<B>(3, DType::F32, &Default::default());
    let mlp = &mut model.layers[1].mlp;
    let up = mlp.up.as_mut().expect("a plain MLP");
    for (weight, factor) in [(&mut up.weight, 250.0), (&mut mlp.down.weight, 3e5)] {
        weight.set(weight.val() * factor);
    }
    cast(model, dtype)
}

fn cast(model: Decoder<B>, dtype: DType) -> Decoder<B> {
    use burn::module::{Module, ModuleMapper};
    struct Cast(DType);
    impl ModuleMapper<B> for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    model.map(&mut Cast(dtype))
}

/// The same weight with one element that is NaN.
fn damaged<const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, D> {
    let mut data: Vec<f32> = tensor.to_data().to_vec().expect("f32");
    data[0] = f32::NAN;
    let data = TensorData::new(data, tensor.dims());
    Tensor::from_data(data, &Default::default())
}

/// A world on three tokens, and one on three others.
fn plain() -> Plan<B> {
    let mut plan = Plan::new();
    for ids in [[1, 5, 9], [2, 6, 4]] {
        let input = plan.tokens(&tokens(&[&ids]));
        let world = plan.world(input, []);
        plan.read_logits(world, LogitPositions::Last);
    }
    plan
}

fn found(plan: &Plan<B>, model: &Decoder<B>) -> Option<NonFinite> {
    found_under(plan, model, &[])
}

fn found_under(
    plan: &Plan<B>,
    model: &Decoder<B>,
    interventions: &[BuiltinIntervention<B>],
) -> Option<NonFinite> {
    let options = RunOptions::default();
    plan.find_non_finite(model, interventions, &options)
        .expect("it fits the model")
}

#[test]
fn overflow_in_f16() {
    assert_eq!(found(&plain(), &loud(DType::F32)), None);
    assert_eq!(found(&plain(), &loud(DType::BF16)), None);
    let found = found(&plain(), &loud(DType::F16)).expect("it overflows");
    assert_eq!(found.site, Some(at(1, Component::MlpOutput)), "{found}");
    assert_eq!(found.cause, NonFiniteCause::Computed);
    assert_eq!((found.world, found.example), (0, 0));
    let (magnitude, site) = found.largest.expect("numbers before it");
    assert_eq!(site, at(1, Component::MlpActivation), "{found}");
    assert!((10.0..1e3).contains(&magnitude), "{found}");
    let said = found.to_string();
    for part in [
        "world 0: values stop being finite at layer 1 mlp_output (example 0, position ",
        "at layer 1 mlp_activation",
        "f16 ends at 65504; load the model in bf16 or f32",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_weight_that_is_not_finite() {
    let mut model = loud(DType::F32);
    let qkv = model.layers[1].attention.qkv.as_mut();
    let weight = &mut qkv.expect("GPT-2 has one matrix").weight;
    weight.set(damaged(weight.val()));
    let found = found(&plain(), &model).expect("no number");
    let name = "layers.1.attention.qkv.weight".to_owned();
    assert_eq!(found.cause, NonFiniteCause::Weight { name });
    // The first element is of the first query.
    assert_eq!(found.site, Some(at(1, Component::QueryOutput)));
    assert_eq!((found.head, found.position), (Some(0), 0));
    assert_eq!(found.value, NonFiniteValue::Nan);
    assert!(
        found
            .to_string()
            .contains("`layers.1.attention.qkv.weight` is not finite itself"),
        "{found}"
    );
}

#[test]
fn an_intervention_and_its_source() {
    let model = loud(DType::F32);
    let site = at(0, Component::AttentionOutput);
    let nothing = |operand| {
        let mut plan = plain();
        let input = plan.tokens(&tokens(&[&[1, 5, 9], &[2, 6, 4]]));
        let world = plan.world(input, [Edit::new(site, Units::position(2), 0, operand)]);
        plan.read_logits(world, LogitPositions::Last);
        plan
    };
    let divides = LambdaIntervention::new(|base: Tensor<B, 3>, _: &Operands<B>| {
        base.clone() / (base.clone() - base)
    });
    let divides = [BuiltinIntervention::from(divides)];
    let found = found_under(&nothing(Operand::None), &model, &divides).expect("divided by 0");
    assert_eq!(found.cause, NonFiniteCause::Intervention { index: 0 });
    assert_eq!((found.world, found.example, found.position), (2, 0, 2));
    assert_eq!(found.site, Some(site));

    let swap = [BuiltinIntervention::from(VanillaIntervention)];
    let mut plan = plain();
    let input = plan.tokens(&tokens(&[&[1, 5, 9]]));
    let infinite = plan.constant(Tensor::full([1, 1, 16], f32::INFINITY, &Default::default()));
    let edit = Edit::new(site, Units::position(1), 0, Operand::Constant(infinite));
    let world = plan.world(input, [edit]);
    plan.read_logits(world, LogitPositions::Last);
    let found = found_under(&plan, &model, &swap).expect("given infinity");
    assert_eq!(found.cause, NonFiniteCause::Source { index: 0 });
    assert_eq!((found.position, found.value), (1, NonFiniteValue::Infinity));
}

/// A source that is not finite is where it begins, even if the base is changed at an earlier site.
#[test]
fn a_source_comes_before_what_takes_from_it() {
    let model = loud(DType::F16);
    let mut plan = Plan::new();
    let [base, source] = [[1, 5, 9], [2, 6, 4]].map(|ids| plan.tokens(&tokens(&[&ids])));
    let source = plan.world(source, []);
    let operand = Operand::Activation {
        world: source,
        site: at(1, Component::BlockOutput),
        units: Units::position(2),
    };
    let edit = Edit::new(at(0, Component::BlockInput), Units::position(2), 0, operand);
    let swapped = plan.world(base, [edit]);
    plan.read(swapped, at(0, Component::BlockOutput), Units::position(2));
    let swap = [BuiltinIntervention::from(VanillaIntervention)];
    let found = found_under(&plan, &model, &swap).expect("it overflows");
    assert_eq!(found.world, 0);
    assert_eq!(found.site, Some(at(1, Component::MlpOutput)));
}

/// Masked scores are negative infinity, which is not an error.
#[test]
fn attention_may_be_ruled_out() {
    let mut model = loud(DType::F32);
    let edit = |plan: &mut Plan<B>| {
        let input = plan.tokens(&tokens(&[&[1, 5, 9]]));
        let units = Units::position(2).of_head(1);
        let edit = Edit::new(at(0, Component::AttentionScores), units, 0, Operand::None);
        let world = plan.world(input, [edit]);
        plan.read_logits(world, LogitPositions::Last);
    };
    let mut plan = Plan::new();
    edit(&mut plan);
    let rules_out = LambdaIntervention::new(|base: Tensor<B, 3>, _: &Operands<B>| {
        let [batch, unit, keys] = base.dims();
        let none = Tensor::full([batch, unit, 1], f32::NEG_INFINITY, &base.device());
        Tensor::cat(vec![none, base.narrow(2, 1, keys - 1)], 2)
    });
    let rules_out = [BuiltinIntervention::from(rules_out)];
    assert_eq!(found_under(&plan, &model, &rules_out), None);
    // Something else is wrong; the scores are not the cause.
    let weight = &mut model.layers[1].mlp.down.weight;
    weight.set(damaged(weight.val()));
    let found = found_under(&plan, &model, &rules_out).expect("a weight");
    assert_eq!(found.site, Some(at(1, Component::MlpOutput)), "{found}");
    // A query whose scores are all masked has NaN weights.
    let all = LambdaIntervention::new(|base: Tensor<B, 3>, _: &Operands<B>| {
        Tensor::full(base.dims(), f32::NEG_INFINITY, &base.device())
    });
    let all = [BuiltinIntervention::from(all)];
    let found = found_under(&plan, &loud(DType::F32), &all);
    // Flex gives 0 or NaN for these, and both are reported correctly.
    if let Some(found) = found {
        assert_eq!(
            found.site,
            Some(at(0, Component::AttentionScores)),
            "{found}"
        );
        assert_eq!(found.cause, NonFiniteCause::Intervention { index: 0 });
        assert_eq!((found.head, found.position), (Some(1), 2));
    }
}

#[test]
fn sweeps_say_so() {
    let model = loud(DType::F16);
    let [base, source] = [[1, 5, 9], [2, 6, 4]].map(|ids| tokens(&[&ids]));
    let words: Vec<String> = (0..3).map(|word| word.to_string()).collect();
    let grid = SweepGrid::layers_and_positions(Component::BlockOutput, 1, &words);
    let metric = |logits| probability(logits, 3);
    let options = RunOptions::default();
    let swept = |model: &Decoder<B>| {
        sweep(
            model,
            &VanillaIntervention,
            [&base, &source],
            &grid,
            metric,
            &options,
        )
    };
    let error = swept(&model).expect_err("it overflows");
    let PlanError::NonFinite(found) = &error else {
        panic!("{error}");
    };
    assert_eq!(found.site, Some(at(1, Component::MlpOutput)));
    assert!(
        error.to_string().contains("load the model in bf16 or f32"),
        "{error}"
    );
    swept(&loud(DType::F32)).expect("it does not");
    // An infinity of the metric itself is not an error.
    let own = |logits: Tensor<B, 2>| probability(logits, 3).log() * f32::INFINITY;
    sweep(
        &loud(DType::F32),
        &VanillaIntervention,
        [&base, &source],
        &grid,
        own,
        &options,
    )
    .expect("the run is finite");
}

/// The fixture `gpt2_plain`, with a NaN weight.
fn broken() -> workbench::requests::Model<B> {
    let folder = fixtures().join("checkpoints/gpt2_plain");
    let loaded =
        Decoder::<B>::from_pretrained(folder, &LoadOptions::default(), &Default::default());
    let mut loaded = loaded.expect("a fixture");
    let up = loaded.model.layers[1].mlp.up.as_mut();
    let weight = &mut up.expect("a plain MLP").weight;
    weight.set(damaged(weight.val()));
    loaded
}

#[test]
fn requests_are_refused() {
    let model = broken();
    let answer = |request: &str| {
        let request = Request::parse(request).expect("a request");
        let answer = request.answer(&fixtures(), &model, &Default::default());
        answer.err().map(|error| format!("{error:#}"))
    };
    let plain = r#"{"model": "", "base": {"input_ids": [[1, 5, 9]]}}"#;
    let error = answer(plain).expect("no answer");
    let expected = "the base: values stop being finite at layer 1 mlp_activation (example 0, \
                    position 0: NaN";
    assert!(error.starts_with(expected), "{error}");
    assert!(
        error.contains("the weight `layers.1.mlp.up.weight`"),
        "{error}"
    );
    assert!(!error.contains('\n'), "{error}");

    let swapped = |component: &str, kind: &str| {
        let request = format!(
            r#"{{"model": "", "base": {{"input_ids": [[1, 5, 9]]}},
                "sources": [{{"input_ids": [[2, 6, 4]]}}],
                "config": {{"alignable_representations": [
                    {{"alignable_layer": 1, "alignable_representation_type": "{component}"}}],
                    "alignable_interventions_type": "{kind}"}},
                "unit_locations": {{"sources->base": 2}}}}"#
        );
        answer(&request)
    };
    let error = swapped("mlp_output", "VanillaIntervention").expect("no answer");
    assert!(error.starts_with("source 0: values stop"), "{error}");
    let error = swapped("mlp_input", "VanillaIntervention").expect("no answer");
    assert!(
        error.starts_with("the base under the interventions: "),
        "{error}"
    );
}

#[test]
fn training_and_evaluation_say_so() {
    type A = Autodiff<B>;
    let ids = |salt: u32| {
        let rows: Vec<[u32; 3]> = (0..4).map(|row| [row + salt, row, salt]).collect();
        let rows: Vec<&[u32]> = rows.iter().map(|row| &row[..]).collect();
        tokens(&rows)
    };
    let inputs = AlignableInputs::new(ids(1))
        .with_sources([ids(5)])
        .with_locations(1);
    let data = [InterchangeData::<B>::new(inputs, vec![1, 2, 3, 4])];
    let residual = AlignableRepresentationConfig::new(0, Component::BlockOutput).with_low_rank(2);
    let config = AlignableConfig::new([residual]);
    let is_said = |error: TrainingError| match error {
        TrainingError::Plan(PlanError::NonFinite(found)) => {
            assert_eq!(found.site, Some(at(1, Component::MlpActivation)), "{found}");
            assert!(
                matches!(found.cause, NonFiniteCause::Weight { .. }),
                "{found}"
            );
        }
        other => panic!("{other}"),
    };

    let model = AlignableModel::new(config.clone(), broken().model).expect("it fits");
    is_said(evaluate(&model, &data, 2).expect_err("no number"));

    let folder = fixtures().join("checkpoints/gpt2_plain");
    let options = LoadOptions::default();
    let model = Decoder::<A>::from_pretrained(folder, &options, &Default::default());
    let mut model = model.expect("a fixture").model;
    let up = model.layers[1].mlp.up.as_mut();
    let weight = &mut up.expect("a plain MLP").weight;
    let broken = damaged(weight.val().inner());
    weight.set(Tensor::from_inner(broken));
    let model = AlignableModel::new(config, model).expect("it fits");
    let config = TrainingConfig::default().with_epochs(1).with_batch_size(2);
    let trained = train(model, &data, &[], &config, losses::cross_entropy, |_| {});
    is_said(trained.map(|_| ()).expect_err("no number"));
}

/// A step of generated text, whose prompt is finite.
#[test]
fn generated_tokens_are_checked() {
    let site = at(0, Component::BlockOutput);
    let model = loud(DType::F32);
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&tokens(&[&[1, 5, 9], &[2, 6, 4]]));
    let (plain, edited) = (plan.world(input, []), plan.world(input, []));
    let run = |value: f32| {
        let value = Tensor::<B, 3>::full([1, 1, 16], value, &Default::default());
        let value = StepOperand::Constant(value);
        let edit = StepEdit::new(site, 0, value).at_step(1);
        let worlds = [
            GeneratedWorld::new(plain),
            GeneratedWorld::new(edited).with_edit(edit),
        ];
        let options = GenerateOptions::new(4);
        generate(
            &model,
            &[VanillaIntervention],
            &plan,
            &worlds,
            &options,
            |_| {},
        )
    };
    run(0.5).expect("finite");
    let error = run(f32::NAN).expect_err("no number");
    let GenerateError::Plan(PlanError::NonFinite(found)) = &error else {
        panic!("{error}");
    };
    assert_eq!(found.site, Some(site), "{found}");
    assert_eq!(found.cause, NonFiniteCause::Source { index: 0 });
    let said = found.to_string();
    let expected = "row 2, token 2: values stop being finite at layer 0 block_output (example 0, \
        position 4: NaN";
    assert!(said.starts_with(expected), "{said}");
}

/// Collected activations are also checked.
#[test]
fn collected_activations_are_checked() {
    let collect = AlignableRepresentationConfig::new(1, Component::MlpActivation)
        .with_intervention(InterventionType::Collect);
    let config = AlignableConfig::new([collect]);
    let model = AlignableModel::new(config, broken().model).expect("it fits");
    let inputs = AlignableInputs::new(tokens(&[&[1, 5, 9]]))
        .with_locations(burn_align::front::UnitLocations::base(2));
    let found = model
        .find_non_finite(&inputs)
        .expect("it fits")
        .expect("no number");
    assert_eq!(found.run, "the base under the interventions");
    assert_eq!(found.site, Some(at(1, Component::MlpActivation)));
}
