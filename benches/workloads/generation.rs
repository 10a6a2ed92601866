//! Texts that are generated greedily, on one prompt or many, steered or not.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_align::engine::{Edit, Operand, Plan, Units};
use burn_align::generate::{GenerateOptions, GeneratedWorld, StepEdit, StepOperand, generate};
use burn_align::interventions::AdditionIntervention;
use burn_align_models::{AlignableTransformer, Component, Decoder, Site};

use crate::catalogue::Inputs;
use crate::run::Bench;
use crate::timing::{Times, time};

/// What is generated, and how.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    /// The prompts.
    pub(crate) inputs: Inputs,
    /// New tokens of each row.
    pub(crate) tokens: usize,
    /// The layer after which a direction is added at every position of prompt and text, another one
    /// in each row.
    pub(crate) steered: Option<usize>,
    /// Whether the weights stay in the blocks of a GGUF file.
    pub(crate) quantised: bool,
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn generate(&self, it: &Generation) -> Result<Times> {
        let model = self.of_generation(it)?;
        let (plan, worlds) = self.prompts(it);
        let options = self.options_of_generation(it);
        let run = || {
            let interventions = [AdditionIntervention];
            let texts = generate(&model, &interventions, &plan, &worlds, &options, |_| {})?;
            for row in &texts.rows {
                let count = row.tokens.len();
                ensure!(count == it.tokens, "a text ended after {count} tokens");
            }
            Ok(texts)
        };
        time::<B, _>(run, self.repeats, self.device)
    }

    /// The model that generates.
    pub(crate) fn of_generation(&self, it: &Generation) -> Result<Decoder<B>> {
        match it.quantised {
            true => self.shape.quantised(&self.model, self.dtype, self.device),
            false => Ok(self.model.clone()),
        }
    }

    pub(crate) fn options_of_generation(&self, it: &Generation) -> GenerateOptions {
        GenerateOptions::new(it.tokens).with_run(self.options(None))
    }

    /// The prompts' plan, and what is done at the steps.
    pub(crate) fn prompts(&self, it: &Generation) -> (Plan<B>, Vec<GeneratedWorld<B>>) {
        let mut plan = Plan::new();
        let input = plan.tokens(&self.tokens(it.inputs, 1));
        let Some(layer) = it.steered else {
            let world = plan.world(input, []);
            return (plan, vec![GeneratedWorld::new(world)]);
        };
        let site = Site::Block(layer, Component::BlockOutput);
        let directions = self.directions(it.inputs.batch);
        let constant = plan.constant(directions.clone());
        let operand = Operand::Constant(constant);
        let world = plan.world(input, [Edit::new(site, Units::ALL, 0, operand)]);
        let edit = StepEdit::new(site, 0, StepOperand::Constant(directions));
        (plan, vec![GeneratedWorld::new(world).with_edit(edit)])
    }

    /// Directions that are arbitrary, but the same every time, `[batch, 1, d_model]`.
    fn directions(&self, batch: usize) -> Tensor<B, 3> {
        let d_model = self.model.dims().d_model;
        let values = (0..batch * d_model).map(|index| (index * 7919 % 1009) as f32 / 1009.0 - 0.5);
        let data = TensorData::new(values.collect::<Vec<f32>>(), [batch, 1, d_model]);
        Tensor::from_data(data.convert_dtype(self.dtype), (self.device, self.dtype))
    }
}
