//! The identity of a run, so that a checkpoint of another one is not continued by mistake.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{ModelDims, TokenBatch};
use serde_json::{Value, json};

use super::{InterchangeData, TrainingConfig};
use crate::engine::{LogitPositions, WorldInput};
use crate::front::{AlignableConfig, Source};

/// Everything comparable that a run's numbers depend on: the configurations, the sizes of model,
/// interventions and data, and a hash of token ids, positions and labels.
///
/// It does not include the weights of the model, the initial values of the interventions, or the
/// memory budget, which changes rounding at most.
pub(super) fn fingerprint<B: Backend, D: Backend, I: Module<B>>(
    config: &TrainingConfig,
    alignment: &AlignableConfig,
    dims: &ModelDims,
    interventions: &[I],
    [data, held_out]: [&[InterchangeData<D>]; 2],
) -> Value {
    let TrainingConfig {
        epochs,
        batch_size,
        learning_rate,
        mask_learning_rate,
        schedule,
        optimizer,
        accumulation,
        temperature,
        penalty,
        seed,
        patience,
        memory_budget: _,
        checkpoints: _,
    } = config;
    let mut shapes = Shapes(Vec::new());
    for intervention in interventions {
        intervention.visit(&mut shapes);
    }
    let all = |data: &[InterchangeData<D>]| -> Vec<Value> { data.iter().map(dataset).collect() };
    json!({
        "config": {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "mask_learning_rate": mask_learning_rate,
            "schedule": schedule,
            "optimizer": optimizer,
            "accumulation": accumulation,
            "temperature": temperature,
            "penalty": penalty,
            "seed": seed,
            "patience": patience,
        },
        "alignment": alignment,
        "model": sizes(dims),
        "parameters": shapes.0,
        "data": all(data),
        "held_out": all(held_out),
    })
}

/// The sizes of a model.
pub(super) fn sizes(dims: &ModelDims) -> Value {
    json!({
        "layers": dims.layers,
        "d_model": dims.d_model,
        "vocab": dims.vocab,
    })
}

/// A hash of token ids.
pub(super) fn hash_of(batches: &[TokenBatch]) -> String {
    let mut hash = Hash::default();
    for batch in batches {
        hash.rows(batch.ids().iter().map(|ids| ids.iter().copied()));
    }
    format!("{:016x}", hash.0)
}

struct Shapes(Vec<Vec<usize>>);

impl<B: Backend> ModuleVisitor<B> for Shapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.push(param.dims().to_vec());
    }
}

fn dataset<B: Backend>(data: &InterchangeData<B>) -> Value {
    let mut hash = Hash::default();
    let mut input = |input: &WorldInput<B>| match input {
        WorldInput::Tokens(tokens) => hash.rows(tokens.ids().iter().map(|ids| ids.iter().copied())),
        WorldInput::Features(_) | WorldInput::Resumed(_) | WorldInput::Continued(_) => {}
    };
    input(&data.inputs.base);
    for source in &data.inputs.sources {
        if let Source::Run(source) = source {
            input(source);
        }
    }
    hash.rows(data.labels.iter().map(|labels| labels.iter().copied()));
    if let LogitPositions::Each(each) = &data.positions {
        hash.rows(
            each.iter()
                .map(|units| units.iter().map(|unit| *unit as u32)),
        );
    }
    json!({"examples": data.len(), "hash": format!("{:016x}", hash.0)})
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo; RFC 9923), of numbers.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn number(&mut self, number: u32) {
        for byte in number.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn rows(&mut self, rows: impl Iterator<Item = impl ExactSizeIterator<Item = u32>>) {
        for row in rows {
            self.number(row.len() as u32);
            row.for_each(|number| self.number(number));
        }
    }
}
