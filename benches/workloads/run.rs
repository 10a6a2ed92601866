//! Workloads, run on one backend.

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, backend::Backend};
use burn_align::engine::{Edit, LogitPositions, Plan, RunOptions, Units, WorldId};
use burn_align::front::{
    AlignableConfig, AlignableInputs, AlignableModel, AlignableRepresentationConfig,
};
use burn_align::interventions::{BuiltinIntervention, VanillaIntervention};
use burn_align::methods::{Mlps, ReceiverInput, head_effects, logit_difference};
use burn_align::training::{InterchangeData, TrainingConfig, TrainingEvent, losses, train};
use burn_align_models::{
    AlignableTransformer, Decoder, FromPretrained, LoadOptions, ModelInput, SavePretrained, Site,
    TokenBatch,
};

use workbench::{BackendChoice, run_options};

use crate::catalogue::{Inputs, Task};
use crate::model::Shape;
use crate::timing::{Repeats, Times, time, time_steps};

/// Most rows of a path sweep at a time, if the user does not choose.
const PATH_ROWS: usize = 1024;

/// A model on a device, and how often and in which parts to run workloads on it.
pub(crate) struct Bench<'a, B: Backend> {
    pub(crate) shape: &'a Shape,
    pub(crate) model: Decoder<B>,
    pub(crate) dtype: DType,
    pub(crate) device: &'a B::Device,
    pub(crate) repeats: Repeats,
    pub(crate) backend: BackendChoice,
    /// Most rows that go through a layer together.
    pub(crate) max_rows: Option<usize>,
}

