//! Features of a dictionary: all of them encoded, changed and decoded, in a pass or by themselves.

use anyhow::Result;
use burn::tensor::{DType, Distribution, Tensor, backend::Backend};
use burn_align::dictionaries::{Dictionary, FeatureActivation};
use burn_align::engine::{Edit, LogitPositions, Operand, Plan, Units};
use burn_align::interventions::{BuiltinIntervention, Composed, DictionaryFeatures, Scale};
use burn_align_models::{Component, Site};

use crate::catalogue::{Choices, Inputs, Task, Workload};
use crate::run::Bench;
use crate::timing::{Times, time};

// As in `benches/peers/features.py`.
const FEATURES: usize = 16_384;
const FACTOR: f64 = 0.5;

/// What is computed of the features.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Features {
    /// `x + (f' - f) W_dec` with `f = ReLU(x W_enc + b)`, without a model.
    Products,
    /// The same at every position after a layer of a forward pass.
    Splice {
        /// The layer.
        layer: usize,
    },
}

/// The products alone, and in a pass.
pub(crate) fn workloads(choices: &Choices, layer: usize) -> [Workload; 2] {
    let inputs = choices.inputs(8, 64);
    let rows = inputs.batch * inputs.pos;
    [
        Workload {
            family: "dictionary_products",
            name: format!("dictionary_products_{FEATURES}_{rows}"),
            what: format!("{FEATURES} features of {rows} vectors halved, their error kept"),
            task: Task::Features(inputs, Features::Products),
        },
        Workload {
            family: "dictionary_splice",
            name: format!("dictionary_splice_{FEATURES}_{inputs}"),
            what: format!(
                "the same after layer {layer} at every position of a pass, logits at the last one"
            ),
            task: Task::Features(inputs, Features::Splice { layer }),
        },
    ]
}

impl<B: Backend> Bench<'_, B> {
    pub(crate) fn features(&self, inputs: Inputs, kind: Features) -> Result<Times> {
        let width = self.width();
        let random = |shape: [usize; 2], deviation: f64| {
            let distribution = Distribution::Normal(0.0, deviation);
            Tensor::<B, 2>::random(shape, distribution, self.device).cast(DType::F32)
        };
        let zeros = |count: usize| Tensor::<B, 1>::zeros([count], (self.device, DType::F32));
        let deviation = (width as f64).sqrt().recip();
        let dictionary = Dictionary::new(
            (random([width, FEATURES], deviation), zeros(FEATURES)),
            FeatureActivation::relu(),
            (random([FEATURES, width], deviation), zeros(width)),
        )?;
        match kind {
            Features::Products => {
                let x = random([inputs.batch * inputs.pos, width], 1.0);
                let step = || {
                    let features = dictionary.encode(x.clone()); // [row, feature]
                    let change = features.clone() * FACTOR - features;
                    Ok(x.clone() + dictionary.contribution(change, &x))
                };
                time::<B, _>(step, self.repeats, self.device)
            }
            Features::Splice { layer } => {
                let scale = Scale { factor: FACTOR };
                let halved = Composed::of(DictionaryFeatures::new(dictionary)?, scale);
                let interventions = [BuiltinIntervention::<B>::from(halved)];
                let mut plan = Plan::new();
                let input = plan.tokens(&self.tokens(inputs, 1));
                let site = Site::Block(layer, Component::BlockOutput);
                let edit = Edit::new(site, Units::ALL, 0, Operand::None);
                let world = plan.world(input, [edit]);
                plan.read_logits(world, LogitPositions::Last);
                let options = self.options(None);
                let step = || Ok(plan.run_with(&self.model, &interventions, &options)?);
                time::<B, _>(step, self.repeats, self.device)
            }
        }
    }
}
