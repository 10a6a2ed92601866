//! What several devices must compute exactly as the first of them alone.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Operand, Plan, RunOptions, Units, replicate};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
    InterventionType,
};
use burn_align::interventions::{AdditionIntervention, VanillaIntervention};
use burn_align::methods::{SweepGrid, probability, sweep, sweep_on_devices};
use burn_align::training::{
    History, InterchangeData, Targets, TrainingConfig, losses, train, train_on_devices,
};
use burn_align_models::{Component, Decoder, Site, TokenBatch};

use crate::support::{load, values};

fn prompts(examples: usize, salt: usize) -> TokenBatch {
    let ids = (0..examples).map(|example| {
        let id = |pos: usize| ((example * 17 + pos * 29 + salt * (example + 3)) % 41) as u32;
        // Of different lengths; all of them have position 3.
        (0..4 + example % 3).map(id).collect()
    });
    TokenBatch::new(ids.collect()).expect("a batch")
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(difference <= 1e-5, "expected {expected}, found {found}");
    }
}

/// A sweep on devices is the sweep on the first of them.
pub(crate) fn a_sweep_agrees<B: Backend>(devices: &[B::Device]) {
    let model = load::<B>("gpt2_plain", &devices[0]);
    let names: Vec<String> = (0..4).map(|position| position.to_string()).collect();
    let grid = SweepGrid::layers_and_positions(Component::BlockOutput, 2, &names);
    let (base, source) = (prompts(3, 5), prompts(3, 11));
    let metric = |logits| probability(logits, 5);
    let (prompts, vanilla) = ([&base, &source], VanillaIntervention);
    let options = RunOptions::default();
    let expected = sweep(&model, &vanilla, prompts, &grid, metric, &options).expect("valid");
    let models = replicate(&model, devices);
    for options in [options, RunOptions::default().with_max_rows(9)] {
        let found = sweep_on_devices(&models, &vanilla, prompts, &grid, metric, &options);
        let found = found.expect("valid");
        assert_eq!(found.columns, expected.columns);
        let numbers = |values: &[Vec<f64>]| -> Vec<f32> {
            values.iter().flatten().map(|value| *value as f32).collect()
        };
        assert_close(&numbers(&found.values), &numbers(&expected.values));
    }
}

/// A plan that holds tensors, reads several things from a world, and uses worlds as sources of
/// others, gives the same on several devices as on the first of them.
pub(crate) fn a_plan_agrees<B: Backend>(devices: &[B::Device]) {
    let model = load::<B>("gpt2_plain", &devices[0]);
    let width = 16;
    let mut plan = Plan::<B>::new();
    let input = plan.tokens(&prompts(3, 5));
    let site = |layer| Site::Block(layer, Component::BlockOutput);
    let constants = [0.5, -0.25].map(|value| {
        let values = Tensor::full([1, 1, width], value, &devices[0]);
        plan.constant(values)
    });
    let first = Edit::new(
        site(0),
        Units::position(1),
        0,
        Operand::Constant(constants[0]),
    );
    let source = plan.world(input, [first]);
    plan.read(source, site(1), Units::position(2));
    for position in 0..3 {
        let at = Units::position(position);
        let taken = Edit::from_world(source, site(0), at.clone(), 0);
        let added = Edit::new(site(1), at.clone(), 0, Operand::Constant(constants[1]));
        let world = plan.world(input, [taken, added]);
        plan.read_logits(world, LogitPositions::Last);
        plan.read(world, site(1), at);
    }
    let expected = plan.run(&model, &[AdditionIntervention]).expect("valid");
    let models = replicate(&model, devices);
    let found = plan.run_on_devices(&models, &[AdditionIntervention], &RunOptions::default());
    for (found, expected) in found.expect("valid").iter().zip(expected.iter()) {
        assert_eq!(found.device(), devices[0]);
        assert_close(&values(found.clone()), &values(expected.clone()));
    }
    // Also for a frozen plan, whose tensors are the residuals.
    let frozen = plan
        .freeze(
            &model,
            &[AdditionIntervention],
            |_| true,
            &RunOptions::default(),
        )
        .expect("valid");
    assert!(frozen.held_bytes() > plan.held_bytes());
    let found = frozen.run_on_devices(&models, &[AdditionIntervention], &RunOptions::default());
    for (found, expected) in found.expect("valid").iter().zip(expected.iter()) {
        assert_close(&values(found.clone()), &values(expected.clone()));
    }
}