impl<B: Backend> Bench<'_, B> {
    /// Times one workload.
    pub(crate) fn run(&self, task: &Task) -> Result<Times> {
        match task {
            Task::Forward(_) | Task::EmptyPlan(_) | Task::Sweep { .. } => {
                self.plan(&self.model, &self.plan_of(task).expect("they are plans"))
            }
            Task::Plain(inputs) => self.plain(*inputs),
            Task::Paths {
                inputs,
                receiver,
                mlps,
            } => self.paths(*inputs, *receiver, *mlps),
            Task::Circuits { inputs, kind } => self.circuits(*inputs, *kind),
            Task::Das {
                inputs,
                position,
                representation,
            } => self.das(*inputs, *position, representation),
            Task::DasGrid(inputs) => self.das_grid(*inputs),
            Task::ForwardQuantised(inputs) => {
                let model = self.shape.quantised(&self.model, self.dtype, self.device)?;
                self.plan(&model, &self.forward(*inputs, LogitPositions::Last))
            }
            Task::Features(inputs, kind) => self.features(*inputs, *kind),
            Task::Generate(generation) => self.generate(generation),
            Task::Planning(planning) => self.planning(*planning),
            Task::Product(product) => self.product(*product),
            Task::Load => self.load(),
        }
    }

    /// Runs the model once: its parameters are drawn when they are first used.
    pub(crate) fn draw(&self) -> Result<()> {
        let inputs = Inputs { batch: 1, pos: 1 };
        let tokens = self.tokens(inputs, 0).to_tensor(self.device);
        drop(self.model.forward(ModelInput::Tokens(tokens)));
        Ok(B::sync(self.device)?)
    }

    /// The plan of a task that is one.
    pub(crate) fn plan_of(&self, task: &Task) -> Option<Plan<B>> {
        match task {
            Task::Forward(inputs) => Some(self.forward(*inputs, LogitPositions::Last)),
            Task::EmptyPlan(inputs) => Some(self.forward(*inputs, LogitPositions::All)),
            Task::Sweep {
                inputs,
                cells,
                clean,
            } => Some(self.sweep(*inputs, cells, *clean)),
            _ => None,
        }
    }

    /// Token ids that are arbitrary, but the same every time.
    pub(crate) fn tokens(&self, inputs: Inputs, seed: usize) -> TokenBatch {
        let vocab = self.model.dims().vocab;
        let row =
            |row| (0..inputs.pos).map(move |p| ((seed + row * 7919 + p * 104_729) % vocab) as u32);
        TokenBatch::new((0..inputs.batch).map(|b| row(b).collect()).collect()).expect("a batch")
    }

    pub(crate) fn options(&self, own: Option<usize>) -> RunOptions {
        let mut options = run_options(self.backend);
        options.max_rows = self.max_rows.or(own);
        options
    }

    fn plan(&self, model: &Decoder<B>, plan: &Plan<B>) -> Result<Times> {
        let interventions = [BuiltinIntervention::<B>::from(VanillaIntervention)];
        let options = self.options(None);
        let run = || Ok(plan.run_with(model, &interventions, &options)?);
        time::<B, _>(run, self.repeats, self.device)
    }

    fn plain(&self, inputs: Inputs) -> Result<Times> {
        let tokens = self.tokens(inputs, 1);
        let run = || {
            Ok(self
                .model
                .forward(ModelInput::Tokens(tokens.to_tensor(self.device))))
        };
        time::<B, _>(run, self.repeats, self.device)
    }

    fn forward(&self, inputs: Inputs, logits: LogitPositions) -> Plan<B> {
        let mut plan = Plan::new();
        let input = plan.tokens(&self.tokens(inputs, 1));
        let world = plan.world(input, []);
        plan.read_logits(world, logits);
        plan
    }

    fn sweep(&self, inputs: Inputs, cells: &[(Site, Units)], clean: bool) -> Plan<B> {
        let mut plan = Plan::new();
        let base = plan.tokens(&self.tokens(inputs, 1));
        let source = plan.tokens(&self.tokens(inputs, 2));
        let source = plan.world(source, []);
        let mut worlds: Vec<WorldId> = cells
            .iter()
            .map(|(site, units)| {
                plan.world(base, [Edit::from_world(source, *site, units.clone(), 0)])
            })
            .collect();
        if clean {
            worlds.push(plan.world(base, []));
        }
        for world in worlds {
            plan.read_logits(world, LogitPositions::Last);
        }
        plan
    }

    fn paths(&self, inputs: Inputs, receiver: ReceiverInput, mlps: Mlps) -> Result<Times> {
        let [base, source] = [1, 2].map(|seed| self.tokens(inputs, seed));
        let options = self.options(Some(PATH_ROWS));
        let run = || {
            let effects = head_effects(
                &self.model,
                [&base, &source],
                &[receiver.into()],
                mlps,
                |logits| logit_difference(logits, 5, 6),
                &options,
            );
            Ok(effects?)
        };
        time::<B, _>(run, self.repeats, self.device)
    }

    fn das(
        &self,
        inputs: Inputs,
        position: usize,
        representation: &AlignableRepresentationConfig,
    ) -> Result<Times> {
        let vocab = self.model.dims().vocab;
        let pairs = AlignableInputs::new(self.tokens(inputs, 1))
            .with_sources([self.tokens(inputs, 2)])
            .with_locations(position);
        let labels = (0..inputs.batch).map(|label| (label * 3001 % vocab) as u32);
        let data = [InterchangeData::new(pairs, labels)];
        let model = Decoder::<Autodiff<B>>::from_inner(self.model.clone());
        let config = AlignableConfig::new([representation.clone()]);
        let model = AlignableModel::new(config, model)?;
        let fit = |steps, stepped: &mut dyn FnMut()| {
            // One batch: an epoch is a step.
            let config = TrainingConfig::default().with_epochs(steps);
            let on_event = |event: TrainingEvent<'_>| {
                if let TrainingEvent::Step(_) = event {
                    stepped();
                }
            };
            train(
                model.clone(),
                &data,
                &[],
                &config,
                losses::cross_entropy,
                on_event,
            )?;
            Ok(())
        };
        time_steps::<B>(fit, self.repeats, self.device)
    }

    /// The folder is written first, so that the operating system has it in memory.
    fn load(&self) -> Result<Times> {
        let folder = tempfile::tempdir().context("no temporary folder for a checkpoint")?;
        self.model
            .save_pretrained(&self.shape.config, None, folder.path())?;
        let options = LoadOptions::default().with_dtype(self.dtype);
        let run = || {
            let loaded = Decoder::<B>::from_pretrained(folder.path(), &options, self.device);
            Ok(loaded?.model)
        };
        time::<B, _>(run, self.repeats, self.device)
    }
}