/// All parameters of interventions.
fn parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<f32> {
    struct Values(Vec<f32>);
    impl<B: Backend> ModuleVisitor<B> for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.extend(values(param.val()));
        }
    }
    let mut found = Values(Vec::new());
    module.visit(&mut found);
    found.0
}

pub(crate) type Model<B> = AlignableModel<B, Decoder<B>>;

pub(crate) fn model<B: Backend>(kind: InterventionType, device: &B::Device) -> Model<B> {
    let mut representation =
        AlignableRepresentationConfig::new(0, Component::BlockOutput).with_intervention(kind);
    representation.low_rank_dimension = Some(4);
    let config = AlignableConfig::new([representation]);
    AlignableModel::new(config, load("gpt2_plain", device)).expect("it fits")
}

/// 11 examples: not a multiple of the number of devices.
pub(crate) fn data<B: Backend>() -> InterchangeData<B> {
    let inputs = AlignableInputs::new(prompts(11, 5))
        .with_sources([prompts(11, 11)])
        .with_locations(3);
    InterchangeData::new(inputs, (0..11).map(|example| example * 3 % 41))
}

/// A few steps on devices are those on the first of them.
fn agrees<B: Backend>(
    kind: InterventionType,
    data: &InterchangeData<B>,
    config: &TrainingConfig,
    devices: &[B::Device],
    loss: impl Fn(Tensor<Autodiff<B>, 3>, &Targets<Autodiff<B>>) -> Tensor<Autodiff<B>, 1>,
) {
    let data = std::slice::from_ref(data);
    let start = || model::<Autodiff<B>>(kind, &devices[0]);
    let before = parameters(&start().interventions().to_vec());
    let (expected, history) =
        train(start(), data, data, config, &loss, |_| {}).expect("it can be trained");
    let (found, on_devices) = train_on_devices(start(), devices, data, data, config, &loss, |_| {})
        .expect("it can be trained");
    let numbers = |history: &History| -> Vec<f32> {
        history.steps.iter().map(|step| step.loss as f32).collect()
    };
    assert_close(&numbers(&on_devices), &numbers(&history));
    let judged = |history: &History| -> Vec<f64> {
        let epochs = history.epochs.iter();
        epochs
            .filter_map(|epoch| epoch.held_out.map(|it| it.accuracy))
            .collect()
    };
    assert_eq!(judged(&on_devices), judged(&history));
    let [found, expected] =
        [&found, &expected].map(|model| parameters(&model.interventions().to_vec()));
    assert_close(&found, &expected);
    let moved = before.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    assert!(moved.fold(0.0, f32::max) > 1e-3, "nothing was learned");
}

/// Distributed alignment search on devices, with batches that do not divide evenly, some or all
/// examples kept, a penalty, masks, and a loss that is not a mean over examples.
pub(crate) fn a_run_agrees<B: Backend>(devices: &[B::Device]) {
    let config = TrainingConfig::default()
        .with_epochs(2)
        .with_batch_size(4)
        .with_accumulation(2);
    for (kind, budget) in [
        (InterventionType::LowRankRotatedSpace, 2 << 30),
        (InterventionType::LowRankRotatedSpace, 3000),
        (InterventionType::BoundlessRotatedSpace, 2 << 30),
    ] {
        let config = config.clone().with_memory_budget(budget);
        let data = data::<B>();
        agrees(kind, &data, &config, devices, losses::cross_entropy);
    }
    let largest = |logits: Tensor<Autodiff<B>, 3>, targets: &Targets<Autodiff<B>>| {
        losses::cross_entropy(logits.clone(), targets) + logits.max()
    };
    let kind = InterventionType::LowRankRotatedSpace;
    agrees(kind, &data::<B>(), &config, devices, largest);
}

/// The same with losses at all positions of prompts of different lengths.
pub(crate) fn a_padded_run_agrees<B: Backend>(devices: &[B::Device]) {
    let mut data = data::<B>();
    data.positions = LogitPositions::All;
    data.labels = vec![(0..6).collect(); 11];
    let config = TrainingConfig::default().with_epochs(2).with_batch_size(5);
    let kind = InterventionType::LowRankRotatedSpace;
    agrees(kind, &data, &config, devices, losses::cross_entropy);
}
